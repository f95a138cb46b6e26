"""A progress bar on standard error, where a person is looking."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """Show how many bytes are done.

    Args:
        title: what is being done.
        total: bytes to do, or None where that is not known.

    Yields:
        What to call with the bytes done so far; None where standard error is no terminal.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - nearly all runs need none of it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    # No thread redraws it: a thread would run on in a process that forks.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task(title, total=total)
        shown = time.monotonic()

        def update(done: int) -> None:
            nonlocal shown
            progress.update(task, completed=done)
            if time.monotonic() - shown >= REFRESH_SECONDS:
                progress.refresh()
                shown = time.monotonic()

        yield update
