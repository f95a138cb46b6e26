"""Room for the records of a removal, where the records are on the file system that the layers fill."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.units import MIB

_NAME = "reserve"
_BYTES = 2 * MIB


class Reserve:
    """A file that takes some space until it is needed.

    Args:
        directory: where it is.
        settle: called with the open directory when the file is gone, to have its space free when it returns.
    """

    def __init__(self, directory: Path, settle: Callable[[int], None] = os.fsync) -> None:
        self._directory = directory
        self._settle = settle

    def take(self) -> None:
        """Take the space where it is not taken; nothing happens where there is none, or it cannot be taken."""
        with suppress(OSError):
            path = self._directory / _NAME
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < _BYTES:
                    os.posix_fallocate(fd, 0, _BYTES)
                    point("reserve-taken")
            finally:
                os.close(fd)

    def drop(self) -> None:
        """Give the space up; it is free when this returns.

        Raises:
            OSError: the file system takes no changes.
        """
        with suppress(FileNotFoundError):
            os.unlink(self._directory / _NAME)
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._settle(fd)
            finally:
                os.close(fd)

    def make_room(self) -> None:
        """Give the space up where there is less than that free; raises as `drop`."""
        room = os.statvfs(self._directory)
        if room.f_bavail * room.f_frsize < _BYTES:
            self.drop()
