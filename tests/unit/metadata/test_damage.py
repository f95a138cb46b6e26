"""Damaged and hostile metadata: an error that names the block, never a hang, a wild read or a wrong answer."""

import os
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.metadata.image import BLOCK, Image, MemorySource, Shape, sealed
from thinpool.errors import PoolFailed
from thinpool.metadata.books import Books
from thinpool.metadata.btree import MAX_DEPTH, NodeReader
from thinpool.metadata.mappings import mapping_difference, mapping_tree
from thinpool.metadata.reader import BlockReader
from thinpool.metadata.superblock import NODE_SALT

MUTATIONS = 40_000 if os.environ.get("THINPOOL_TEST_LONG") else 2_000


Answers = list[object]
Question = Callable[[Books], object]

QUESTIONS: tuple[Question, ...] = (
    lambda books: list(books.devices()),
    lambda books: list(books.usage()),
    lambda books: list(books.difference(1, 2)),
    lambda books: list(books.difference(3, 2)),
    lambda books: books.difference_blocks(5, 1),
    lambda books: books.layers([(1, 4), (2, 1), (3, 2), (5, None), (6, 3)]),
    lambda books: list(books.mappings(3)),
)


def sample() -> Image:
    """A pool with shared nodes, trees of different heights, data that is referenced often."""
    image = Image(blocks=1024, data_blocks=40_000)
    base = {block: block for block in range(0, 120, 2)}
    devices = {1: base, 2: {**base, 40: 1040, 41: 1041}, 3: {**base, **{n: 5000 + n for n in range(60)}}, 4: base}
    devices[5] = {n: 20_000 + n for n in range(30)}
    devices[6] = {}
    shapes = {1: Shape(6, 3), 2: Shape(6, 9), 3: Shape(6, 3), 4: Shape(6, 3)}
    roots = image.devices(devices, shapes, Shape(2, 2))
    devices[2] = dict(base)
    held = image.devices(devices, shapes, Shape(2, 2))
    image.finish(roots, held)
    return image


def answers(source: MemorySource) -> Answers:
    """Everything that can be asked; an error stands for the answer it prevented."""
    given_answers: Answers = []
    for held in (False, True):
        try:
            books = Books(source, held=held)
        except PoolFailed as error:
            given_answers += [error]
            continue
        for question in QUESTIONS:
            try:
                given_answers.append(question(books))
            except PoolFailed as error:
                given_answers.append(error)
    return given_answers


def check_errors(found: Answers) -> int:
    errors = [answer for answer in found if isinstance(answer, PoolFailed)]
    assert all("metadata" in str(error) and "\n" not in str(error) for error in errors)
    return len(errors)


def test_flipped_bits_are_found_by_the_checksums() -> None:
    image = sample()
    right = answers(MemorySource(image.written, image.blocks))
    assert check_errors(right) == 0
    chance, caught = random.Random(1), 0
    for _ in range(MUTATIONS):
        block = chance.choice(sorted(image.written))
        data = bytearray(image.written[block])
        data[chance.randrange(BLOCK)] ^= 1 << chance.randrange(8)
        found = answers(MemorySource({**image.written, block: bytes(data)}, image.blocks))
        caught += check_errors(found) > 0
        assert all(isinstance(a, PoolFailed) or a == b for a, b in zip(found, right, strict=len(found) == len(right)))
    assert caught > MUTATIONS // 2


@pytest.mark.parametrize("seed", range(8))
def test_lies_with_a_right_checksum_end_in_an_answer_or_an_error(seed: int) -> None:
    image = sample()
    chance, caught = random.Random(seed), 0
    for _ in range(MUTATIONS // 8):
        written = dict(image.written)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            block = chance.choice(sorted(image.salts))
            written[block] = sealed(mutated(written[block], chance), image.salts[block])
        caught += check_errors(answers(MemorySource(written, image.blocks))) > 0
    assert caught > MUTATIONS // 40


def mutated(block: bytes, chance: random.Random) -> bytes:
    """One field changed: of the header mostly, else a key or a value."""
    data = bytearray(block)
    odd = (0, 1, 2, 3, 255, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
    near = tuple(range(40))
    if chance.random() < 0.4:
        offset = chance.choice((4, 8, 16, 20, 24, 48, 56, 64, 80, 88, 192, 200, 208, 320, 328, 336, 340, 360))
    else:
        count = max(1, struct.unpack_from("<I", data, 16)[0] % 128)
        limit = struct.unpack_from("<I", data, 20)[0] % 256
        offset = 32 + 8 * chance.randrange(count) + chance.choice((0, 8 * limit))
    size = chance.choice((4, 8)) if offset <= BLOCK - 8 else 4
    value = chance.choice(odd + near) & ((1 << 8 * size) - 1)
    if chance.random() < 0.5:
        old = int.from_bytes(data[offset : offset + size], "little")
        value = (old + chance.choice((-1, 1, 7, 256, 1 << 24))) & ((1 << 8 * size) - 1)
    data[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(data)


def node(block: int, flags: int, keys: list[int], values: list[int], **lies: int) -> bytes:
    limit = lies.get("limit", 252)
    header = struct.pack(
        "<IIQIIII", 0, flags, lies.get("number", block), lies.get("count", len(keys)), limit, lies.get("size", 8), 0
    )
    data = bytearray(BLOCK)
    data[:32] = header
    data[32 : 32 + 8 * len(keys)] = struct.pack(f"<{len(keys)}Q", *keys)
    data[32 + 8 * 252 : 32 + 8 * 252 + 8 * len(values)] = struct.pack(f"<{len(values)}Q", *values)
    return sealed(data, NODE_SALT)


INTERNAL, LEAF = 1, 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(BLOCK), "not a B-tree node"),
        (node(1, LEAF, [1], [1], number=2), "claims to be block 2"),
        (node(1, 3, [1], [1]), "flags 0x3"),
        (node(1, 0, [1], [1]), "flags 0x0"),
        (node(1, LEAF, [1], [1], size=16), "values of 16 bytes"),
        (node(1, LEAF, [1], [1], size=0), "values of 0 bytes"),
        (node(1, LEAF, [1], [1], limit=2**32 - 1), "room for 4294967295"),
        (node(1, LEAF, [1], [1], count=253), "253 entries"),
        (node(1, LEAF, [2, 1], [1, 1]), "out of order"),
        (node(1, LEAF, [2, 2], [1, 1]), "out of order"),
        (node(1, INTERNAL, [], []), "without children"),
        (node(1, INTERNAL, [5], [1]), "more than 16 levels"),
        (node(1, INTERNAL, [5, 6], [1, 1]), "outside the parent's range"),
        (node(1, INTERNAL, [5], [2**63]), "lies outside"),
    ],
)
def test_nodes_that_lie(data: bytes, reason: str) -> None:
    def nodes() -> NodeReader:
        return NodeReader(BlockReader(MemorySource({1: data, 2: node(2, LEAF, [1, 9], [1 << 24, 9 << 24])}, 8)))

    with pytest.raises(PoolFailed, match=reason):
        list(mapping_tree(nodes(), 1).items())
    with pytest.raises(PoolFailed, match=reason):
        mapping_tree(nodes(), 1).lookup(5)
    with pytest.raises(PoolFailed, match=reason):
        list(mapping_difference(nodes(), 1, 2))
    with pytest.raises(PoolFailed, match=reason):
        list(mapping_difference(nodes(), 2, 1))


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ({1: node(1, INTERNAL, [0, 9], [2, 3]), 2: node(2, LEAF, [0], [0]), 3: node(3, LEAF, [], [])}, "empty node"),
        ({1: node(1, INTERNAL, [0, 9], [2, 3]), 2: node(2, LEAF, [9], [0]), 3: node(3, LEAF, [9], [0])}, "range"),
        ({1: node(1, INTERNAL, [0, 9], [2, 3]), 2: node(2, LEAF, [0], [0]), 3: node(3, LEAF, [8], [0])}, "range"),
        (
            {
                1: node(1, INTERNAL, [0, 9], [2, 3]),
                2: node(2, LEAF, [0], [0]),
                3: node(3, INTERNAL, [9], [4]),
                4: node(4, LEAF, [9], [0]),
            },
            "level",
        ),
    ],
)
def test_trees_that_contradict_themselves(blocks: dict[int, bytes], reason: str) -> None:
    other = {7: node(7, LEAF, [3], [3 << 24])}
    with pytest.raises(PoolFailed, match=reason):
        list(mapping_tree(NodeReader(BlockReader(MemorySource(blocks, 8))), 1).items())
    for old, new in ((1, 7), (7, 1)):
        with pytest.raises(PoolFailed, match=reason):
            list(mapping_difference(NodeReader(BlockReader(MemorySource({**blocks, **other}, 8))), old, new))


def test_a_tower_of_single_children_is_no_stack_overflow() -> None:
    blocks = {n: node(n, INTERNAL, [0], [n + 1]) for n in range(1, 5000)}
    blocks[5000] = node(5000, LEAF, [0], [0])
    source = MemorySource(blocks, 6000)
    with pytest.raises(PoolFailed, match=f"more than {MAX_DEPTH} levels"):
        list(mapping_tree(NodeReader(BlockReader(source)), 1).items())
    assert source.calls <= MAX_DEPTH + 1


def test_a_tower_that_a_device_owns_is_none_either() -> None:
    image = Image()
    block = image.mapping_tree({0: 0}, Shape())
    for _ in range(MAX_DEPTH):
        child, block = block, image.node(leaf=False, keys=[0], values=[struct.pack("<Q", block)], value_size=8)
        image.children[block] = [child]
    top = image.tree([(1, struct.pack("<Q", block))], 8, Shape())
    image.children[top] = [block]
    details = image.tree([(1, bytes(24))], 24, Shape())
    for held in (False, True):
        source = image.finish((top, details), (top, details))
        with Books(source, held=held) as books, pytest.raises(PoolFailed, match=f"more than {MAX_DEPTH} levels"):
            books.exclusive_blocks(1)


def test_a_device_without_mappings_or_without_details() -> None:
    image = Image()
    mapped, _ = image.devices({1: {0: 0}}, {}, Shape())
    _, details = image.devices({2: {0: 1}}, {}, Shape())
    with Books(image.finish((mapped, details))) as books:
        with pytest.raises(PoolFailed, match="no thin device 2"):
            list(books.usage())
        with pytest.raises(PoolFailed, match="no thin device 1"):
            books.mapped_blocks(1)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, BLOCK - 200), st.booleans())
def test_noise_is_refused(noise: bytes, offset: int, seal: bool) -> None:
    data = bytes(offset) + noise.ljust(BLOCK - offset, b"\1")
    data = sealed(data, NODE_SALT) if seal else data
    nodes = NodeReader(BlockReader(MemorySource({1: data}, 2)))
    with pytest.raises(PoolFailed, match="metadata block 1 "):
        list(mapping_tree(nodes, 1).items())
    with pytest.raises(PoolFailed, match="metadata block 0 "):
        Books(MemorySource({0: data}, 2))
