"""B-trees of thin-pool metadata: nodes checked in every field, look-up, and iteration in key order.

Layout: `struct btree_node` of the kernel's drivers/md/persistent-data/dm-btree-internal.h; what is checked is more than
`node_check` of dm-btree-spine.c does, since here the disk is not trusted: keys ascend, a child keeps to the range that
its parent gives it, all leaves lie at one depth. As no node but a root may be empty, ranges of siblings are disjoint
and depth is limited, a damaged tree ends a walk with an error after at most `MAX_DEPTH` reads of each block.
"""

import struct
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import compress
from typing import Generic, TypeVar

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.reader import BLOCK_SIZE, BlockReader
from thinpool.metadata.superblock import NODE_SALT, checksum

__all__ = [
    "KEY_END",
    "MAX_DEPTH",
    "BTree",
    "Node",
    "NodeReader",
    "Select",
    "broken",
    "check_range",
    "child_ranges",
    "integers",
    "parse_node",
    "raw_values",
]

MAX_DEPTH = 16
"""Deepest tree that is read; nodes at least a third full hold all mappings of 16 GiB of metadata in 4 levels."""

KEY_END = 1 << 64
"""Above every key."""

_HEADER = struct.Struct("<IIQIIII")
_INTERNAL = 1
_LEAF = 2
_POINTER_SIZE = 8
_PARSED_NODES = 256

V = TypeVar("V")

Select = Callable[[Sequence[int]], Sequence[int]]
"""Given block numbers of nodes, 1 for each that is to be visited, 0 where it and all below it is to be left out."""


@attrs.frozen(eq=False)
class Node:
    """One checked node.

    Attributes:
        block: where it was read.
        leaf: whether the values are those of the tree, and not numbers of child nodes.
        keys: strictly ascending.
        value_size: bytes of a value.
        data: the whole block.
        values_at: offset of the first value in `data`.
    """

    block: int
    leaf: bool
    keys: tuple[int, ...]
    value_size: int
    data: bytes
    values_at: int


@lru_cache(maxsize=BLOCK_SIZE // 8)
def _longs(count: int) -> struct.Struct:
    """So many 64-bit numbers; kept, since `struct` forgets all that it has compiled with the hundredth format."""
    return struct.Struct(f"<{count}Q")


def integers(node: Node) -> tuple[int, ...]:
    """The values of a node whose values are 64-bit numbers."""
    return _longs(len(node.keys)).unpack_from(node.data, node.values_at)


def raw_values(node: Node) -> Sequence[bytes]:
    """The values of a node as they are on disk."""
    size, start = node.value_size, node.values_at
    return [node.data[at : at + size] for at in range(start, start + size * len(node.keys), size)]


def broken(block: int, reason: str) -> PoolFailed:
    """The error for metadata that contradicts itself."""
    return PoolFailed(
        f"metadata block {block} is damaged: {reason}",
        hint="thin_check on the metadata, with the pool inactive, says more; thin_repair may mend it",
    )


class NodeReader:
    """Nodes by block number, each checked when it is parsed; a few parsed ones are kept."""

    def __init__(self, reader: BlockReader) -> None:
        """Read nodes through the block reader, which stays the caller's."""
        self.reader = reader
        self._parsed: OrderedDict[tuple[int, int], Node] = OrderedDict()

    def node(self, block: int, value_size: int) -> Node:
        """Read and check a node of a tree whose leaves hold values of that size in bytes.

        Raises:
            PoolFailed: it cannot be read, or is damaged.
        """
        key = (block, value_size)
        node = self._parsed.get(key)
        if node is None:
            node = parse_node(self.reader.read(block), block, value_size)
            self._parsed[key] = node
            if len(self._parsed) > _PARSED_NODES:
                self._parsed.popitem(last=False)
        return node

    def child(self, block: int, value_size: int, low: int, high: int) -> Node:
        """As `node`, for a node that is no root: not empty, and with keys from `low` to below `high`."""
        node = self.node(block, value_size)
        check_range(block, node.keys, low, high)
        return node

    def heights(self, roots: Sequence[int], value_size: int) -> Sequence[int]:
        """How many levels each of some trees has, 1 where its root is a leaf.

        Raises:
            PoolFailed: more than `MAX_DEPTH`, or a node on the way is damaged.
        """
        self.reader.prefetch(roots)
        nodes = [self.node(root, value_size) for root in roots]
        heights = [1] * len(roots)
        while not all(node.leaf for node in nodes):
            self.reader.prefetch(integers(node)[0] for node in nodes if not node.leaf)
            for index, node in enumerate(nodes):
                if node.leaf:
                    continue
                heights[index] += 1
                if heights[index] > MAX_DEPTH:
                    raise broken(roots[index], f"a tree of more than {MAX_DEPTH} levels")
                keys = node.keys
                high = keys[1] if len(keys) > 1 else KEY_END
                nodes[index] = self.child(integers(node)[0], value_size, keys[0], high)
        return heights


def check_range(block: int, keys: Sequence[int], low: int, high: int) -> None:
    """See to it that a node below a root has keys, and all of them in the range that its parent gives it.

    Raises:
        PoolFailed: it has not.
    """
    if not keys:
        raise broken(block, "an empty node below a root")
    if keys[0] < low or keys[-1] >= high:
        raise broken(block, f"keys {keys[0]} to {keys[-1]} outside the parent's range from {low} to below {high}")


def parse_node(data: bytes, block: int, value_size: int) -> Node:
    """Check and parse one block that should hold a node.

    Args:
        data: the 4096 bytes of the block.
        block: the number it was read from, which it must carry.
        value_size: bytes of a value in the leaves of the tree.

    Raises:
        PoolFailed: naming the block and what is wrong with it.
    """
    csum, flags, number, count, limit, size, _padding = _HEADER.unpack_from(data)
    if csum != checksum(data, NODE_SALT):
        raise broken(block, "not a B-tree node, or its checksum is wrong")
    if number != block:
        raise broken(block, f"a node that claims to be block {number}")
    if flags not in (_INTERNAL, _LEAF):
        raise broken(block, f"node flags {flags:#x}, neither internal nor leaf")
    expected = value_size if flags == _LEAF else _POINTER_SIZE
    if size != expected:
        raise broken(block, f"values of {size} bytes where the tree has {expected}")
    if _HEADER.size + limit * (8 + size) > BLOCK_SIZE:
        raise broken(block, f"room for {limit} entries of {8 + size} bytes, more than a block holds")
    if count > limit:
        raise broken(block, f"{count} entries where there is room for {limit}")
    if flags == _INTERNAL and not count:
        raise broken(block, "an internal node without children")
    keys: tuple[int, ...] = _longs(count).unpack_from(data, _HEADER.size)
    if len(set(keys)) != count or list(keys) != sorted(keys):
        raise broken(block, "keys out of order")
    return Node(block, flags == _LEAF, keys, size, data, _HEADER.size + 8 * limit)


def child_ranges(node: Node, high: int, select: Select | None = None) -> Sequence[tuple[int, int, int]]:
    """The children of an internal node as (block, lowest key, end of keys).

    Args:
        node: the internal node.
        high: no key in it is as large.
        select: which children to give; None for all.
    """
    keys, blocks = node.keys, integers(node)
    ranges = zip(blocks, keys, (*keys[1:], high), strict=True)
    return list(ranges if select is None else compress(ranges, select(blocks)))


@attrs.frozen
class BTree(Generic[V]):
    """One tree: 64-bit keys to values.

    Attributes:
        nodes: where the nodes come from.
        root: block number of the root.
        value_size: bytes of a value in the leaves.
        unpack: turns a leaf into its values.
    """

    nodes: NodeReader
    root: int
    value_size: int
    unpack: Callable[[Node], Sequence[V]]

    def lookup(self, key: int) -> V | None:
        """The value of a key, or None; one read a level at the most.

        Raises:
            PoolFailed: a node on the way is damaged.
        """
        node = self.nodes.node(self.root, self.value_size)
        low, high = 0, KEY_END
        for _ in range(MAX_DEPTH):
            index = bisect_right(node.keys, key) - 1
            if index < 0:
                return None
            if node.leaf:
                return self.unpack(node)[index] if node.keys[index] == key else None
            low = node.keys[index]
            high = node.keys[index + 1] if index + 1 < len(node.keys) else high
            node = self.nodes.child(integers(node)[index], self.value_size, low, high)
        raise broken(self.root, f"a tree of more than {MAX_DEPTH} levels")

    def lookup_each(self, keys: Iterable[int]) -> dict[int, V]:
        """The values of several keys, without those that are missing; no node is parsed twice, one level at a time.

        Raises:
            PoolFailed: a node on the way is damaged.
        """
        found: dict[int, V] = {}
        pending = [(self.root, 0, KEY_END, sorted(set(keys)))]
        for level in range(MAX_DEPTH):
            self.nodes.reader.prefetch(block for block, *_ in pending)
            below = []
            for block, low, high, wanted in pending:
                node = self.nodes.node(block, self.value_size)
                if level:
                    check_range(block, node.keys, low, high)
                if node.leaf:
                    held = dict(zip(node.keys, self.unpack(node), strict=True))
                    found.update((key, held[key]) for key in wanted if key in held)
                    continue
                for child, start, end in child_ranges(node, high):
                    part = wanted[bisect_left(wanted, start) : bisect_left(wanted, end)]
                    if part:
                        below.append((child, start, end, part))
            if not below:
                return found
            pending = below
        raise broken(pending[0][0], f"a tree of more than {MAX_DEPTH} levels")

    def items(self, start: int = 0) -> Iterator[tuple[int, V]]:
        """Keys from `start` on, ascending, with their values; memory is bounded by one path of nodes.

        Raises:
            PoolFailed: at the first damaged node.
        """
        for leaf in self.leaves(start):
            first = bisect_right(leaf.keys, start - 1)
            yield from zip(leaf.keys[first:], self.unpack(leaf)[first:], strict=True)

    def leaves(self, start: int = 0, select: Select | None = None) -> Iterator[Node]:
        """Leaves in key order, read ahead.

        Args:
            start: leave out those whose keys all lie below.
            select: asked for the root, and for the children of each node that is read, before they are read.

        Raises:
            PoolFailed: at the first damaged node.
        """
        if select is None or all(select((self.root,))):
            yield from _Walk(self.nodes, self.value_size, select).leaves(self.root, start)


@attrs.define(eq=False)
class _Level:
    """The children of one node that a walk is to visit: (block, low, high), and how many it has visited."""

    children: Sequence[tuple[int, int, int]]
    visited: int = 0


class _Walk:
    """A walk over the leaves of one tree, with a stack of its own, so that no depth can exhaust Python's."""

    def __init__(self, nodes: NodeReader, value_size: int, select: Select | None) -> None:
        self._nodes = nodes
        self._value_size = value_size
        self._select = select
        self._leaf_depth = 0

    def leaves(self, root: int, start: int) -> Iterator[Node]:
        stack: list[_Level] = []
        node: Node | None = self._nodes.node(root, self._value_size)
        high = KEY_END
        while True:
            if node is None:
                if not stack:
                    return
                node, high = self._next(stack)
            elif node.leaf:
                self._check_depth(node, len(stack))
                if node.keys and node.keys[-1] >= start:
                    yield node
                node = None
            else:
                if len(stack) + 1 >= MAX_DEPTH:
                    raise broken(node.block, f"a tree of more than {MAX_DEPTH} levels")
                stack.append(_Level(self._children(node, high, start)))
                node = None

    def _next(self, stack: list[_Level]) -> tuple[Node | None, int]:
        level = stack[-1]
        if level.visited == len(level.children):
            stack.pop()
            return None, 0
        window = self._nodes.reader.window
        if level.visited % window == 0:
            ahead = level.children[level.visited : level.visited + window]
            self._nodes.reader.prefetch(block for block, _, _ in ahead)
        block, low, high = level.children[level.visited]
        level.visited += 1
        return self._nodes.child(block, self._value_size, low, high), high

    def _children(self, node: Node, high: int, start: int) -> Sequence[tuple[int, int, int]]:
        children = child_ranges(node, high, self._select)
        return [child for child in children if child[2] > start] if start else children

    def _check_depth(self, leaf: Node, depth: int) -> None:
        if self._leaf_depth not in (0, depth + 1):
            raise broken(leaf.block, f"a leaf at level {depth + 1} of a tree that has others at {self._leaf_depth}")
        self._leaf_depth = depth + 1
