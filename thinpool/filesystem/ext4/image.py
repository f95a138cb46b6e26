"""A whole file system, by inode numbers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from thinpool.filesystem.ext4 import attributes, directory, extents
from thinpool.filesystem.ext4.content import FileContent
from thinpool.filesystem.ext4.directory import Entry
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.extents import Extent
from thinpool.filesystem.ext4.groups import Groups, read_groups
from thinpool.filesystem.ext4.inode import Inode, parse_inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock, read_superblock
from thinpool.filesystem.ext4.volume import Volume

_KEPT = 4096


class Image:
    """An ext4 file system on a volume, which must not change while it is read.

    What is read is checked: bounds everywhere, and checksums where the file system has them. Every method raises
    Unreadable for damage and for what is not known here, with the structure and its number, and nothing else.

    Attributes:
        volume: where the bytes come from; it stays the caller's.
        superblock: the superblock.
        groups: the group descriptors.
    """

    def __init__(self, volume: Volume, superblock: Superblock, groups: Groups) -> None:
        """See `open`."""
        self.volume = volume
        self.superblock = superblock
        self.groups = groups
        self._inodes: dict[int, Inode | None] = {}
        self._block = (-1, b"")

    @classmethod
    def open(cls, volume: Volume) -> Self:
        """Read superblock and group descriptors.

        Raises:
            Unreadable: it is no ext4 file system, or one that is not read here; says why.
        """
        superblock = read_superblock(volume)
        return cls(volume, superblock, read_groups(volume, superblock))

    def inode(self, number: int) -> Inode | None:
        """An inode; None where no name leads to it: never used, free, or waiting to be removed.

        Raises:
            Unreadable: it is damaged, of a kind that is not known here, or there is no such number.
        """
        try:
            return self._inodes[number]
        except KeyError:
            offset = self.groups.offset(number)
        raw = b""
        if offset is not None:
            within = offset % BLOCK_SIZE
            raw = self._table_block(offset - within)[within : within + self.superblock.inode_size]
        return self._take_in(number, raw)

    def parse(self, number: int, raw: bytes) -> Inode | None:
        """The same, from the inode's bytes in its table; None also where there is no such number.

        Raises:
            Unreadable: it is damaged, or of a kind that is not known here.
        """
        if number > self.superblock.inodes or self.groups.offset(number) is None:
            return None
        return self._take_in(number, raw)

    def _take_in(self, number: int, raw: bytes) -> Inode | None:
        found = parse_inode(raw, number, self.superblock) if raw else None
        if len(self._inodes) >= _KEPT:
            self._inodes.clear()
        self._inodes[number] = found
        return found

    def _table_block(self, offset: int) -> bytes:
        """A block of an inode table; the last one is kept, as neighbours are often asked for in turn."""
        if self._block[0] != offset:
            self._block = (offset, self.volume.read(offset, BLOCK_SIZE))
        return self._block[1]

    def used_inode(self, number: int) -> Inode:
        """An inode that a name leads to.

        Raises:
            Unreadable: as `inode`, or it is not in use.
        """
        found = self.inode(number)
        if found is None:
            raise Unreadable(f"inode {number} has a name, but is not in use")
        return found

    def entries(self, inode: Inode) -> Mapping[bytes, Entry]:
        """All entries of a directory by name, `.` and `..` among them.

        Raises:
            Unreadable: it is damaged, or no directory.
        """
        return directory.read(self.volume, self.superblock, inode)

    def attributes(self, inode: Inode) -> Mapping[str, bytes]:
        """All extended attributes that a mount shows, as listxattr(2) and getxattr(2) do.

        Raises:
            Unreadable: they are damaged.
        """
        return attributes.read(self.volume, self.superblock, inode)

    def target(self, inode: Inode) -> bytes:
        """What a symbolic link names.

        Raises:
            Unreadable: it is damaged, or no symbolic link.
        """
        return extents.target(self.volume, self.superblock, inode)

    def extents(self, inode: Inode) -> Iterator[Extent]:
        """Where the blocks of a regular file, a directory or a long symbolic link are, in the order of the file.

        Raises:
            Unreadable: while it goes on: they are damaged.
        """
        return extents.read(self.volume, self.superblock, inode)

    def content(self, inode: Inode) -> FileContent:
        """The content of a regular file.

        Raises:
            Unreadable: here or while it is read: its extents are damaged, or it is no regular file.
        """
        return FileContent(self.volume, self.superblock, inode)

    def prefetch_inodes(self, numbers: Iterable[int]) -> None:
        """Read the table blocks of inodes ahead; numbers that there cannot be are passed over."""
        wanted: set[int] = set()
        for number in numbers:
            if number not in self._inodes and 0 < number <= self.superblock.inodes:
                offset = self.groups.offset(number)
                if offset is not None:
                    wanted.add(offset - offset % BLOCK_SIZE)
        if wanted:
            self.volume.prefetch((offset, BLOCK_SIZE) for offset in sorted(wanted))

    def prefetch_entries(self, inodes: Iterable[Inode]) -> None:
        """Read the blocks of directories ahead, so far as their inodes tell where they are."""
        self.volume.prefetch(
            (extent.block * BLOCK_SIZE, extent.blocks * BLOCK_SIZE)
            for inode in inodes
            for extent in extents.in_inode(self.superblock, inode)
        )
