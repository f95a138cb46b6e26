import contextlib
import io
import os
import pty
import select
from collections.abc import Iterator

import pytest

from thinpool.cli.progress import progress_bar


@contextlib.contextmanager
def terminal_as_stderr() -> Iterator[int]:
    """Standard error is a terminal; what is written to it can be read from the descriptor."""
    ours, theirs = pty.openpty()
    try:
        with open(theirs, "w", closefd=False) as screen, contextlib.redirect_stderr(screen):
            yield ours
    finally:
        os.close(theirs)
        os.close(ours)


@pytest.mark.parametrize("total", [4096, None])
def test_a_terminal_shows_how_far_it_is(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("thinpool.cli.progress.REFRESH_SECONDS", 0.0)
    with terminal_as_stderr() as screen:
        with progress_bar("importing debian", total) as update:
            assert update is not None
            update(2048)
            seen = b""
            while b"2.0/" not in seen and select.select([screen], [], [], 10)[0]:
                seen += os.read(screen, 1 << 16)
        assert b"importing debian" in seen
        assert b"2.0/" in seen
    assert capsys.readouterr().out == ""


def test_elsewhere_nothing_is_shown() -> None:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), progress_bar("importing debian", None) as update:
        assert update is None
    assert errors.getvalue() == ""
