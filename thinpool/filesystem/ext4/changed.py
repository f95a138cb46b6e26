"""Which inodes differ between two file systems of which one is a snapshot of the other, or both are of a third.

Only the blocks of the inode tables that the two devices store at different places are read. What this relies on:

- Every change of a file, its attributes or a directory's entries through the kernel sets the inode's time of change
  (ctime), whether by write, by direct I/O or through a mapping (`file_update_time`, called when a page of a mapping
  becomes writable; the freeze before a snapshot makes all of them read-only again), so the inode's bytes change.
- But the time moves in ticks. Inodes whose bytes are the same are differing all the same where their ctime is not
  settled, i.e. not older by two ticks than the time when the two devices were one, and where something of their
  content is stored at different places. Such inodes are found in the blocks that are read anyway; and, as a second
  change within a tick need not touch the inode at all, in lists of *late* inodes (`thinpool.filesystem.ext4.manifest`).
- What writes to a device past the kernel's file system (debugfs, e2fsck) need not set ctime. e2fsck leaves the time of
  its run in the superblock, and two file systems between which it ran are not compared here.

Unlike ctime, the time of access, the time of deletion, the change counter and checksums do not count.
"""

import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.extents import in_inode
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import EXTENTS_FLAG, Inode
from thinpool.filesystem.ext4.settled import TWO_TICKS_NS, may_repeat, unsettled
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE

__all__ = ["Changed", "State", "changed_inodes", "check_comparable"]

MOST_INODES: Final = 1 << 19
"""More changed inodes than these are not kept in memory: everything is compared then."""

_WINDOW: Final = 1 << 19
_PIECE: Final = 1 << 16
_TABLE_PARTS: Final = 64
_DEPTH = struct.Struct("<6xH")
_INDIRECT = struct.Struct("<48xIII")


class State(NamedTuple):
    """What matters of an inode on one side.

    Attributes:
        generation: tells it from an earlier inode of its number.
        links: how many names it has.
        directory: it is one.
    """

    generation: int
    links: int
    directory: bool

    @classmethod
    def of(cls, inode: Inode) -> "State":
        """Of an inode."""
        return cls(inode.generation, inode.links, inode.is_directory)

    @property
    def names(self) -> int:
        """How many directory entries lead to it."""
        return 1 if self.directory else self.links


class Changed(NamedTuple):
    """An inode number that differs: in use, or not, on the two sides."""

    older: State | None
    newer: State | None

    @property
    def is_same(self) -> bool:
        """Whether both sides have the same file or directory, as far as it is known by number and generation."""
        ours, theirs = self.older, self.newer
        return (
            ours is not None
            and theirs is not None
            and ours.generation == theirs.generation
            and ours.directory == theirs.directory
        )


def check_comparable(older: Image, newer: Image) -> None:
    """Check that two file systems number their inodes alike and have their tables at the same places.

    One may have more groups: it was grown.

    Raises:
        Unreadable: they do not.
    """
    ours, theirs = older.superblock, newer.superblock
    for name in ("uuid", "blocks_per_group", "inodes_per_group", "inode_size", "first_inode", "special_inodes"):
        if getattr(ours, name) != getattr(theirs, name):
            raise Unreadable(f"the two file systems differ in their superblocks: {name.replace('_', ' ')}")
    if ours.checked_s != theirs.checked_s:
        raise Unreadable("one of the two file systems was checked, and perhaps mended, since they were one")
    for number, (group, other) in enumerate(zip(older.groups.all, newer.groups.all, strict=False)):
        if group.table != other.table:
            raise Unreadable(f"the inode table of group {number} was moved")


def changed_inodes(
    older: Image,
    newer: Image,
    differing: Iterable[tuple[int, int]],
    late: Iterable[int],
    settled_ns: int | None,
) -> dict[int, Changed]:
    """The inodes that differ, or may.

    Args:
        older: one file system.
        newer: the other; `check_comparable` holds.
        differing: offsets and lengths, ascending, of all that the two devices store at different places.
        late: the late inodes of the layers at which the two parted.
        settled_ns: a time before which the two were one; None: nothing is known, and no ctime is trusted.

    Raises:
        Unreadable: damage, or more than `MOST_INODES` of them.
    """
    search = _Search(older, newer, None if settled_ns is None else settled_ns - TWO_TICKS_NS)
    for window in _windows(_table_parts(older, newer, differing)):
        for image in (older, newer):
            image.volume.prefetch(part for part in (_clipped(image, numbers) for numbers in window) if part)
        for numbers in window:
            search.compare(numbers)
    search.add_late(late)
    return search.found


def _table_parts(older: Image, newer: Image, differing: Iterable[tuple[int, int]]) -> Iterator[range]:
    """The numbers of the inodes in what differs, in pieces; a range that crosses tables gives several."""
    larger = older if len(older.groups.all) >= len(newer.groups.all) else newer
    most = _PIECE // larger.superblock.inode_size
    for offset, length in differing:
        for numbers in larger.groups.inodes_in(offset, offset + length):
            for first in range(numbers.start, numbers.stop, most):
                yield range(first, min(first + most, numbers.stop))


def _windows(parts: Iterator[range]) -> Iterator[list[range]]:
    window: list[range] = []
    for part in parts:
        window.append(part)
        if len(window) == _TABLE_PARTS:
            yield window
            window = []
    if window:
        yield window


def _clipped(image: Image, numbers: range) -> tuple[int, int] | None:
    """Offset and length of the table's part that may be in use; all of one group."""
    if numbers.start > image.superblock.inodes:
        return None
    size, per_group = image.superblock.inode_size, image.superblock.inodes_per_group
    number, index = divmod(numbers.start - 1, per_group)
    group = image.groups.all[number]
    count = min(group.used - index, len(numbers))
    return (group.table + index * size, count * size) if count > 0 else None


class _Search:
    def __init__(self, older: Image, newer: Image, before_ns: int | None) -> None:
        self.found: dict[int, Changed] = {}
        self._older = older
        self._newer = newer
        self._before_ns = before_ns
        self._size = older.superblock.inode_size
        self._special = older.superblock.special_inodes

    def compare(self, numbers: range) -> None:
        """Compare some inodes of one group."""
        ours, theirs = _bytes(self._older, numbers), _bytes(self._newer, numbers)
        longest = max(len(ours), len(theirs))
        ours, theirs = ours.ljust(longest, b"\0"), theirs.ljust(longest, b"\0")
        differing = set(_differing(ours, theirs, self._size))
        for index in sorted(differing.union(self._unsettled(ours))):
            number, at = numbers.start + index, index * self._size
            if number in self._special:
                continue
            raw = ours[at : at + self._size]
            if index in differing:
                self._compare(number, raw, theirs[at : at + self._size])
            else:
                self._add_if_stored_apart(self._older.parse(number, raw))

    def _compare(self, number: int, raw: bytes, other_raw: bytes) -> None:
        older = self._older.parse(number, raw)
        newer = self._newer.parse(number, other_raw)
        if older != newer or (older is not None and self._is_unsettled(older)):
            self._add(number, older, newer)

    def _add(self, number: int, older: Inode | None, newer: Inode | None) -> None:
        self.found[number] = Changed(
            None if older is None else State.of(older), None if newer is None else State.of(newer)
        )
        if len(self.found) > MOST_INODES:
            raise Unreadable(f"more than {MOST_INODES} files changed")

    def _unsettled(self, raw: bytes) -> Iterable[int]:
        """Which of some inodes, by their places, have a ctime that says nothing, or one that only parsing tells of."""
        if self._before_ns is None:
            return range(len(raw) // self._size)
        return unsettled(raw, self._size, self._before_ns)

    def add_late(self, numbers: Iterable[int]) -> None:
        """Take in those of some inodes that are the same on both sides, unsettled and stored at different places."""
        wanted = [number for number in numbers if number not in self.found and number not in self._special]
        self._older.prefetch_inodes(wanted)
        self._newer.prefetch_inodes(wanted)
        smallest = min(self._older.superblock.inodes, self._newer.superblock.inodes)
        for number in wanted:
            if number <= smallest:
                older, newer = self._older.inode(number), self._newer.inode(number)
                if older == newer:
                    self._add_if_stored_apart(older)

    def _add_if_stored_apart(self, inode: Inode | None) -> None:
        if (
            inode is not None
            and inode.number not in self.found
            and self._is_unsettled(inode)
            and not _stored_alike(self._older, self._newer, inode)
        ):
            self._add(inode.number, inode, inode)

    def _is_unsettled(self, inode: Inode) -> bool:
        return self._before_ns is None or may_repeat(inode.ctime_ns, self._before_ns)


def _differing(ours: bytes, theirs: bytes, size: int) -> Iterator[int]:
    """The places of the inodes that differ in two pieces of a table that are equally long."""
    if ours == theirs:
        return
    for start in range(0, len(ours), BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, len(ours))
        if ours[start:end] != theirs[start:end]:
            yield from (at // size for at in range(start, end, size) if ours[at : at + size] != theirs[at : at + size])


def _bytes(image: Image, numbers: range) -> bytes:
    part = _clipped(image, numbers)
    return b"" if part is None else image.volume.read(*part)


def _stored_alike(older: Image, newer: Image, inode: Inode) -> bool:
    """Whether all that an inode refers to, the same on both sides, is stored at the same places."""
    blocks = [(inode.attribute_block, 1)] if inode.attribute_block else []
    if stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode):
        if _refers_to_more(inode):
            return False
        blocks += [(extent.block, extent.blocks) for extent in in_inode(older.superblock, inode)]
    for block, count in blocks:
        offset, end = block * BLOCK_SIZE, (block + count) * BLOCK_SIZE
        while offset < end:
            place, length = older.volume.stored_at(offset)
            other_place, other_length = newer.volume.stored_at(offset)
            if place != other_place:
                return False
            offset += min(length, other_length)
    return True


def _refers_to_more(inode: Inode) -> bool:
    """Whether an inode has blocks that only other blocks tell of."""
    if inode.flags & EXTENTS_FLAG:
        return bool(_DEPTH.unpack_from(inode.block)[0])
    return any(_INDIRECT.unpack_from(inode.block))
