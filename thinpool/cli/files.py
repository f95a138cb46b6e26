"""The files that archives are read from and written to."""

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from thinpool.cli import signals
from thinpool.cli.output import binary_stdout

STANDARD = Path("-")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def source(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """An archive to read, and its size in bytes where that is known; `-` is standard input.

    Raises:
        UsageError: standard input is a terminal, from which nobody means to type an archive.
    """
    if path != STANDARD:
        with open(path, "rb") as file:
            yield file, _known_size(file)
    elif sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("standard input is no archive: name a file, or redirect one to it")
    else:
        yield sys.stdin.buffer, _known_size(sys.stdin.buffer)


@contextlib.contextmanager
def image(path: Path) -> Iterator[Path | IO[bytes]]:
    """An image to read: a directory or a file by its path; `-` is an archive from standard input.

    Raises:
        UsageError: standard input is a terminal.
    """
    if path != STANDARD:
        yield path
        return
    with source(path) as (stream, _):
        yield stream


@contextlib.contextmanager
def sink(path: Path) -> Iterator[IO[bytes]]:
    """A place to write an archive to; `-` is standard output.

    A regular file appears, or is replaced, when all is written and on disk; before that, and if it comes to nothing,
    what was under its name stays. Only a kill that cannot be caught leaves the unfinished file, `.thinpool-*.part`
    beside it. A symbolic link is followed; a device or FIFO is written to directly.

    Raises:
        UsageError: standard output is a terminal.
    """
    if path == STANDARD:
        refuse_terminal()
        with signals.dropping_output(), binary_stdout() as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with open(target, "wb") as file:
            yield file
        return
    partial = target.with_name(f".thinpool-{secrets.token_hex(8)}.part")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = os.fspath(path)  # write(2) does not say what is full
        raise


def refuse_terminal() -> None:
    """Refuse to write an archive to a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        raise click.UsageError("an archive is not written to a terminal: use -o FILE, or redirect standard output")


def _known_size(file: IO[bytes]) -> int | None:
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
