"""The entries of a directory.

Layout and checks: `struct ext4_dir_entry_2` of the kernel's fs/ext4/ext4.h, the structures of hashed trees and the
checksums in namei.c, `__ext4_check_dir_entry` of dir.c. A directory with a hashed tree reads like any other: the blocks
of the tree look like empty entries, so only their checksums are of another kind.
"""

import stat
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from thinpool.filesystem.ext4 import extents
from thinpool.filesystem.ext4.checksums import Checksums
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.features import Compat
from thinpool.filesystem.ext4.inode import INDEX_FLAG, Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock
from thinpool.filesystem.ext4.volume import Volume

_LARGEST = 1 << 31
_READ_BLOCKS = 64
_ENTRY = struct.Struct("<IHBB")
_SHORTEST = 12
_KINDS = (
    0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK,
)  # fmt: skip
_NO_KINDS = (0,) * 256
_TAIL = struct.pack("<IHBB", 0, _SHORTEST, 0, 0xDE)  # struct ext4_dir_entry_tail, without the checksum
_TAIL_AT = BLOCK_SIZE - _SHORTEST
_U32 = struct.Struct("<I")
_LIMIT = struct.Struct("<HH")  # struct dx_countlimit
_INNER_AT = 8
_ROOT_AT = 32


class Entry(NamedTuple):
    """One entry.

    Attributes:
        inode: the inode's number.
        kind: the type of the inode, as `stat.S_IFMT` of its mode; 0 where the file system does not keep it here.
    """

    inode: int
    kind: int


def read(volume: Volume, superblock: Superblock, inode: Inode) -> Mapping[bytes, Entry]:
    """All entries of a directory by name, `.` and `..` among them.

    Raises:
        Unreadable: it is damaged, or no directory.
    """
    if not inode.is_directory:
        raise Unreadable(f"inode {inode.number} is no directory")
    if not 0 < inode.size <= _LARGEST or inode.size % BLOCK_SIZE:
        raise _damaged(inode, f"{inode.size} bytes of entries")
    blocks = _Blocks(superblock, inode)
    for place, data in _data(volume, superblock, inode):
        blocks.take(place, data)
    blocks.check_names()
    found = blocks.found
    own = found.get(b".")
    if own is None or own.inode != inode.number or b".." not in found:
        raise _damaged(inode, "it has no entries . and .. of its own")
    return found


def _data(volume: Volume, superblock: Superblock, inode: Inode) -> Iterator[tuple[int, memoryview]]:
    """All blocks with their places in the directory."""
    count = inode.size // BLOCK_SIZE
    place = 0
    for extent in extents.read(volume, superblock, inode):
        if place == count:
            return
        if extent.start != place or not extent.written:
            break
        end = min(place + extent.blocks, count)
        while place < end:
            some = min(end - place, _READ_BLOCKS)
            offset = (extent.block + place - extent.start) * BLOCK_SIZE
            data = memoryview(volume.read(offset, some * BLOCK_SIZE))
            for index in range(some):
                yield place + index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            place += some
    if place != count:
        raise _damaged(inode, f"its block {place} is missing")


class _Blocks:
    """Collects what is in the blocks of one directory."""

    def __init__(self, superblock: Superblock, inode: Inode) -> None:
        self.found: dict[bytes, Entry] = {}
        self._count = 0
        self._inode = inode
        self._checksums = superblock.checksums
        self._seed = 0 if self._checksums is None else self._checksums.of_inode(inode.number, inode.generation)
        self._is_hashed = bool(inode.flags & INDEX_FLAG) and Compat.DIR_INDEX in superblock.compat
        self._kinds = _KINDS if superblock.has_kinds else _NO_KINDS
        self._inodes = superblock.inodes

    def take(self, place: int, block: memoryview) -> None:
        """Check and parse a block."""
        if self._checksums is not None:
            _, length, _, _ = _ENTRY.unpack_from(block)
            if self._is_hashed and (place == 0 or length == BLOCK_SIZE):
                self._check_tree(place, block, self._checksums, _ROOT_AT if length == _SHORTEST else _INNER_AT)
            else:
                self._check_leaf(place, block, self._checksums)
        self._parse(place, bytes(block))

    def _parse(self, place: int, block: bytes) -> None:
        """One loop with next to no calls, as much of a comparison is done here; names are checked at the end."""
        found, kinds, inodes, unpack = self.found, self._kinds, self._inodes, _ENTRY.unpack_from
        entry, known, size, tail = tuple.__new__, len(self._kinds), BLOCK_SIZE, _TAIL_AT
        position = count = 0
        while position < size:
            number, length, name_length, kind = unpack(block, position)
            end = position + length
            if length & 3 or length < _SHORTEST or length < name_length + 8 or (end > tail and end != size):
                raise self._damaged(place, f"an entry of {length} bytes with a name of {name_length} at {position}")
            if number:
                if number > inodes or kind >= known:
                    raise self._damaged(place, f"an entry names inode {number} of {inodes}, of type {kind}")
                start = position + 8
                found[block[start : start + name_length]] = entry(Entry, (number, kinds[kind]))
                count += 1
            position = end
        self._count += count

    def check_names(self) -> None:
        """Check the names of all blocks: none twice, and none that there cannot be."""
        found = self.found
        if len(found) != self._count:
            raise _damaged(self._inode, f"{self._count} entries have {len(found)} names, so one of them is there twice")
        every = b"".join(found)
        if b"/" in every or b"\0" in every or b"" in found:
            name = next(name for name in found if not name or b"/" in name or b"\0" in name)
            raise _damaged(self._inode, f"an entry has the name {name!r}")

    def _check_leaf(self, place: int, block: memoryview, sums: Checksums) -> None:
        (found,) = _U32.unpack_from(block, BLOCK_SIZE - 4)
        tail = block[_TAIL_AT : BLOCK_SIZE - 4]
        if tail != _TAIL or found != sums.over(self._seed, block[:_TAIL_AT]):
            raise self._damaged(place, "wrong checksum")

    def _check_tree(self, place: int, block: memoryview, sums: Checksums, at: int) -> None:
        limit, count = _LIMIT.unpack_from(block, at)
        tail = at + 8 * limit  # struct dx_tail
        if count > limit or tail > BLOCK_SIZE - 8:
            raise self._damaged(place, f"{count} of {limit} entries in its hashed tree")
        (found,) = _U32.unpack_from(block, tail + 4)
        if found != sums.over(self._seed, block[: at + 8 * count], block[tail : tail + 4], bytes(4)):
            raise self._damaged(place, "wrong checksum of its hashed tree")

    def _damaged(self, place: int, reason: str) -> Unreadable:
        return _damaged(self._inode, f"block {place} of its entries: {reason}")


def _damaged(inode: Inode, reason: str) -> Unreadable:
    return Unreadable(f"directory {inode.number} is damaged: {reason}")
