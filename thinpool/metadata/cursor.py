"""Positions in two trees that are compared, and reading ahead for both."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.btree import KEY_END, Node, NodeReader, broken, integers

__all__ = ["Cursor"]

_PARENTS: Final = 64
"""How many nodes of one level are looked into for the sake of reading ahead below them."""


@attrs.define(eq=False)
class _Level:
    """Where a cursor stands in one node: its entries, the one to come, and where its range ends."""

    height: int
    keys: tuple[int, ...]
    values: tuple[int, ...]
    index: int
    high: int


@attrs.define(eq=False)
class _Ahead:
    """The nodes of one height that a cursor comes to, with their lowest keys; all of them below the key `end`."""

    keys: list[int]
    blocks: list[int]
    end: int


class Cursor:
    """A position in one tree of 64-bit values: before a node that is still whole, or before one entry of a leaf.

    Attributes:
        low: no key from here on is smaller; `KEY_END` at the end.
        height: levels of the node at the position (1 for a leaf), 0 for an entry.
        value: the node's block number, or the entry's value.
        keys: of the node that the position is in.
        values: of that node.
        index: the position in it.
    """

    def __init__(self, nodes: NodeReader, root: int, height: int, value_size: int) -> None:
        """Stand before the root.

        Args:
            nodes: where the nodes come from.
            root: block number of the root.
            height: levels of the tree, which all its leaves must agree with.
            value_size: bytes of a value, 8.
        """
        self._nodes = nodes
        self._value_size = value_size
        self._stack: list[_Level] = []
        self.keys: tuple[int, ...] = (0,)
        self.values: tuple[int, ...] = (root,)
        self.index = 0
        self._high = KEY_END
        self.height = self.tree_height = height
        self.low = 0
        self.value = root

    def advance(self, steps: int) -> None:
        """Go past so many nodes or entries of the node that the position is in."""
        self.index += steps
        self._settle()

    def take_below(self, key: int) -> Iterator[tuple[int, int]]:
        """Go past the entries below a key in this leaf, and give them."""
        end = bisect_left(self.keys, key, self.index)
        yield from zip(self.keys[self.index : end], self.values[self.index : end], strict=True)
        self.advance(end - self.index)

    def descend(self, other: "Cursor") -> None:
        """Step into the node, having read ahead what this cursor and the other will need next.

        Raises:
            PoolFailed: the node is damaged.
        """
        if not self._nodes.reader.cached(self.value):
            self._read_ahead(other)
        high = self.keys[self.index + 1] if self.index + 1 < len(self.keys) else self._high
        if self._stack:
            node = self._nodes.child(self.value, self._value_size, self.low, high)
        else:
            node = self._nodes.node(self.value, self._value_size)
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

    def _read_ahead(self, other: "Cursor") -> None:
        reader = self._nodes.reader
        ours, theirs = _upcoming(self._nodes, (self, other), self.height, self._value_size)
        # What lies beyond the end of one side may be shared with what comes there: it is left for later.
        end = min(ours.end, theirs.end)
        shared = set(ours.blocks).intersection(theirs.blocks)
        half = reader.window // 2
        wanted = [self.value]
        for side in (ours, theirs):
            blocks = side.blocks[: bisect_left(side.keys, end)]
            wanted += [block for block in blocks if block not in shared and not reader.cached(block)][:half]
        reader.prefetch(wanted)

    def present(self, height: int) -> _Ahead:
        """The nodes of that height in the node that the position, or what is above it, is in."""
        if self.height == height:
            return _Ahead(list(self.keys[self.index :]), list(self.values[self.index :]), self._high)
        for level in self._stack:
            if level.height == height:
                after = level.index + 1
                return _Ahead(list(level.keys[after:]), list(level.values[after:]), level.high)
        return _Ahead([], [], self.low if height < self.height else KEY_END)


def _upcoming(nodes: NodeReader, cursors: Sequence[Cursor], height: int, value_size: int) -> Sequence[_Ahead]:
    """The nodes of one height that each of two cursors comes to, as far as nodes above are at hand that tell."""
    found = [cursor.present(height) for cursor in cursors]
    if height < min(cursor.tree_height for cursor in cursors):
        above = _upcoming(nodes, cursors, height + 1, value_size)
        shared = set(above[0].blocks).intersection(above[1].blocks)
        for ahead, parents in zip(found, above, strict=True):
            _extend(nodes, ahead, parents, shared, value_size)
    return found


def _extend(nodes: NodeReader, ahead: _Ahead, parents: _Ahead, shared: set[int], value_size: int) -> None:
    """Go on with the children of further parents, as long as those are at hand; shared ones are never entered."""
    looked_into = 0
    for key, block in zip(parents.keys, parents.blocks, strict=True):
        if block in shared:
            continue
        node = None
        if key < parents.end and looked_into < _PARENTS and nodes.reader.cached(block):
            node = _at_hand(nodes, block, value_size)
        if node is None:
            ahead.end = key
            return
        looked_into += 1
        ahead.keys += node.keys
        ahead.blocks += integers(node)
    ahead.end = parents.end


def _at_hand(nodes: NodeReader, block: int, value_size: int) -> Node | None:
    """An internal node; None where it is damaged, which is for the walk to complain about when it comes there."""
    try:
        node = nodes.node(block, value_size)
    except PoolFailed:
        return None
    return None if node.leaf else node
