"""The block reader: direct I/O, a bounded cache, read-ahead by latency; and sharing that saves reads."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.metadata.image import BLOCK, Image, MemorySource, Shape
from thinpool.errors import PoolFailed
from thinpool.metadata.books import Books
from thinpool.metadata.btree import NodeReader
from thinpool.metadata.mappings import mapping_difference
from thinpool.metadata.reader import BlockReader, DirectFile


class Clock:
    """A clock on which each read takes the time it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step / 2
        return self.now


def numbered(blocks: int) -> MemorySource:
    return MemorySource({n: n.to_bytes(8, "little") * 512 for n in range(blocks)}, blocks)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "metadata"
    path.write_bytes(b"".join(n.to_bytes(8, "little") * 512 for n in range(100)) + b"tail")
    return path


def test_direct_file_gives_whole_blocks(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    os.lseek(fd, 17, os.SEEK_SET)
    try:
        for device in (image, str(image), os.fsencode(image), fd):
            with DirectFile.open(device) as file:
                assert file.blocks == 100
                assert file.read(3) == (3).to_bytes(8, "little") * 512
                assert file.read(36, 64)[-BLOCK:] == (99).to_bytes(8, "little") * 512
                for block, count in ((-1, 1), (100, 1), (99, 2), (2**62, 1)):
                    with pytest.raises(PoolFailed, match="outside"):
                        file.read(block, count)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 17
    finally:
        os.close(fd)


def test_direct_file_closes_once_and_leaves_no_descriptor(image: Path) -> None:
    before = os.listdir("/proc/self/fd")
    file = DirectFile.open(image)
    file.close()
    file.close()
    with pytest.raises(PoolFailed, match="cannot be read"):
        file.read(0)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "neither|cannot open"),
        (lambda _path: None, "No such file"),
        (os.mkfifo, "neither|cannot open"),
        (lambda path: path.symlink_to("/dev/null"), "neither|cannot open"),
    ],
)
def test_what_is_no_metadata_device_is_refused(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    before = os.listdir("/proc/self/fd")
    make(tmp_path / "it")
    with pytest.raises(PoolFailed, match=reason):
        DirectFile.open(tmp_path / "it")
    assert os.listdir("/proc/self/fd") == before


def test_a_file_cut_while_it_is_read_is_an_error(image: Path) -> None:
    with DirectFile.open(image) as file:
        os.truncate(image, 5 * BLOCK)
        with pytest.raises(PoolFailed, match="bytes read"):
            file.read(4, 3)


def test_mark_changes_with_a_write(image: Path) -> None:
    with DirectFile.open(image) as file:
        mark = file.mark()
        assert file.mark() == mark
        os.utime(image, ns=(0, mark + 1))
        assert file.mark() != mark


def test_cache_is_bounded_and_used() -> None:
    source = numbered(64)
    reader = BlockReader(source, cache_blocks=4)
    for block in (1, 2, 3, 4, 1, 5, 1):
        assert reader.read(block)[:8] == block.to_bytes(8, "little")
    assert (source.calls, reader.counters.reads, reader.counters.bytes) == (5, 5, 5 * BLOCK)
    reader.read(2)
    assert source.reads[2] == 2
    assert reader.cached(2)
    assert not reader.cached(63)


def test_fresh_reads_pass_the_cache() -> None:
    source = numbered(4)
    reader = BlockReader(source)
    reader.read(1)
    source.data[1] = b"x" * BLOCK
    assert reader.read(1)[:1] != b"x"
    assert reader.read_fresh(1)[:1] == b"x"
    assert reader.read(1)[:1] == b"x"


def test_neighbours_are_read_at_once_and_only_what_was_asked_for_is_kept() -> None:
    source = numbered(1000)
    reader = BlockReader(source)
    reader.prefetch([5, 3, 9, 500, 501, 2000, -1])
    assert source.calls == 2
    assert [block for block in range(1000) if reader.cached(block)] == [3, 5, 9, 500, 501]
    assert reader.read(9)[:8] == (9).to_bytes(8, "little")
    assert source.calls == 2


def test_read_ahead_leaves_out_what_is_there() -> None:
    source = numbered(1000)
    reader = BlockReader(source)
    reader.prefetch([10, 20])
    reader.prefetch([10, 20, 30, 60])
    reader.prefetch([10, 700])
    assert source.reads[10] == source.reads[20] == 1
    assert not reader.cached(700), "one block alone is left to the read itself"


def test_read_ahead_does_not_outrun_the_cache() -> None:
    source = numbered(1000)
    reader = BlockReader(source, cache_blocks=10)
    reader.prefetch(range(0, 1000, 2))
    assert sum(reader.cached(block) for block in range(1000)) == 10
    assert reader.cached(0)


def test_depth_follows_the_latency() -> None:
    clock, source = Clock(), numbered(10_000)
    with BlockReader(source, clock=clock) as reader:
        clock.step = 0.0001
        reader.read(0)
        assert reader.depth == 1
        clock.step = 0.010
        reader.read(1)
        assert reader.depth == 16
        clock.step = 0.0
        reader.prefetch(range(100, 5000, 50))
        assert all(reader.read(n)[:8] == n.to_bytes(8, "little") for n in range(100, 5000, 50))
        assert source.calls == 2 + 98
        for block in range(2, 60):
            reader.read(block)
        assert reader.depth == 1
    assert source.closed


class BadBlock(MemorySource):
    def read(self, block: int, count: int = 1) -> bytes:
        if block <= 7 < block + count:
            raise PoolFailed("metadata block 7 cannot be read")
        return super().read(block, count)


def test_a_bad_block_hurts_only_who_wants_it() -> None:
    reader = BlockReader(BadBlock({}, 100))
    reader.prefetch([6, 7, 8, 50])
    assert reader.read(6) == reader.read(8) == bytes(BLOCK)
    assert reader.cached(50)
    with pytest.raises(PoolFailed, match="block 7"):
        reader.read(7)


def test_a_difference_reads_what_differs_and_not_what_is_mapped() -> None:
    image = Image(blocks=8192, data_blocks=1 << 20)
    base = {block: block for block in range(8000)}
    changed = {**base, 4000: 50_000, 7000: 50_001}
    taller = Shape(6, 3)
    old = image.mapping_tree(base, taller)
    new = image.mapping_tree(changed, taller)
    other = image.mapping_tree(changed, Shape(6, 2))
    for root, most in ((new, 64), (other, 160)):
        source = MemorySource(image.written, image.blocks)
        reader = BlockReader(source)
        found = list(mapping_difference(NodeReader(reader), old, root))
        assert [(change.start, change.old, change.new) for change in found] == [
            (4000, 4000, 50_000),
            (7000, 7000, 50_001),
        ]
        assert sum(source.reads.values()) < len(image.written) // 4
        assert reader.counters.reads <= most


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_a_stream_gives_each_block_once_and_reads_in_runs(seconds: float) -> None:
    clock = Clock()
    source = numbered(2000)
    reader = BlockReader(source, clock=clock)
    clock.step = seconds
    for block in range(5):
        reader.read(block)
    source.reads.clear()
    wanted = [7, 1999, 3, 7, 40, 41, *range(500, 700), 1000, 1900]
    found = {block: bytes(data) for block, data in reader.stream(wanted)}
    assert found == {block: block.to_bytes(8, "little") * 512 for block in wanted}
    assert source.calls < 5 + 12
    assert {source.reads[block] for block in wanted} == {1}
    list(reader.stream([1999, 1900]))
    assert source.reads[1999] == source.reads[1900] == 1  # still at hand
    reader.close()


@pytest.mark.parametrize("block", [-1, 64, 2**63])
def test_a_stream_of_what_lies_outside_is_an_error(block: int) -> None:
    with pytest.raises(PoolFailed, match="outside"):
        list(BlockReader(numbered(64)).stream([5, block]))


def test_a_bad_block_beside_what_is_wanted_does_not_matter() -> None:
    class Bad(MemorySource):
        def read(self, block: int, count: int = 1) -> bytes:
            if block <= 9 < block + count:
                raise PoolFailed("metadata block 9 cannot be read")
            return super().read(block, count)

    reader = BlockReader(Bad(numbered(64).data, 64))
    assert [block for block, _ in reader.stream([10, 12])] == [10, 12]
    with pytest.raises(PoolFailed, match="block 9 cannot be read"):
        list(reader.stream([10, 9]))


def test_usage_of_a_chain_reads_no_node_twice() -> None:
    """Layers on one image, each with a change: what they share is not read at all, the rest once."""
    image = Image(blocks=8192)
    devices = {0: {block: block for block in range(0, 12_000, 2)}}
    for layer in range(1, 60):
        devices[layer] = {**devices[layer - 1], layer * 150: 100_000 + layer, layer * 150 + 2: 200_000 + layer}
    source = image.finish(image.devices(devices, {}, Shape(50, 50)))
    nodes = len(image.written)
    for _ in range(2):
        source.reads.clear()
        with Books(source) as books:
            found = books.layers([(layer, layer - 1 if layer else None) for layer in devices])
        assert [usage.own_blocks for usage in found.values()] == [0] + [2] * 59
        assert source.calls < nodes // 4


def test_a_disk_that_is_slow_no_more_is_found_out() -> None:
    clock = Clock()
    reader = BlockReader(numbered(4000), clock=clock)
    clock.step = 0.02
    for block in range(5):
        reader.read(block)
    assert reader.depth > 1
    list(reader.stream(range(100, 2000, 40)))
    assert reader.depth > 1
    clock.step = 0.0
    list(reader.stream(range(2000, 4000, 40)))
    assert reader.depth == 1
    reader.close()
