"""Where a file system's bytes come from."""

import os
from collections.abc import Hashable, Iterable
from types import TracebackType
from typing import Protocol, Self

from thinpool.filesystem.ext4.errors import Unreadable


class Volume(Protocol):
    """The bytes of a device that does not change while it is read.

    Implementations keep a bounded number of blocks that were read or read ahead, so that small reads beside each other
    cost one.
    """

    @property
    def size(self) -> int:
        """Bytes of the device."""

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from an offset on; what was never written is zeros.

        Raises:
            Unreadable: they lie beyond the end, or the device gives an error.
        """

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Offsets and lengths that will be read soon; many of them are read at once where that helps.

        What cannot be read is left for `read` to complain about.
        """

    def stored_at(self, offset: int) -> tuple[Hashable, int]:
        """Where a byte is stored, and for how many bytes from there on the storage goes on in the same way.

        Two bytes of any two volumes that are stored at equal places are one byte of storage, and need not be read to
        know that they are equal; so are the bytes after them, as far as the smaller of the two lengths goes. What
        was never written is stored nowhere, which is one place too.
        """


class FileVolume:
    """An image in a file, or a block device that nobody writes to, through the page cache."""

    def __init__(self, fd: int) -> None:
        """Read from an open file, which stays the caller's until `close`."""
        self._fd = fd
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.reads = 0
        self.bytes = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open by path.

        Raises:
            OSError: it cannot be opened.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from an offset on."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Unreadable(f"{length} bytes at {offset} lie outside the device's {self.size}")
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise Unreadable(f"{length} bytes at {offset} cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise Unreadable(f"{length} bytes at {offset}: {len(data)} read")
        self.reads += 1
        self.bytes += length
        return data

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing: the page cache reads ahead."""

    def stored_at(self, offset: int) -> tuple[Hashable, int]:
        """In this file, and in no other."""
        return (id(self), offset), max(self.size - offset, 1)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
