"""The mappings of thin devices, and what two devices map differently, without a look at what they share.

Two snapshots share whole nodes of their mapping trees. A node that both trees hold, at whatever depth, stands for the
same mappings in both, so the comparison drops it unread: the work is what differs, times the depth.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import compress, count
from operator import ne
from typing import Final

import attrs

from thinpool.metadata.btree import KEY_END, BTree, Node, NodeReader, broken, integers

__all__ = ["MAPPING_SIZE", "BlockRange", "data_blocks", "mapping_difference", "mapping_tree"]

MAPPING_SIZE: Final = 8
"""Bytes of a value in the leaves of a mapping tree."""

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


def data_blocks(leaf: Node) -> Sequence[int]:
    """The data blocks that a leaf of a mapping tree maps to, in the order of its keys."""
    start, count = leaf.values_at, len(leaf.keys)
    if leaf.data[start + 7 : start + 8 * count : 8].count(0) == count:  # all below 2**32: no shift in Python
        return struct.unpack_from("<" + "3xIx" * count, leaf.data, start)
    return [value >> _TIME_BITS for value in integers(leaf)]


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
    a, b = _Side(nodes, old), _Side(nodes, new)
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


def _narrow(a: "_Side", b: "_Side") -> None:
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


def _compare_entries(a: "_Side", b: "_Side") -> Iterator[tuple[int, int, int]]:
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


@attrs.define(eq=False)
class _Level:
    """Where one side stands in one node: its entries, the one to come, and where its range ends."""

    height: int
    keys: tuple[int, ...]
    values: tuple[int, ...]
    index: int
    high: int


class _Side:
    """A position in one tree: before a node that is still whole, or before one mapping.

    Attributes:
        low: no key from here on is smaller; `KEY_END` at the end.
        height: levels of the node at the position (1 for a leaf), 0 for a mapping.
        value: the node's block number, or the mapping's value.
        keys: of the node that the position is in.
        values: of that node.
        index: the position in it.
    """

    def __init__(self, nodes: NodeReader, root: int) -> None:
        self._nodes = nodes
        self._stack: list[_Level] = []
        self.keys: tuple[int, ...] = (0,)
        self.values: tuple[int, ...] = (root,)
        self.index = 0
        self._high = KEY_END
        self.height = nodes.height(root, MAPPING_SIZE)
        self.low = 0
        self.value = root

    def advance(self, steps: int) -> None:
        """Go past so many nodes or mappings of the node that the position is in."""
        self.index += steps
        self._settle()

    def take_below(self, key: int) -> Iterator[tuple[int, int]]:
        """Go past the mappings below a key in this leaf: (virtual block, value)."""
        end = bisect_left(self.keys, key, self.index)
        yield from zip(self.keys[self.index : end], self.values[self.index : end], strict=True)
        self.advance(end - self.index)

    def descend(self, other: "_Side") -> None:
        """Step into the node, having read ahead what this side and the other will need next."""
        if not self._nodes.reader.cached(self.value):
            self._read_ahead(other)
        high = self.keys[self.index + 1] if self.index + 1 < len(self.keys) else self._high
        if self._stack:
            node = self._nodes.child(self.value, MAPPING_SIZE, self.low, high)
        else:
            node = self._nodes.node(self.value, MAPPING_SIZE)
        if node.leaf != (self.height == 1):
            raise broken(node.block, "leaves of one tree at different levels")
        self._stack.append(_Level(self.height, self.keys, self.values, self.index, self._high))
        self.keys, self.values, self.index, self._high = node.keys, integers(node), 0, high
        self.height -= 1
        self._settle()

    def _settle(self) -> None:
        while self.index == len(self.keys):
            if not self._stack:
                self.low, self.height, self.value = KEY_END, 0, 0
                return
            level = self._stack.pop()
            self.height, self.keys, self.values = level.height, level.keys, level.values
            self.index, self._high = level.index + 1, level.high
        self.low, self.value = self.keys[self.index], self.values[self.index]

    def _read_ahead(self, other: "_Side") -> None:
        reader, height = self._nodes.reader, self.height
        ours, theirs = self.upcoming(height), other.upcoming(height)
        # A node beyond the other side's present range may be shared with what comes there, so it is left for later.
        end = min(ours.high, theirs.high)
        shared = set(ours.values).intersection(theirs.values)
        ahead = (
            [block for key, block in zip(side.keys, side.values, strict=True) if key < end and block not in shared]
            for side in (ours, theirs)
        )
        half = reader.window // 2
        reader.prefetch([self.value, *(block for blocks in ahead for block in blocks[:half])])

    def upcoming(self, height: int) -> _Level:
        """The nodes of that height in the present range, from the position on; none where the tree is lower."""
        if self.height == height:
            return _Level(height, self.keys[self.index :], self.values[self.index :], 0, self._high)
        for level in self._stack:
            if level.height == height:
                after = level.index + 1
                return _Level(height, level.keys[after:], level.values[after:], 0, level.high)
        return _Level(height, (), (), 0, KEY_END)
