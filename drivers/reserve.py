"""Room for the records of a removal, where the records are on the file system that the layers fill."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinpool.units import MIB

_NAME = "reserve"
_BYTES = 2 * MIB


class Reserve:
    """A file that takes some space until it is needed.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self) -> None:
        """Take the space where it is not taken; nothing happens where there is none, or it cannot be taken."""
        with suppress(OSError):
            path = self._directory / _NAME
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_blocks * 512 < _BYTES:
                    os.posix_fallocate(fd, 0, _BYTES)
            finally:
                os.close(fd)

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Give the space up where there is less than that free; it stays so until it is taken again."""
        room = os.statvfs(self._directory)
        if room.f_bavail * room.f_frsize < _BYTES:
            with suppress(FileNotFoundError):
                os.unlink(self._directory / _NAME)
                fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)  # what is freed can be used when its transaction is written
                finally:
                    os.close(fd)
        yield
