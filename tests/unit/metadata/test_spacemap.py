"""Reference counts: one or not one, on every page of the map; damaged and too small maps."""

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.metadata.image import COUNTS, Image, MemorySource, Shape, sealed
from thinpool.errors import PoolFailed
from thinpool.metadata.books import Books
from thinpool.metadata.btree import NodeReader
from thinpool.metadata.reader import BlockReader
from thinpool.metadata.spacemap import COUNTS_PER_BITMAP, data_space_map
from thinpool.metadata.superblock import BITMAP_SALT, INDEX_SALT, parse_superblock

DATA_BLOCKS = 3 * COUNTS + 100


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, DATA_BLOCKS - 1), st.integers(1, 4), max_size=60), st.randoms(use_true_random=False)
)
def test_counts_of_one_are_told_from_all_others(counts: dict[int, int], chance: random.Random) -> None:
    assert COUNTS_PER_BITMAP == COUNTS
    image = Image(data_blocks=DATA_BLOCKS)
    devices = {
        number: {key: block for key, (block, count) in enumerate(sorted(counts.items())) if number < count}
        for number in range(4)
    }
    # leaves of their own for each device, so that every device counts
    shifted = {number: {key + number * 1000: block for key, block in own.items()} for number, own in devices.items()}
    source = image.finish(image.devices(shifted, {}, Shape()))
    reader = BlockReader(source)
    root = parse_superblock(reader.read(0)).data_space_map
    assert root is not None
    space_map = data_space_map(NodeReader(reader), root)
    asked = [*counts, *chance.sample(range(DATA_BLOCKS), 20)]
    chance.shuffle(asked)
    expected = [int(counts.get(block) == 1) for block in asked]
    assert list(space_map.once(asked)) == expected
    assert space_map.count_once(asked) == sum(expected)
    assert [space_map.once([block])[0] for block in asked] == expected
    assert list(space_map.once([])) == []
    assert space_map.count_once([]) == 0
    for wrong in (DATA_BLOCKS, 2**40 - 1):
        with pytest.raises(PoolFailed, match=f"data block {wrong} is referenced, there are {DATA_BLOCKS}"):
            space_map.count_once([0, wrong])
        with pytest.raises(PoolFailed, match="is referenced"):
            space_map.once([wrong, 0])


def sample(**sizes: int) -> tuple[Image, MemorySource]:
    image = Image(**sizes)
    mappings = {key: key for key in range(200)}
    return image, image.finish(image.devices({1: mappings, 2: {**mappings, 3: 300}}, {}, Shape()))


@pytest.mark.parametrize("salt", [BITMAP_SALT, INDEX_SALT])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data, _salt: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], "checksum is wrong"),
        (lambda data, salt: sealed(data[:8] + struct.pack("<Q", 7) + data[16:], salt), "claims to be block 7"),
        (lambda data, _salt: bytes(len(data)), "checksum is wrong"),
    ],
)
def test_damaged_maps_are_found(salt: int, damage: Callable[[bytes, int], bytes], reason: str) -> None:
    image, source = sample()
    for block, kind in image.salts.items():
        if kind == salt:
            source.data[block] = damage(source.data[block], salt)
    with Books(source) as books, pytest.raises(PoolFailed, match=reason):
        list(books.usage())


def test_a_map_that_lacks_what_it_should_hold() -> None:
    image, source = sample(data_blocks=250)
    with Books(source) as books, pytest.raises(PoolFailed, match=r"data block 300 is referenced, there are 250"):
        list(books.usage())
    image, source = sample()
    superblock = bytearray(image.written[0])
    superblock[192:208] = struct.pack("<QQ", 20, 20)
    image.write(0, superblock, image.salts[0])
    with (
        Books(MemorySource(image.written, image.blocks)) as books,
        pytest.raises(PoolFailed, match=r"metadata block \d+ is referenced, there are 20"),
    ):
        list(books.usage())
    image, source = sample()
    superblock = bytearray(image.written[0])
    superblock[64:72] = struct.pack("<Q", 2**39)
    empty = image.node(leaf=True, keys=(), values=(), value_size=16)
    superblock[80:88] = struct.pack("<Q", empty)
    image.write(0, superblock, image.salts[0])
    with Books(MemorySource(image.written, image.blocks)) as books:
        with pytest.raises(PoolFailed, match="the data space map lacks bitmap 0"):
            list(books.usage())
        assert books.difference_blocks(2, 1) == 1
    superblock[64:320] = bytes(256)
    image.write(0, superblock, image.salts[0])
    with (
        Books(MemorySource(image.written, image.blocks)) as books,
        pytest.raises(PoolFailed, match="without space maps"),
    ):
        books.exclusive_blocks(1)
