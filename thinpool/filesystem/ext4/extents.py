"""Where the blocks of a file are: trees of extents, and the block maps that came before them.

Layout and checks of extents: the kernel's fs/ext4/ext4_extents.h, `__ext4_ext_check` and `ext4_extent_block_csum` of
fs/ext4/extents.c; of block maps: fs/ext4/indirect.c.
"""

import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.inode import EXTENTS_FLAG, Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock
from thinpool.filesystem.ext4.volume import Volume

_MAGIC = 0xF30A
_DEEPEST = 5  # EXT4_MAX_EXTENT_DEPTH
_HEADER = struct.Struct("<HHHH4x")
_LEAF = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIH2x")
_MOST_IN_INODE = 4
_MOST_IN_BLOCK = 340
_LONGEST = 1 << 15  # EXT_INIT_MAX_LEN; what is longer by up to that is unwritten
_LAST = 1 << 32
_POINTERS = struct.Struct("<1024I")
_ROOT_POINTERS = struct.Struct("<15I")
_DIRECT = 12


class Extent(NamedTuple):
    """Blocks that lie together in a file and on the volume.

    Attributes:
        start: the first block's place in the file.
        block: its number on the volume.
        blocks: how many they are.
        written: False for blocks that are there but read as zeros.
    """

    start: int
    block: int
    blocks: int
    written: bool


def read(volume: Volume, superblock: Superblock, inode: Inode) -> Iterator[Extent]:
    """The extents of a file in ascending order; neighbours need not be joined. Memory is bounded.

    Raises:
        Unreadable: they are damaged; or the inode is not of a kind that has any.
    """
    if not (stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode) or stat.S_ISLNK(inode.mode)):
        raise Unreadable(f"inode {inode.number} is no file that has blocks")
    kind = _Tree if inode.flags & EXTENTS_FLAG else _Map
    total = 0
    for extent in kind(volume, superblock, inode).run():
        total += extent.blocks
        if not 0 < extent.block <= superblock.blocks - extent.blocks or total > superblock.blocks:
            raise _damaged(inode, f"an extent of {extent.blocks} blocks from {extent.block} on")
        yield extent


def in_inode(superblock: Superblock, inode: Inode) -> Iterator[Extent]:
    """The extents that the inode itself tells, without reading anything; blocks of the tree where it has one.

    What makes no sense is left out.
    """
    last = superblock.blocks
    if not inode.flags & EXTENTS_FLAG:
        found = [Extent(0, block, 1, written=True) for block in _ROOT_POINTERS.unpack(inode.block) if block]
    else:
        magic, entries, most, depth = _HEADER.unpack_from(inode.block)
        if magic != _MAGIC or not entries <= most <= _MOST_IN_INODE:
            return
        if depth:
            found = [
                Extent(start, low | high << 32, 1, written=True)
                for start, low, high in _INDEX.iter_unpack(inode.block[12 : 12 + 12 * entries])
            ]
        else:
            found = list(_leaves(inode.block[12 : 12 + 12 * entries]))
    for extent in found:
        if extent.written and 0 < extent.block <= last - extent.blocks:
            yield extent


def target(volume: Volume, superblock: Superblock, inode: Inode) -> bytes:
    """The target of a symbolic link: in the inode, or in a block of its own (`ext4_inode_is_fast_symlink`).

    Raises:
        Unreadable: it is damaged, or no symbolic link.
    """
    if not stat.S_ISLNK(inode.mode):
        raise Unreadable(f"inode {inode.number} is no symbolic link")
    own_sectors = inode.sectors - (BLOCK_SIZE // 512 if inode.attribute_block else 0)
    if own_sectors == 0:
        text = inode.block[: inode.size] if inode.size < len(inode.block) else b""
    else:
        first = next(read(volume, superblock, inode), None)
        if first is None or first.start or not first.written or inode.size >= BLOCK_SIZE:
            raise _damaged(inode, "its target is nowhere")
        text = volume.read(first.block * BLOCK_SIZE, inode.size)
    if not text or len(text) != inode.size or b"\0" in text:
        raise _damaged(inode, f"a link to a name of {inode.size} bytes")
    return text


def _leaves(entries: bytes | memoryview) -> Iterator[Extent]:
    for start, length, high, low in _LEAF.iter_unpack(entries):
        written = length <= _LONGEST
        yield Extent(start, low | high << 32, length if written else length - _LONGEST, written)


def _damaged(inode: Inode, reason: str) -> Unreadable:
    return Unreadable(f"inode {inode.number} is damaged: {reason}")


class _Tree:
    """A tree of extents."""

    def __init__(self, volume: Volume, superblock: Superblock, inode: Inode) -> None:
        self._volume = volume
        self._superblock = superblock
        self._inode = inode
        self._checksums = superblock.checksums
        self._seed = 0 if self._checksums is None else self._checksums.of_inode(inode.number, inode.generation)

    def run(self) -> Iterator[Extent]:
        root = memoryview(self._inode.block)
        depth = _HEADER.unpack_from(root)[3]
        if depth > _DEEPEST:
            raise _damaged(self._inode, f"a tree of extents {depth} levels deep")
        yield from self._node(root, _MOST_IN_INODE, depth, 0, _LAST)

    def _node(self, node: memoryview, most_here: int, depth: int, low: int, high: int) -> Iterator[Extent]:
        """The extents below a node, all of which lie in the file's blocks from `low` to `high`."""
        magic, count, most, found_depth = _HEADER.unpack_from(node)
        if magic != _MAGIC or found_depth != depth or not count <= most <= most_here or (depth and not count):
            raise _damaged(self._inode, "the header of a node in its tree of extents")
        entries = node[12 : 12 + 12 * count]
        if depth == 0:
            yield from self._checked(list(_leaves(entries)), low, high)
            return
        children = [(start, first | second << 32) for start, first, second in _INDEX.iter_unpack(entries)]
        starts = [start for start, _ in children]
        ends = [*starts[1:], high]
        if starts[0] < low or any(start >= end for start, end in zip(starts, ends, strict=True)):
            raise _damaged(self._inode, "a node's places in its tree of extents are out of order")
        for (start, block), end in zip(children, ends, strict=True):
            yield from self._node(self._read(block), _MOST_IN_BLOCK, depth - 1, start, end)

    def _checked(self, leaf: list[Extent], low: int, high: int) -> list[Extent]:
        """The extents of a leaf, if all of them are in order: what hides the others would go unseen else."""
        for extent in leaf:
            if not low <= extent.start <= high - extent.blocks or not extent.blocks:
                raise _damaged(self._inode, f"an extent at {extent.start} outside of {low} to {high}")
            low = extent.start + extent.blocks
        return leaf

    def _read(self, block: int) -> memoryview:
        if not 0 < block < self._superblock.blocks:
            raise _damaged(self._inode, f"a node of its tree of extents is at block {block}")
        data = memoryview(self._volume.read(block * BLOCK_SIZE, BLOCK_SIZE))
        _, count, most, _ = _HEADER.unpack_from(data)
        if not 0 < count <= most <= _MOST_IN_BLOCK:
            raise _damaged(self._inode, f"a node of its tree of extents, block {block}, has {count} of {most} entries")
        if self._checksums is not None:
            end = 12 + 12 * most
            (found,) = struct.unpack_from("<I", data, end)
            if found != self._checksums.over(self._seed, data[:end]):
                raise _damaged(self._inode, f"wrong checksum of a node of its tree of extents, block {block}")
        return data


class _Map:
    """A map of blocks: twelve in the inode, then one block of pointers, one of pointers to such, and one above."""

    def __init__(self, volume: Volume, superblock: Superblock, inode: Inode) -> None:
        self._volume = volume
        self._inode = inode
        self._blocks = superblock.blocks
        self._read = 0

    def run(self) -> Iterator[Extent]:
        pointers = _ROOT_POINTERS.unpack(self._inode.block)
        start = 0
        run = Extent(0, 0, 0, written=True)
        for level, pointer in [(0, pointer) for pointer in pointers[:_DIRECT]] + list(enumerate(pointers[_DIRECT:], 1)):
            for place, block in self._below(pointer, level, start):
                follows = block == run.block + run.blocks and place == run.start + run.blocks
                if follows and 0 < run.blocks < _LONGEST:
                    run = Extent(run.start, run.block, run.blocks + 1, written=True)
                    continue
                if run.blocks:
                    yield run
                run = Extent(place, block, 1, written=True)
            start += 1024**level
        if run.blocks:
            yield run

    def _below(self, pointer: int, level: int, start: int) -> Iterator[tuple[int, int]]:
        if not pointer:
            return
        if level == 0:
            yield start, pointer
            return
        self._read += 1
        if pointer >= self._blocks or self._read > self._blocks:
            raise _damaged(self._inode, f"a block of its map is at block {pointer}")
        for index, below in enumerate(_POINTERS.unpack(self._volume.read(pointer * BLOCK_SIZE, BLOCK_SIZE))):
            if below:
                yield from self._below(below, level - 1, start + index * 1024 ** (level - 1))
