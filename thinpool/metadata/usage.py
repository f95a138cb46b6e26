"""How much of a pool each device occupies.

The kernel counts references. A metadata block's count says how many nodes and roots point to it, a data block's count
how many leaves do, where a leaf that several devices share counts once. So a data block belongs to one device alone
exactly where it, and every node on the way from that device's root, is referenced once; a node that is referenced more
often ends the search, with all below it shared. The work is what is not shared, not what is mapped.

That holds as long as nothing but the devices refers to the nodes. A metadata snapshot does, too: as long as the pool
changed nothing since it was reserved, it shares the root of all devices and no count below that differs; afterwards its
copy of the upper levels points to the same devices' roots, and their counts say two where one device is left. So with a
metadata snapshot that differs from the pool, and for the metadata snapshot itself (the kernel wipes its space maps),
the references are counted anew by `census`, from the trees alone.

Both ways give what `thin_ls` calls EXCLUSIVE_BLOCKS, provided that no device maps one data block twice, which the
kernel never does.
"""

from collections.abc import Iterable, Mapping
from itertools import compress
from typing import Final, NamedTuple

import attrs

from thinpool.metadata.btree import KEY_END, MAX_DEPTH, Node, NodeReader, Select, broken, child_ranges
from thinpool.metadata.mappings import MAPPING_SIZE, data_blocks, mapping_difference, mapping_tree
from thinpool.metadata.spacemap import SpaceMap

__all__ = ["DeviceUsage", "LayerUsage", "Visited", "census", "difference_blocks", "exclusive_blocks"]

_SHARED: Final = -1
_PAGE_SHIFT: Final = 8
_PAGE_MASK: Final = (1 << _PAGE_SHIFT) - 1
_PAGES_MAX: Final = 1 << 22
"""Some 600 MB; enough for 64 TiB of data in blocks of 64 KiB."""


@attrs.frozen
class DeviceUsage:
    """What one device occupies, in data blocks.

    Attributes:
        thin_id: the device.
        mapped_blocks: all that it maps, shared or not.
        exclusive_blocks: those that no other device maps, which its deletion frees.
    """

    thin_id: int
    mapped_blocks: int
    exclusive_blocks: int


@attrs.frozen
class LayerUsage:
    """What a layer occupies, in data blocks.

    Attributes:
        mapped_blocks: all that it maps, shared or not.
        exclusive_blocks: those that no other device maps, which its deletion frees.
        own_blocks: those that its parent does not map at the same place; 0 without a parent.
    """

    mapped_blocks: int
    exclusive_blocks: int
    own_blocks: int


def difference_blocks(nodes: NodeReader, child: int, parent: int) -> int:
    """How many virtual blocks a child maps to a data block that its parent does not have there.

    Args:
        nodes: where both trees are.
        child: root of the child's mapping tree.
        parent: root of the parent's mapping tree.

    Raises:
        PoolFailed: the metadata is damaged.
    """
    return sum(change.length for change in mapping_difference(nodes, parent, child) if change.new is not None)


def exclusive_blocks(nodes: NodeReader, roots: Mapping[int, int], metadata: SpaceMap, data: SpaceMap) -> dict[int, int]:
    """How many data blocks each of some devices alone maps, by the kernel's reference counts.

    They must be the counts of devices alone, see above. The trees are read together, so that what lies close on disk is
    read at once, in portions that bound memory.

    Args:
        nodes: where the trees are.
        roots: thin id to the root of that device's mapping tree, of the devices that are asked about.
        metadata: counts of metadata blocks, of the same committed state as the trees.
        data: counts of data blocks, of the same state.

    Raises:
        PoolFailed: the metadata is damaged.
    """
    totals = dict.fromkeys(roots, 0)
    visited = Visited(nodes.reader.blocks)
    alone = compress(roots.items(), metadata.once(list(roots.values())))
    pending = [_Subtree(root, thin_id, 0, KEY_END, 1) for thin_id, root in alone]
    while pending:
        window = nodes.reader.window
        portion = pending[-window:]
        del pending[-window:]
        nodes.reader.prefetch(subtree.block for subtree in portion)
        visited.mark(subtree.block for subtree in portion)
        found = [(subtree, _checked(nodes, subtree)) for subtree in portion]
        leaves = [(subtree.thin_id, data_blocks(node)) for subtree, node in found if node.leaf]
        data.prefetch(blocks for _, blocks in leaves)
        for thin_id, blocks in leaves:
            totals[thin_id] += data.count_once(blocks)
        for subtree, node in found:
            if not node.leaf:
                thin_id, level = subtree.thin_id, subtree.level + 1
                children = child_ranges(node, subtree.high, metadata.once)
                pending += [_Subtree(block, thin_id, low, high, level) for block, low, high in children]
    return totals


class Visited:
    """Which nodes were visited; one that is met again is none that is referenced once.

    Without that, devices that claim one tree each as theirs alone would have it read as often as there are devices.
    """

    def __init__(self, blocks: int) -> None:
        """None of so many blocks."""
        self._bits = bytearray((blocks >> 3) + 1)

    def mark(self, blocks: Iterable[int]) -> None:
        """Note that nodes are visited.

        Raises:
            PoolFailed: one was before.
        """
        bits = self._bits
        for block in blocks:
            at, bit = block >> 3, 1 << (block & 7)
            if at < len(bits):  # else it lies outside, which the reader tells
                if bits[at] & bit:
                    raise broken(block, "counted as referenced once, and met twice")
                bits[at] |= bit


class _Subtree(NamedTuple):
    """A node to visit: its owner, the range of its keys, its level from the root down."""

    block: int
    thin_id: int
    low: int
    high: int
    level: int


def _checked(nodes: NodeReader, subtree: _Subtree) -> Node:
    if subtree.level > MAX_DEPTH:
        raise broken(subtree.block, f"a tree of more than {MAX_DEPTH} levels")
    if subtree.level == 1:
        return nodes.node(subtree.block, MAPPING_SIZE)
    return nodes.child(subtree.block, MAPPING_SIZE, subtree.low, subtree.high)


def census(nodes: NodeReader, roots: Mapping[int, int]) -> dict[int, int]:
    """How many data blocks each device alone maps, counted from the trees of all devices.

    Reads every node of every tree, though none more than three times. Memory grows by some 100 bytes for each node and
    each 256 data blocks that are in use.

    Args:
        nodes: where the trees are.
        roots: thin id to the root of that device's mapping tree, of all devices of the pool.

    Raises:
        PoolFailed: the metadata is damaged.
    """
    owners: dict[int, int] = {}
    references = _References()
    for thin_id, root in roots.items():
        for leaf in mapping_tree(nodes, root).leaves(select=_claims(owners, thin_id)):
            references.add(leaf)  # one that is met twice is shared, and so are its blocks

    def own(thin_id: int) -> Select:
        return lambda blocks: [owners[block] == thin_id for block in blocks]

    return {
        thin_id: sum(references.once(leaf) for leaf in mapping_tree(nodes, root).leaves(select=own(thin_id)))
        for thin_id, root in roots.items()
    }


def _claims(owners: dict[int, int], thin_id: int) -> Select:
    """Note whose each node is, and leave out those known to be shared, with all below them."""

    def claim(block: int) -> bool:
        owner = owners.setdefault(block, thin_id)
        if owner not in (thin_id, _SHARED):
            owners[block] = _SHARED
        return owner != _SHARED

    return lambda blocks: [claim(block) for block in blocks]


class _References:
    """Which data blocks leaves refer to, and which of them more than once, as bit sets in pages."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._again: dict[int, int] = {}

    def add(self, leaf: Node) -> None:
        seen, again = self._seen, self._again
        for block in data_blocks(leaf):
            page, bit = block >> _PAGE_SHIFT, 1 << (block & _PAGE_MASK)
            bits = seen.get(page, 0)
            if bits & bit:
                again[page] = again.get(page, 0) | bit
            else:
                seen[page] = bits | bit
        if len(seen) > _PAGES_MAX:
            raise broken(leaf.block, f"mappings scattered over more than {_PAGES_MAX << _PAGE_SHIFT} data blocks")

    def once(self, leaf: Node) -> int:
        again = self._again
        return sum(not again.get(block >> _PAGE_SHIFT, 0) >> (block & _PAGE_MASK) & 1 for block in data_blocks(leaf))
