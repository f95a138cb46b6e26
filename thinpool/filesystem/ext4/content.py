"""The content of a regular file."""

import stat
from collections.abc import Hashable, Iterator

from thinpool.filesystem.ext4 import extents
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.extents import Extent
from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock
from thinpool.filesystem.ext4.volume import Volume


class FileContent:
    """A regular file's content, a `thinpool.layer.view.Content`.

    It goes over the extents as it is read; going back means to begin with them anew.
    """

    def __init__(self, volume: Volume, superblock: Superblock, inode: Inode) -> None:
        """Of a file; see `Image.content`."""
        if not stat.S_ISREG(inode.mode):
            raise Unreadable(f"inode {inode.number} is no regular file")
        self._volume = volume
        self._size = inode.size
        # `next_data` runs ahead of the reader over what reads as zeros
        self._here = _Cursor(volume, superblock, inode)
        self._ahead = _Cursor(volume, superblock, inode)
        self._zeros = range(0)

    def next_data(self, position: int) -> int:
        """The first position from here on that may hold anything but zeros; the file's size where none does."""
        if position in self._zeros:
            return self._zeros.stop
        start = position
        while position < self._size:
            offset, length = self._ahead.place(position)
            if offset is not None:
                break
            position += length
        position = min(position, self._size)
        self._zeros = range(start, position)
        return position

    def stored_at(self, position: int) -> tuple[Hashable, int] | None:
        """Where the byte at a position is stored, and for how many bytes on; see `Volume.stored_at`."""
        offset, length = self._here.place(position)
        if offset is None:
            return None, length
        place, further = self._volume.stored_at(offset)
        return place, min(length, further)

    def read(self, position: int, length: int) -> bytes:
        """So many bytes from a position on, fewer at the file's end."""
        end = min(position + length, self._size)
        parts: list[tuple[int | None, int]] = []
        while position < end:
            offset, stretch = self._here.place(position)
            stretch = min(stretch, end - position)
            parts.append((offset, stretch))
            position += stretch
        stored = [(offset, stretch) for offset, stretch in parts if offset is not None]
        if len(stored) > 1:
            self._volume.prefetch(stored)
        return b"".join(
            bytes(stretch) if offset is None else self._volume.read(offset, stretch) for offset, stretch in parts
        )

    def close(self) -> None:
        """Nothing is held."""


class _Cursor:
    """Finds positions of a file on the volume, each after the one before."""

    def __init__(self, volume: Volume, superblock: Superblock, inode: Inode) -> None:
        self._source = (volume, superblock, inode)
        self._end = -(-inode.size // BLOCK_SIZE) * BLOCK_SIZE
        self._extents: Iterator[Extent] | None = None
        self._after = 0
        self._present: Extent | None = None

    def place(self, position: int) -> tuple[int | None, int]:
        """The offset on the volume of what is at a position in the file, None for zeros; for how many bytes on."""
        block, within = divmod(position, BLOCK_SIZE)
        if self._extents is None or block < self._after:
            self._extents = extents.read(*self._source)
            self._after = 0
            self._present = next(self._extents, None)
        while self._present is not None and self._present.start + self._present.blocks <= block:
            self._after = self._present.start + self._present.blocks
            self._present = next(self._extents, None)
        extent = self._present
        if extent is None:
            return None, self._end - position
        if block < extent.start:
            return None, extent.start * BLOCK_SIZE - position
        length = (extent.start + extent.blocks) * BLOCK_SIZE - position
        if not extent.written:
            return None, length
        return (extent.block + block - extent.start) * BLOCK_SIZE + within, length
