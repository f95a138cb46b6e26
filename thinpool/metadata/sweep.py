"""What many layers occupy, alone and beyond their parents, in one pass over the nodes that they do not share.

The trees of some layers are gone down together, level by level, each beside its parent's. On every level what both
trees have is dropped, with all below it: a node stands for the same mappings wherever it is met. What remains are the
nodes in which a layer and its parent differ, and those of them that belong to the layer alone (`usage` tells how the
kernel's counts say so). A node that is needed twice, as one layer's own and as the next one's parent's, is read and
parsed once where the layers lie close, as those of one chain do: they are taken in the order of their roots on disk.

That is for layers that differ little. One that differs in more nodes than the limits allow, or whose tree has another
height than its parent's, is left to `exclusive_blocks` and `difference_blocks`, which take any.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import ne
from typing import Final, NamedTuple

import attrs

from thinpool.metadata.btree import KEY_END, MAX_DEPTH, NodeReader, broken, check_range, integers, parse_node
from thinpool.metadata.mappings import MAPPING_SIZE, data_blocks
from thinpool.metadata.spacemap import SpaceMap
from thinpool.metadata.usage import Visited, difference_blocks, exclusive_blocks

__all__ = ["Limits", "Occupied", "Question", "occupied"]

_KEPT_LEVELS: Final = 4


@attrs.frozen
class Limits:
    """How much is looked at together, which bounds memory: a parsed node takes 20 KB at the most.

    Attributes:
        layers: that are gone down together.
        layers_slow: the same where a read takes long, so that enough of them are under way.
        layer_nodes: most nodes of one level in which a layer and its parent may differ to be counted here.
        group_nodes: most nodes of one level that are parsed together, unless a single layer has more.
    """

    layers: int = 16
    layers_slow: int = 256
    layer_nodes: int = 256
    group_nodes: int = 512


class Question(NamedTuple):
    """A layer that is asked about: its device, the root of its mapping tree, and its parent's, if it has one."""

    thin_id: int
    root: int
    parent: int | None


@attrs.frozen
class Occupied:
    """What a layer occupies, in data blocks.

    Attributes:
        exclusive: those that no other device maps; 0 where no counts were given.
        own: those that its parent does not map at the same place; 0 without a parent.
    """

    exclusive: int
    own: int


class _Part(NamedTuple):
    """A node to look at: its number, the range of its keys, whether it belongs to one device alone."""

    block: int
    low: int
    high: int
    alone: int


class _Parsed(NamedTuple):
    """What is needed of a node: the numbers of its children, or in a leaf the data blocks that it maps to."""

    leaf: bool
    keys: tuple[int, ...]
    values: Sequence[int]


@attrs.define(eq=False)
class _Layer:
    """How far a layer has been gone down.

    Attributes:
        question: what was asked.
        ours: nodes of its tree on this level that its parent has not, or that are its alone.
        theirs: nodes of the parent's tree on this level that it has not.
        compares: whether there still is a parent to compare with.
        exclusive: blocks found so far.
        own: the same.
    """

    question: Question
    ours: Sequence[_Part]
    theirs: Sequence[_Part]
    compares: bool
    exclusive: int = 0
    own: int = 0


def occupied(
    nodes: NodeReader,
    questions: Sequence[Question],
    counts: tuple[SpaceMap, SpaceMap] | None,
    limits: Limits | None = None,
) -> dict[int, Occupied]:
    """What layers occupy, by thin id.

    Args:
        nodes: where the trees are.
        questions: the layers.
        counts: how often metadata and data blocks are referenced, by devices alone, of the same committed state as the
            trees; None where exclusive blocks are not asked for.
        limits: other ones than the usual.

    Raises:
        PoolFailed: the metadata is damaged.
    """
    sweep = _Sweep(nodes, counts, limits or Limits())
    sweep.run(questions)
    found = sweep.found
    wide = {each.thin_id: each.root for each in sweep.wide}
    exclusive: Mapping[int, int] = dict.fromkeys(wide, 0)
    if wide and counts is not None:
        exclusive = exclusive_blocks(nodes, wide, *counts)
    found.update((thin_id, Occupied(alone, 0)) for thin_id, alone in exclusive.items())
    for each in {*sweep.wide, *sweep.uneven}:
        if each.parent is not None:
            own = difference_blocks(nodes, each.root, each.parent)
            found[each.thin_id] = attrs.evolve(found[each.thin_id], own=own)
    return found


class _Sweep:
    """One pass.

    Attributes:
        found: the answers so far.
        wide: layers that differ too much from their parents to be counted here.
        uneven: layers whose own blocks are to be counted in another way.
    """

    def __init__(self, nodes: NodeReader, counts: tuple[SpaceMap, SpaceMap] | None, limits: Limits) -> None:
        self.found: dict[int, Occupied] = {}
        self.wide: list[Question] = []
        self.uneven: list[Question] = []
        self._reader = nodes.reader
        self._counts = counts
        self._visited = Visited(nodes.reader.blocks)
        self._limits = limits
        self._latest: dict[int, Mapping[int, _Parsed]] = {}

    def run(self, questions: Sequence[Question]) -> None:
        """Answer for layers, a portion at a time, in the order of their roots on disk."""
        ordered = sorted(questions, key=lambda each: each.root)
        size = self._limits.layers if self._reader.depth == 1 else self._limits.layers_slow
        for start in range(0, len(ordered), size):
            portion = ordered[start : start + size]
            once: Sequence[int] = [0] * len(portion)
            if self._counts is not None:
                once = self._counts[0].once([each.root for each in portion])
            self._go_down([self._first(each, alone) for each, alone in zip(portion, once, strict=True)])

    def _first(self, question: Question, alone: int) -> _Layer:
        ours, theirs = [_Part(question.root, 0, KEY_END, alone)], []
        compares = question.parent is not None and question.parent != question.root
        if question.parent is not None and compares:
            theirs = [_Part(question.parent, 0, KEY_END, 0)]
        return _Layer(question, ours if compares or alone else [], theirs, compares)

    def _go_down(self, layers: list[_Layer]) -> None:
        """Answer for layers that stand before their roots; memory is bounded by splitting them where they have much."""
        pending = [(1, layers)]
        while pending:
            level, group = pending.pop()
            if (
                len(group) > 1
                and sum(len(layer.ours) + len(layer.theirs) for layer in group) > self._limits.group_nodes
            ):
                half = len(group) // 2
                pending += [(level, group[half:]), (level, group[:half])]
                continue
            rest = self._step(level, group)
            if rest:
                pending.append((level + 1, rest))

    def _step(self, level: int, group: list[_Layer]) -> list[_Layer]:
        """Go down one level; the layers that have further ones."""
        parsed = self._read(level, group)
        leaves = []
        rest = []
        for layer in group:
            if self._kind(layer, parsed):
                leaves.append(layer)
            elif level == MAX_DEPTH and layer.ours:
                raise broken(layer.ours[0].block, f"a tree of more than {MAX_DEPTH} levels")
            else:
                self._descend(layer, parsed)
                rest.append(layer)
        self._count(leaves, parsed)
        for layer in leaves:
            self.found[layer.question.thin_id] = Occupied(layer.exclusive, layer.own)
        narrow = []
        for layer in rest:
            if len(layer.ours) + len(layer.theirs) > self._limits.layer_nodes:
                self.wide.append(layer.question)
            else:
                narrow.append(layer)
        return narrow

    def _read(self, level: int, group: list[_Layer]) -> Mapping[int, _Parsed]:
        """The nodes that the layers have come to, each read and parsed once, and checked for each that has it."""
        before, latest = self._latest.get(level, {}), {}
        parts = [part for layer in group for side in (layer.ours, layer.theirs) for part in side]
        missing = []
        for block in {part.block for part in parts}:
            node = before.get(block)
            if node is None:
                missing.append(block)
            else:
                latest[block] = node
        for block, data in self._reader.stream(missing):
            found = parse_node(bytes(data), block, MAPPING_SIZE)
            latest[block] = _Parsed(found.leaf, found.keys, data_blocks(found) if found.leaf else integers(found))
        if level > 1:
            for block, low, high, _ in parts:
                check_range(block, latest[block].keys, low, high)
        self._visited.mark(part.block for part in parts if part.alone)
        if level <= _KEPT_LEVELS:  # the next layers' parents are among them
            self._latest[level] = latest
        return latest

    def _kind(self, layer: _Layer, parsed: Mapping[int, _Parsed]) -> bool:
        """Whether a layer has come to its leaves; its parent is let go of where that has a tree of another height."""
        leaf = _are_leaves(layer.ours, parsed)
        if layer.theirs and _are_leaves(layer.theirs, parsed) != leaf and layer.ours:
            self.uneven.append(layer.question)
            layer.ours, layer.theirs, layer.compares = [part for part in layer.ours if part.alone], [], False
        return leaf or not layer.ours

    def _descend(self, layer: _Layer, parsed: Mapping[int, _Parsed]) -> None:
        """Replace the nodes of a layer, and its parent's, by those of their children that only one of both has."""
        if not layer.compares:
            layer.ours = self._children(layer.ours, parsed, None)
            return
        ours, theirs = (
            {child for part in side for child in parsed[part.block].values} for side in (layer.ours, layer.theirs)
        )
        layer.ours, layer.theirs = (
            self._children(layer.ours, parsed, ours - theirs),
            self._children(layer.theirs, parsed, theirs - ours),
        )

    def _children(
        self, parts: Sequence[_Part], parsed: Mapping[int, _Parsed], wanted: AbstractSet[int] | None
    ) -> list[_Part]:
        """The children of nodes that are wanted; None: those that belong to one device alone."""
        found: list[_Part] = []
        for part in parts:
            node = parsed[part.block]
            below: Iterable[tuple[int, int, int]]
            below = zip(node.values, node.keys, (*node.keys[1:], part.high), strict=True)
            chosen = [child for child in below if wanted is None or child[0] in wanted]
            once: Sequence[int] = (0,) * len(chosen)
            if part.alone and self._counts is not None:
                once = self._counts[0].once([child[0] for child in chosen])
            found += [
                _Part(*child, alone) for child, alone in zip(chosen, once, strict=True) if alone or wanted is not None
            ]
        return found

    def _count(self, layers: Sequence[_Layer], parsed: Mapping[int, _Parsed]) -> None:
        """Count in leaves."""
        if self._counts is not None:
            data = self._counts[1]
            alone = [(layer, parsed[part.block].values) for layer in layers for part in layer.ours if part.alone]
            data.prefetch(values for _, values in alone)
            for layer, values in alone:
                layer.exclusive += data.count_once(values)
        for layer in layers:
            if layer.compares:
                sides = ([parsed[part.block] for part in side] for side in (layer.ours, layer.theirs))
                layer.own = _own(*sides)


def _are_leaves(parts: Sequence[_Part], parsed: Mapping[int, _Parsed]) -> bool:
    leaf = bool(parts) and parsed[parts[0].block].leaf
    for part in parts:
        if parsed[part.block].leaf != leaf:
            raise broken(part.block, "leaves of one tree at different levels")
    return leaf


def _own(ours: Sequence[_Parsed], theirs: Sequence[_Parsed]) -> int:
    """How many mappings some leaves have that others have not."""
    by_first_key = {leaf.keys[0]: leaf for leaf in theirs if leaf.keys}
    all_theirs: dict[int, int] = {}
    total = 0
    for leaf in ours:
        other = by_first_key.get(leaf.keys[0]) if leaf.keys else None
        if other is not None and other.keys == leaf.keys:
            total += sum(map(ne, leaf.values, other.values))
            continue
        if not all_theirs:
            for each in theirs:
                all_theirs.update(zip(each.keys, each.values, strict=True))
        total += sum(map(ne, leaf.values, map(all_theirs.get, leaf.keys)))
    return total
