"""The bytes of thin devices from metadata and data, against a model that is a plain array."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metadata.image import BLOCK, Image, MemorySource, Shape
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.metadata.btree import NodeReader
from thinpool.metadata.mappings import look_up
from thinpool.metadata.reader import BlockReader
from thinpool.metadata.still import StillMappings
from thinpool.pool.volume import DataDevice, ThinVolume

BLOCK_SIZE = 1 << 16
BLOCKS = 12
DATA_BLOCKS = 20
PAGES = BLOCK_SIZE // BLOCK

_mappings = st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, DATA_BLOCKS - 1))


def page(number: int) -> bytes:
    return struct.pack("<Q", number + 1) * (BLOCK // 8)


def data_device(cache_blocks: int = 1000) -> tuple[DataDevice, MemorySource]:
    source = MemorySource({number: page(number) for number in range(DATA_BLOCKS * PAGES)}, DATA_BLOCKS * PAGES)
    return DataDevice(BlockReader(source, cache_blocks=cache_blocks)), source


def volume_of(image: Image, mappings: Mapping[int, int], data: DataDevice) -> ThinVolume:
    root = image.mapping_tree(mappings, Shape(3, 2))
    still = StillMappings(MemorySource(image.written, image.blocks))
    return ThinVolume(still, root, data, BLOCK_SIZE, BLOCKS * BLOCK_SIZE)


def shown(mappings: Mapping[int, int]) -> bytes:
    blocks = (mappings.get(number) for number in range(BLOCKS))
    return b"".join(
        bytes(BLOCK_SIZE) if block is None else b"".join(page(block * PAGES + index) for index in range(PAGES))
        for block in blocks
    )


@given(
    mappings=_mappings,
    reads=st.lists(
        st.tuples(st.integers(0, BLOCKS * BLOCK_SIZE), st.integers(0, 3 * BLOCK_SIZE), st.booleans()), max_size=8
    ),
)
def test_reads_give_what_the_device_would(mappings: Mapping[int, int], reads: list[tuple[int, int, bool]]) -> None:
    """Read ahead or not, with a cache that holds little."""
    data, _ = data_device(cache_blocks=7)
    volume = volume_of(Image(), mappings, data)
    expected = shown(mappings)
    for offset, length, ahead in reads:
        end = min(offset + length, len(expected))
        if ahead:
            volume.prefetch([(offset, end - offset)])
        assert volume.read(offset, end - offset) == expected[offset:end]


@given(mappings=_mappings, others=_mappings, offset=st.integers(0, BLOCKS * BLOCK_SIZE - 1))
def test_equal_places_are_equal_bytes(mappings: Mapping[int, int], others: Mapping[int, int], offset: int) -> None:
    data, _ = data_device()
    image = Image()
    first, second = volume_of(image, mappings, data), volume_of(image, others, data)
    (place, length), (other_place, other_length) = first.stored_at(offset), second.stored_at(offset)
    block = offset // BLOCK_SIZE
    assert (place == other_place) == (mappings.get(block) == others.get(block))
    assert 0 < length == other_length <= BLOCK_SIZE


@given(mappings=st.dictionaries(st.integers(0, 2**40), st.integers(0, 2**39)), keys=st.sets(st.integers(0, 2**40)))
def test_many_blocks_are_looked_up_at_once(mappings: Mapping[int, int], keys: set[int]) -> None:
    image = Image()
    root = image.mapping_tree(mappings, Shape(4, 3))
    empty = image.mapping_tree({}, Shape())
    wanted = keys | set(list(mappings)[::2])
    nodes = NodeReader(BlockReader(MemorySource(image.written, image.blocks)))
    found = look_up(nodes, [(root, wanted), (root, ()), (empty, wanted)])
    assert found == [{key: mappings[key] for key in wanted if key in mappings}, {}, {}]


def test_what_lies_outside_is_refused() -> None:
    data, _ = data_device()
    volume = volume_of(Image(), {0: DATA_BLOCKS, 1: 0}, data)
    for offset, length in ((-1, 5), (BLOCKS * BLOCK_SIZE, 1), (0, BLOCKS * BLOCK_SIZE + 1), (0, 5)):
        with pytest.raises(Unreadable, match="outside"):
            volume.read(offset, length)
    volume.prefetch([(0, 1), (-5, 5), (BLOCKS * BLOCK_SIZE, 9)])
    assert volume.read(BLOCK_SIZE, 8) == page(0)[:8]


def test_damaged_metadata_is_told() -> None:
    image = Image()
    root = image.mapping_tree({0: 1}, Shape())
    image.written[root] = bytes(BLOCK)
    data, _ = data_device()
    volume = ThinVolume(
        StillMappings(MemorySource(image.written, image.blocks)), root, data, BLOCK_SIZE, BLOCKS * BLOCK_SIZE
    )
    for call in (lambda: volume.read(0, 1), lambda: volume.stored_at(0)):
        with pytest.raises(Unreadable, match="checksum"):
            call()
    volume.prefetch([(0, 1)])


def test_neighbours_are_read_in_one_call_and_only_once() -> None:
    data, source = data_device()
    image = Image()
    first, second = volume_of(image, {0: 4, 1: 5, 2: 9}, data), volume_of(image, {0: 4, 1: 5, 2: 8}, data)
    assert first.read(0, 2 * BLOCK_SIZE) == second.read(0, 2 * BLOCK_SIZE)
    assert source.calls == 1
    assert data.counters.reads == 1
    assert data.counters.bytes == 2 * BLOCK_SIZE


def test_image_of_a_data_device(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"".join(page(number) for number in range(2 * PAGES)))
    with DataDevice.open(path) as data:
        volume = volume_of(Image(), {3: 1}, data)
        assert volume.read(3 * BLOCK_SIZE + 5, 3) == page(PAGES)[5:8]
