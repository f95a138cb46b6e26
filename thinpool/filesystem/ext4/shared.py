"""File systems that share blocks, read so that a directory that several of them have is parsed once."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping

from thinpool.filesystem.ext4.directory import Entry
from thinpool.filesystem.ext4.extents import in_inode
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import EXTENTS_FLAG, Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE

__all__ = ["Directories", "SharingImage"]

_MOST_ENTRIES = 30_000
_MOST_BLOCKS = 64


class Directories:
    """Parsed directories, by where they are stored; some 30,000 entries at the most, which take some 8 MB."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Mapping[bytes, Entry]] = OrderedDict()
        self._entries = 0

    def get(self, key: Hashable) -> Mapping[bytes, Entry] | None:
        """The entries that are kept under a key."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: Hashable, entries: Mapping[bytes, Entry]) -> None:
        """Keep entries, and let go of those that were not asked for the longest."""
        self._kept[key] = entries
        self._entries += len(entries)
        while self._entries > _MOST_ENTRIES:
            _, gone = self._kept.popitem(last=False)
            self._entries -= len(gone)


class SharingImage(Image):
    """One of several file systems on devices that share blocks.

    Attributes:
        directories: what is kept for all of them.
    """

    directories: Directories

    def entries(self, inode: Inode) -> Mapping[bytes, Entry]:
        """As `Image.entries`, from what is kept where the directory is stored at the same places."""
        key = self._key(inode)
        found = None if key is None else self.directories.get(key)
        if found is None:
            found = super().entries(inode)
            if key is not None:
                self.directories.keep(key, found)
        return found

    def _key(self, inode: Inode) -> Hashable | None:
        """What tells a directory's content from all others; None where that takes too much to find out."""
        if not inode.flags & EXTENTS_FLAG or inode.block[6:8] != b"\0\0" or inode.size > _MOST_BLOCKS * BLOCK_SIZE:
            return None
        places: list[Hashable] = []
        for extent in in_inode(self.superblock, inode):
            offset, end = extent.block * BLOCK_SIZE, (extent.block + extent.blocks) * BLOCK_SIZE
            while offset < end:
                place, length = self.volume.stored_at(offset)
                places.append(place)
                offset += length
        return inode.number, inode.generation, inode.size, inode.flags, inode.block, tuple(places)
