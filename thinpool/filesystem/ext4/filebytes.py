"""The bytes of a file, read piece by piece as they are asked for."""

import os
import weakref
from typing import Self

__all__ = ["FileBytes"]


class FileBytes:
    """A file that is sliced as bytes are; each slice is one read. It stays open for as long as the value is there."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor of a file that does not change any more."""
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self._size = os.fstat(fd).st_size

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open by path, which must not be a symbolic link.

        Raises:
            OSError: it cannot be opened.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Bytes in a row.

        Raises:
            OSError: they cannot be read, or the file was cut short.
        """
        start, end, _ = part.indices(self._size)
        found = os.pread(self._fd, max(end - start, 0), start)
        if len(found) < end - start:
            raise OSError("the file was cut short")
        return found
