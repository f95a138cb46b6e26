"""The mappings of thin devices, and what two devices map differently, without a look at what they share.

Two snapshots share whole nodes of their mapping trees. A node that both trees hold, at whatever depth, stands for the
same mappings in both, so the comparison drops it unread: the work is what differs, times the depth.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import compress, count
from operator import ne
from typing import Final, NamedTuple

import attrs

from thinpool.metadata.btree import KEY_END, MAX_DEPTH, BTree, Node, NodeReader, broken, integers
from thinpool.metadata.cursor import Cursor
from thinpool.metadata.reader import BLOCK_SIZE

__all__ = ["MAPPING_SIZE", "BlockRange", "data_blocks", "look_up", "mapping_difference", "mapping_tree"]

MAPPING_SIZE: Final = 8
"""Bytes of a value in the leaves of a mapping tree."""

_VALUE = struct.Struct("<Q")

_FEW: Final = 16
"""Mappings are unpacked by multiples of so many, so that few formats have to be compiled."""

_TIME_BITS: Final = 24
"""A mapping is the data block's number above 24 bits of time (`pack_block_time` of the kernel's dm-thin-metadata.c)."""


@attrs.frozen
class BlockRange:
    """Virtual blocks in a row that two devices map differently, in the same way.

    Attributes:
        start: the first virtual block.
        length: how many blocks.
        old: data block that the older device maps the first one to, the following ones ascending; None: unmapped.
        new: the same for the newer device. At least one of the two is not None.
    """

    start: int
    length: int
    old: int | None
    new: int | None


def mapping_tree(nodes: NodeReader, root: int) -> BTree[int]:
    """The tree of one device: virtual block to data block."""
    return BTree(nodes, root, MAPPING_SIZE, data_blocks)


def look_up(nodes: NodeReader, requests: Sequence[tuple[int, Iterable[int]]]) -> Sequence[Mapping[int, int]]:
    """Where devices map some virtual blocks to, without those that they do not map.

    All trees are read together, level by level, so that what lies on one level takes the time of one read.

    Args:
        nodes: where the trees are.
        requests: the root of a device's mapping tree, and virtual blocks.

    Returns:
        For each request, virtual block to data block.

    Raises:
        PoolFailed: a node on the way is damaged.
    """
    found: list[dict[int, int]] = [{} for _ in requests]
    pending = [_Below(index, root, 0, KEY_END, sorted(keys)) for index, (root, keys) in enumerate(requests)]
    for level in range(MAX_DEPTH):
        nodes.reader.prefetch(part.block for part in pending)
        below: list[_Below] = []
        for part in pending:
            if level:
                node = nodes.child(part.block, MAPPING_SIZE, part.low, part.high)
            else:
                node = nodes.node(part.block, MAPPING_SIZE)
            if node.leaf:
                found[part.request].update(_entries(node, part.keys))
            else:
                below += _among_children(node, part)
        if not below:
            return found
        pending = below
    raise broken(pending[0].block, f"a tree of more than {MAX_DEPTH} levels")


class _Below(NamedTuple):
    """A node to look into: for which request, its number, the range of its keys, and those that are looked up."""

    request: int
    block: int
    low: int
    high: int
    keys: list[int]


def _entries(leaf: Node, keys: Iterable[int]) -> Iterator[tuple[int, int]]:
    for key in keys:
        index = bisect_left(leaf.keys, key)
        if index < len(leaf.keys) and leaf.keys[index] == key:
            (value,) = _VALUE.unpack_from(leaf.data, leaf.values_at + MAPPING_SIZE * index)
            yield key, value >> _TIME_BITS


def _among_children(node: Node, part: _Below) -> Iterator[_Below]:
    """The children that the keys lead to."""
    keys = part.keys
    children, start = integers(node), bisect_left(keys, node.keys[0])
    while start < len(keys):
        index = bisect_right(node.keys, keys[start]) - 1
        high = node.keys[index + 1] if index + 1 < len(node.keys) else part.high
        end = bisect_left(keys, high, start)
        yield _Below(part.request, children[index], node.keys[index], high, keys[start:end])
        start = end


def data_blocks(leaf: Node) -> Sequence[int]:
    """The data blocks that a leaf of a mapping tree maps to, in the order of its keys."""
    start, count = leaf.values_at, len(leaf.keys)
    room = count + -count % _FEW
    if start + 8 * room <= BLOCK_SIZE and leaf.data[start + 7 : start + 8 * count : 8].count(0) == count:
        return _low_parts(room).unpack_from(leaf.data, start)[:count]  # all below 2**32: no shift in Python
    return [value >> _TIME_BITS for value in integers(leaf)]


@lru_cache(maxsize=BLOCK_SIZE // 8 // _FEW + 1)
def _low_parts(count: int) -> struct.Struct:
    """The data blocks of so many mappings; kept, as it is long to compile, and in few sizes."""
    return struct.Struct("<" + "3xIx" * count)


def mapping_difference(nodes: NodeReader, old: int, new: int) -> Iterator[BlockRange]:
    """What two devices map differently, ascending by virtual block, as it is found.

    Mappings to the same data block are equal whatever the time stamped on them. Neighbouring blocks come as one range
    where both sides' data blocks run on. Memory is bounded by one path of nodes a side and the reader's cache.

    Args:
        nodes: where both trees are.
        old: root of the older device's mapping tree.
        new: root of the newer device's mapping tree.

    Raises:
        PoolFailed: at the first damaged node that had to be read.
    """
    start, length = 0, 0
    old_at: int | None = None
    new_at: int | None = None
    for block, before, after in _differing(nodes, old, new):
        if (
            length
            and block == start + length
            and before == (None if old_at is None else old_at + length)
            and after == (None if new_at is None else new_at + length)
        ):
            length += 1
            continue
        if length:
            yield BlockRange(start, length, old_at, new_at)
        start, length, old_at, new_at = block, 1, before, after
    if length:
        yield BlockRange(start, length, old_at, new_at)


def _differing(nodes: NodeReader, old: int, new: int) -> Iterator[tuple[int, int | None, int | None]]:
    """Single virtual blocks with their two data blocks."""
    if old == new:
        return
    old_height, new_height = nodes.heights((old, new), MAPPING_SIZE)
    a = Cursor(nodes, old, old_height, MAPPING_SIZE)
    b = Cursor(nodes, new, new_height, MAPPING_SIZE)
    while True:
        if a.low < b.low:
            if a.height:
                a.descend(b)
            else:
                for key, value in a.take_below(b.low):
                    yield key, value >> _TIME_BITS, None
        elif b.low < a.low:
            if b.height:
                b.descend(a)
            else:
                for key, value in b.take_below(a.low):
                    yield key, None, value >> _TIME_BITS
        elif a.low == KEY_END:
            return
        elif a.height or b.height:
            _narrow(a, b)
        else:
            yield from _compare_entries(a, b)


def _narrow(a: Cursor, b: Cursor) -> None:
    """Make a step where both sides stand at the same key, one at least before a node."""
    if a.height == b.height and a.value == b.value:
        ours, theirs = a.values[a.index :], b.values[b.index :]
        shared = next(compress(count(), map(ne, ours, theirs)), min(len(ours), len(theirs)))
        a.advance(shared)
        b.advance(shared)
        return
    height = max(a.height, b.height)
    for side, other in ((a, b), (b, a)):
        if side.height == height:
            side.descend(other)


def _compare_entries(a: Cursor, b: Cursor) -> Iterator[tuple[int, int, int]]:
    """Compare mappings of the same virtual blocks, as far as the two leaves hold the same ones."""
    keys, other_keys = a.keys[a.index :], b.keys[b.index :]
    same = len(keys)
    if keys != other_keys:
        same = next(compress(count(), map(ne, keys, other_keys)), min(len(keys), len(other_keys)))
    ours, theirs = a.values[a.index : a.index + same], b.values[b.index : b.index + same]
    for key, before, after in compress(zip(keys, ours, theirs, strict=False), map(ne, ours, theirs)):
        if before >> _TIME_BITS != after >> _TIME_BITS:
            yield key, before >> _TIME_BITS, after >> _TIME_BITS
    a.advance(same)
    b.advance(same)
