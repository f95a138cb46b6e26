"""The group descriptors: where the inode tables are, and how much of each is in use.

Layout: `struct ext4_group_desc` of the kernel's fs/ext4/ext4.h; checks and checksums: `ext4_check_descriptors` and
`ext4_group_desc_csum` of fs/ext4/super.c. A file system that was grown has its later groups described behind the first
ones, in blocks that were reserved for that; without meta_bg the descriptors stay in one piece.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

import attrs

from thinpool.filesystem.ext4.checksums import crc16
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.features import RoCompat
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock
from thinpool.filesystem.ext4.volume import Volume

_LOW = struct.Struct("<IIIHHHHIHHHH")
_HIGH = struct.Struct("<IIIHHHHIHHI")
_CHECKSUM_AT = 0x1E
_INODE_UNINIT = 1  # EXT4_BG_INODE_UNINIT
_READ = 1 << 20


@attrs.frozen
class Group:
    """One group's descriptor.

    Attributes:
        table: offset in bytes of its inode table.
        used: how many inodes of the table may be in use, from its first on; the rest was never written.
        directories: how many directories it has.
    """

    table: int
    used: int
    directories: int


@attrs.frozen(eq=False)
class Groups:
    """All groups of a file system.

    Attributes:
        superblock: of the file system.
        all: the groups in the order of their numbers.
        by_table: the numbers of the groups in the order of their tables' offsets.
    """

    superblock: Superblock
    all: Sequence[Group]
    by_table: Sequence[int]

    def offset(self, inode: int) -> int | None:
        """The offset in bytes of an inode in its table; None beyond what is in use there.

        Raises:
            Unreadable: there is no such number.
        """
        if not 0 < inode <= self.superblock.inodes:
            raise Unreadable(f"inode {inode} of {self.superblock.inodes}")
        number, index = divmod(inode - 1, self.superblock.inodes_per_group)
        group = self.all[number]
        return group.table + index * self.superblock.inode_size if index < group.used else None

    def inodes_in(self, start: int, end: int) -> Iterator[range]:
        """The numbers of the inodes that a range of bytes holds at least a part of, used or not, table by table."""
        if start >= end:
            return
        superblock = self.superblock
        size, count = superblock.inode_size, superblock.inodes_per_group
        for number in self.by_table[self._first_table(start) :]:
            table = self.all[number].table
            if table >= end:
                return
            first = max(start - table, 0) // size
            last = min(-(-(end - table) // size), count)
            if first < last:
                yield range(number * count + first + 1, number * count + last + 1)

    def _first_table(self, offset: int) -> int:
        """The place in `by_table` of the first table that ends after an offset."""
        low, high = 0, len(self.by_table)
        while low < high:
            middle = (low + high) // 2
            if self.all[self.by_table[middle]].table + self.superblock.table_size <= offset:
                low = middle + 1
            else:
                high = middle
        return low


def read_groups(volume: Volume, superblock: Superblock) -> Groups:
    """Read and check all group descriptors.

    Raises:
        Unreadable: one is damaged.
    """
    count, size = superblock.groups, superblock.descriptor_size
    if BLOCK_SIZE + count * size > superblock.size:
        raise Unreadable(f"{count} group descriptors do not fit into the file system")
    groups: list[Group] = []
    for first in range(0, count, _READ // size):
        more = min(_READ // size, count - first)
        data = volume.read(BLOCK_SIZE + first * size, more * size)
        groups += (_parse(data[index * size : (index + 1) * size], first + index, superblock) for index in range(more))
    by_table = sorted(range(count), key=lambda number: groups[number].table)
    for number, following in pairwise(by_table):
        if groups[number].table + superblock.table_size > groups[following].table:
            raise Unreadable(f"the inode tables of groups {number} and {following} overlap")
    return Groups(superblock, groups, by_table)


def _parse(data: bytes, number: int, superblock: Superblock) -> Group:
    _check(data, number, superblock)
    _, _, table, _, _, directories, flags, _, _, _, unused, _ = _LOW.unpack_from(data)
    if len(data) == 64:
        _, _, table_high, _, _, directories_high, unused_high, _, _, _, _ = _HIGH.unpack_from(data, 0x20)
        table |= table_high << 32
        directories |= directories_high << 16
        unused |= unused_high << 16
    if not 0 < table <= superblock.blocks - superblock.table_size // BLOCK_SIZE:
        raise Unreadable(f"group {number} is damaged: its inode table is at block {table} of {superblock.blocks}")
    count = superblock.inodes_per_group
    if not superblock.ro_compat & (RoCompat.METADATA_CSUM | RoCompat.GDT_CSUM):
        return Group(table * BLOCK_SIZE, count, directories)
    if unused > count:
        raise Unreadable(f"group {number} is damaged: {unused} of its {count} inodes are unused")
    return Group(table * BLOCK_SIZE, 0 if flags & _INODE_UNINIT else count - unused, directories)


def _check(data: bytes, number: int, superblock: Superblock) -> None:
    before, after = data[:_CHECKSUM_AT], data[_CHECKSUM_AT + 2 :]
    (found,) = struct.unpack_from("<H", data, _CHECKSUM_AT)
    if superblock.checksums is not None:
        sums = superblock.checksums
        expected = sums.over(sums.of_group(number), before, b"\0\0", after) & 0xFFFF
    elif RoCompat.GDT_CSUM in superblock.ro_compat:
        expected = crc16(superblock.uuid + struct.pack("<I", number) + before + after)
    else:
        return
    if found != expected:
        raise Unreadable(f"group {number} is damaged: wrong checksum of its descriptor")
