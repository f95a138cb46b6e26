"""Mapping trees: what makes no difference, large numbers, and reads kept to what is not shared."""

import struct
from collections.abc import Iterable

from tests.unit.metadata.image import Image, MemorySource, Shape, spread
from thinpool.metadata.btree import NodeReader
from thinpool.metadata.mappings import BlockRange, mapping_difference, mapping_tree
from thinpool.metadata.reader import BlockReader

SHAPE = Shape()


def reader(image: Image) -> NodeReader:
    return NodeReader(BlockReader(MemorySource(image.written, image.blocks)))


def tree(image: Image, mappings: Iterable[tuple[int, int, int]], shape: Shape = SHAPE) -> int:
    return image.tree([(key, struct.pack("<Q", data << 24 | time)) for key, data, time in mappings], 8, shape)


def test_the_time_of_a_mapping_is_no_difference() -> None:
    image = Image()
    old = tree(image, [(key, key, 1) for key in range(100)])
    new = tree(image, [(key, key, 2 + key % 3) for key in range(100)])
    sparse = tree(image, [(key, key, 5) for key in range(0, 100, 2)])
    assert not list(mapping_difference(reader(image), old, new))
    assert list(mapping_difference(reader(image), sparse, new)) == [
        BlockRange(key, 1, None, key) for key in range(1, 100, 2)
    ]


def test_numbers_that_fill_their_fields() -> None:
    image = Image()
    mappings = {0: 0, 1: 2**32 - 1, 2: 2**32, 3: 2**40 - 1, 2**64 - 2: 5, 2**64 - 1: 6}
    root = tree(image, [(key, data, 2**24 - 1) for key, data in mappings.items()])
    empty = tree(image, [])
    nodes = reader(image)
    assert dict(mapping_tree(nodes, root).items()) == mappings
    assert [mapping_tree(nodes, root).lookup(key) for key in mappings] == list(mappings.values())
    assert mapping_tree(nodes, root).lookup(4) is None
    assert mapping_tree(nodes, empty).lookup(0) is None
    added = [(key, None, data) for key, data in mappings.items()]
    assert spread(mapping_difference(nodes, empty, root)) == added
    assert spread(mapping_difference(nodes, root, empty)) == [(key, data, None) for key, _, data in added]
    assert list(mapping_difference(nodes, empty, root))[1] == BlockRange(1, 2, None, 2**32 - 1)


def test_reads_are_kept_to_unshared_nodes_also_where_inner_nodes_never_match() -> None:
    image = Image(blocks=20_000)
    mappings = {key: key for key in range(20_000)}
    changed = {**mappings, **{key * 997: 100_000 + key for key in range(20)}}
    old, new = image.mapping_tree(mappings, Shape(6, 40)), image.mapping_tree(changed, Shape(6, 70))
    inner = len(image.children)
    leaves = len(image.written) - inner
    source = MemorySource(image.written, image.blocks)
    nodes = NodeReader(BlockReader(source))
    assert [change.start for change in mapping_difference(nodes, old, new)] == [key * 997 for key in range(20)]
    assert sum(source.reads.values()) < inner + leaves // 10
