"""Metadata that somebody made on purpose: every checksum is right, and the structure lies."""

import os
import random
import struct
from collections.abc import Callable

import pytest

from tests.unit.metadata.image import BLOCK, Image, MemorySource, Shape, sealed
from tests.unit.metadata.test_damage import QUESTIONS, answers, check_errors, sample
from thinpool.errors import PoolFailed
from thinpool.metadata.books import Books
from thinpool.metadata.btree import MAX_DEPTH
from thinpool.metadata.superblock import BITMAP_SALT, INDEX_SALT, NODE_SALT

TURNS = 4000 if os.environ.get("THINPOOL_TEST_LONG") else 200
WILD = (0, 1, 1023, 1024, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
INTERNAL, LEAF = 1, 2


class Metadata:
    """The blocks of a pool, to be rewritten, with right checksums."""

    def __init__(self, image: Image, chance: random.Random) -> None:
        self.blocks = dict(image.written)
        self.size = image.blocks
        self.salts = dict(image.salts)
        self.chance = chance

    def nodes(self, flags: int | None = None) -> list[int]:
        return [
            block
            for block, salt in sorted(self.salts.items())
            if salt == NODE_SALT and (flags is None or self.header(block)[0] == flags)
        ]

    def header(self, block: int) -> tuple[int, int, int, int]:
        """Flags, entries, room and size of a value."""
        flags = struct.unpack_from("<I", self.blocks[block], 4)[0]
        return flags, *struct.unpack_from("<III", self.blocks[block], 16)

    def put(self, block: int, form: str, offset: int, *values: int) -> None:
        data = bytearray(self.blocks[block])
        struct.pack_into(form, data, offset, *values)
        self.blocks[block] = sealed(data, self.salts[block])

    def entry(self, block: int) -> tuple[int, int]:
        """Offsets of the key and the value of some entry of a node."""
        _, count, room, size = self.header(block)
        index = self.chance.randrange(max(1, count))
        return 32 + 8 * index, 32 + 8 * room + size * index

    def add(self, data: bytes) -> int:
        block = next(number for number in range(1, self.size) if number not in self.blocks)
        self.salts[block] = NODE_SALT
        self.blocks[block] = data
        self.put(block, "<Q", 8, block)
        return block

    def source(self) -> MemorySource:
        return MemorySource(self.blocks, self.size)


def a_child_is_an_ancestor_or_anything_else(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes(INTERNAL))
    pool.put(block, "<Q", pool.entry(block)[1], pool.chance.choice([block, *pool.nodes()]))


def two_children_are_one(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes(INTERNAL))
    value = struct.unpack_from("<Q", pool.blocks[block], pool.entry(block)[1])[0]
    pool.put(block, "<Q", pool.entry(block)[1], value)


def pointers_lead_anywhere(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes())
    pool.put(block, "<Q", pool.entry(block)[1], pool.chance.choice(WILD))


def keys_are_out_of_order(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes())
    key = pool.chance.choice([*WILD, struct.unpack_from("<Q", pool.blocks[block], pool.entry(block)[0])[0]])
    pool.put(block, "<Q", pool.entry(block)[0], key)


def there_are_more_or_fewer_entries(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes())
    _, count, room, _ = pool.header(block)
    pool.put(block, "<I", 16, pool.chance.choice([0, 1, count - 1, count + 1, room, room + 1, 2**32 - 1]) & 0xFFFFFFFF)


def there_is_more_or_less_room(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes())
    room = pool.header(block)[2]
    pool.put(block, "<I", 20, pool.chance.choice([0, 1, room - 1, room + 1, 508, 2**32 - 1]))


def values_have_another_size(pool: Metadata) -> None:
    pool.put(pool.chance.choice(pool.nodes()), "<I", 24, pool.chance.choice([0, 1, 4, 8, 16, 24, 2**31]))


def leaves_are_inner_nodes_and_the_other_way_round(pool: Metadata) -> None:
    pool.put(pool.chance.choice(pool.nodes()), "<I", 4, pool.chance.choice([0, INTERNAL, LEAF, 3, 2**31]))


def a_tower_stands_on_a_node(pool: Metadata) -> None:
    block = pool.chance.choice(pool.nodes(INTERNAL))
    key, value = pool.entry(block)
    child = struct.unpack_from("<Q", pool.blocks[block], value)[0]
    lowest = struct.unpack_from("<Q", pool.blocks[block], key)[0]
    for _ in range(pool.chance.choice([1, 2, MAX_DEPTH, 100])):
        data = bytearray(BLOCK)
        struct.pack_into("<IIQIIII", data, 0, 0, INTERNAL, 0, 1, 252, 8, 0)
        struct.pack_into("<Q", data, 32, lowest)
        struct.pack_into("<Q", data, 32 + 8 * 252, child)
        child = pool.add(bytes(data))
    pool.put(block, "<Q", value, child)


def the_superblock_names_other_roots(pool: Metadata) -> None:
    at = pool.chance.choice([56, 80, 88, 208, 216, 320, 328])
    pool.put(0, "<Q", at, pool.chance.choice([*WILD, *sorted(pool.blocks)]))


def the_space_maps_have_other_sizes(pool: Metadata) -> None:
    pool.put(0, "<Q", pool.chance.choice([64, 72, 192, 200]), pool.chance.choice([*WILD, 100, 1000, 40_001]))


def counts_are_wrong(pool: Metadata) -> None:
    bitmaps = [block for block, salt in pool.salts.items() if salt == BITMAP_SALT]
    fill = pool.chance.choice([0x00, 0xAA, 0x55, 0xFF])  # 0xAA: all of them once
    for block in pool.chance.sample(bitmaps, pool.chance.randrange(1, len(bitmaps) + 1)):
        pool.blocks[block] = sealed(pool.blocks[block][:16] + bytes([fill]) * (BLOCK - 16), BITMAP_SALT)


def the_index_of_bitmaps_leads_anywhere(pool: Metadata) -> None:
    index = next(block for block, salt in pool.salts.items() if salt == INDEX_SALT)
    pool.put(index, "<Q", 16, pool.chance.choice([*WILD, *sorted(pool.blocks)]))


def devices_share_a_tree_that_each_has_alone(pool: Metadata) -> None:
    counts_are_wrong(pool)
    for block in pool.nodes(LEAF):
        _, count, room, size = pool.header(block)
        if size == 8 and count and 32 + 8 * room + 8 * count <= BLOCK:
            value = struct.unpack_from("<Q", pool.blocks[block], 32 + 8 * room)[0]
            pool.put(block, f"<{count}Q", 32 + 8 * room, *[value] * count)


LIES: tuple[Callable[[Metadata], None], ...] = (
    a_child_is_an_ancestor_or_anything_else, two_children_are_one, pointers_lead_anywhere, keys_are_out_of_order,
    there_are_more_or_fewer_entries, there_is_more_or_less_room, values_have_another_size,
    leaves_are_inner_nodes_and_the_other_way_round, a_tower_stands_on_a_node, the_superblock_names_other_roots,
    the_space_maps_have_other_sizes, counts_are_wrong, the_index_of_bitmaps_leads_anywhere,
    devices_share_a_tree_that_each_has_alone,
)  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_in_an_answer_or_an_error_that_names_it(lie: Callable[[Metadata], None]) -> None:
    image = sample()
    caught = 0
    for seed in range(TURNS):
        pool = Metadata(image, random.Random(seed))
        lie(pool)
        if seed % 4 == 3:
            pool.chance.choice(LIES)(pool)
        source = pool.source()
        caught += check_errors(answers(source)) > 0
        assert source.calls <= 2 * len(QUESTIONS) * MAX_DEPTH * len(pool.blocks)
        assert max(source.reads) < image.blocks
    assert caught > TURNS // 20


def test_a_tree_that_many_devices_claim_is_read_once() -> None:
    """By the counts each has it alone: read by each of them it would take their number times its size."""
    image = Image(blocks=2048)
    tree = image.mapping_tree({block: block for block in range(1000)}, Shape())
    devices = 200
    top = image.tree([(key, struct.pack("<Q", tree)) for key in range(devices)], 8, Shape(50, 50))
    details = image.tree([(key, struct.pack("<QQII", 1000, 0, 0, 0)) for key in range(devices)], 24, Shape(50, 50))
    image.finish((top, details))
    for block, salt in image.salts.items():
        if salt == BITMAP_SALT:
            image.write(block, image.written[block][:16] + b"\xaa" * (BLOCK - 16), BITMAP_SALT)
    source = MemorySource(image.written, image.blocks)
    with Books(source) as books, pytest.raises(PoolFailed, match="counted as referenced once, and met twice"):
        list(books.usage())
    assert source.calls < 2 * len(image.written)


def test_numbers_that_no_pool_can_have() -> None:
    image = Image(data_blocks=1000)
    roots = image.devices({1: {0: 5}, 2: {0: 1000}, 1 << 24: {0: 1}}, {}, Shape())
    image.finish(roots, roots)
    for held in (False, True):
        with Books(MemorySource(image.written, image.blocks), held=held) as books:
            with pytest.raises(PoolFailed, match="thin device 16777216, there can be 16777215"):
                list(books.devices())
            for question in (lambda: list(books.mappings(2)), lambda: list(books.difference(1, 2))):
                with pytest.raises(PoolFailed, match="data block 1000 is mapped, there are 1000"):
                    question()


def test_more_alone_than_at_all() -> None:
    image = Image()
    mapped, _ = image.devices({1: {0: 5, 1: 6}}, {}, Shape())
    details = image.tree([(1, struct.pack("<QQII", 1, 0, 0, 0))], 24, Shape())
    with (
        Books(image.finish((mapped, details))) as books,
        pytest.raises(PoolFailed, match="1 blocks mapped by thin device 1, which has 2 alone"),
    ):
        list(books.usage())
