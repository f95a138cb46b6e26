"""Metadata snapshots: always released, leftovers told from other people's, and reading a pool that is written to."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.kernel.metadata.pool import BLOCK, RandomPool, thin_ls
from thinpool.dm import ThinPool
from thinpool.dm.device import swap_table
from thinpool.dm.thin import pool_status
from thinpool.errors import DeviceMapperError, PoolFailed
from thinpool.metadata import (
    Books,
    metadata_snapshot,
    pinned_books,
    read_books,
    read_superblock,
    release_leftover,
)

pytestmark = pytest.mark.kernel

DiskFactory = Callable[[int], Path]


@pytest.fixture
def pool(disk_factory: DiskFactory, thin_check: Callable[[Path], None]) -> Iterator[RandomPool]:
    metadata = disk_factory(16 << 20)
    with RandomPool.active("pinned", metadata, random.Random(3), span=4000) as pool:
        first = pool.create()
        pool.write(first, range(0, 400, 2))
        second = pool.create(first)
        pool.write(second, range(100))
        yield pool
        assert held_root(pool) is None
    thin_check(metadata)


@pytest.fixture
def note(scratch: Path) -> Path:
    return scratch / "note"


def held_root(pool: RandomPool) -> int | None:
    return pool_status(pool.control, pool.name).held_root


def test_a_snapshot_holds_what_was_written_before(pool: RandomPool, note: Path) -> None:
    first, second = pool.devices
    with pinned_books(pool.control, pool.name, pool.metadata, note=note) as books:
        assert note.read_text() == f"{held_root(pool)}\n"
        expected = thin_ls(pool.metadata)
        pool.write(second, range(1000, 1300))
        pool.delete(first)
        pool.create()
        assert {device.thin_id: device.exclusive_blocks for device in books.usage()} == {
            key: numbers[1] for key, numbers in expected.items()
        }
        assert [device.thin_id for device in books.devices()] == [first, second]
        assert books.difference_blocks(second, first) == 100
    assert held_root(pool) is None
    assert not note.exists()


def test_it_is_released_when_the_block_fails(pool: RandomPool, note: Path) -> None:
    for kept in (None, note):
        with pytest.raises(ZeroDivisionError), metadata_snapshot(pool.control, pool.name, note=kept):
            raise ZeroDivisionError
        assert held_root(pool) is None
        assert not note.exists()


def test_somebody_elses_is_named_and_left_alone(pool: RandomPool, note: Path) -> None:
    with pool.reserved():
        held = held_root(pool)
        for kept in (None, note):
            with (
                pytest.raises(PoolFailed, match="somebody else has the metadata snapshot of pool pinned") as caught,
                metadata_snapshot(pool.control, pool.name, note=kept),
            ):
                raise AssertionError
            assert "release_metadata_snap" in str(caught.value.hint)
        assert not note.exists()
        assert not release_leftover(pool.control, pool.name, note=note)
        note.write_text("12345\n")
        assert not release_leftover(pool.control, pool.name, note=note)
        assert not note.exists()
        assert held_root(pool) == held


def test_a_release_by_somebody_else_is_noticed(pool: RandomPool, note: Path) -> None:
    def work(fails: bool) -> None:
        with metadata_snapshot(pool.control, pool.name, note=note):
            pool.message("release_metadata_snap")
            if fails:
                raise ZeroDivisionError

    with pytest.raises(PoolFailed, match="released by somebody else"):
        work(fails=False)
    assert not note.exists()
    with pytest.raises(ZeroDivisionError):
        work(fails=True)
    assert not note.exists()


def test_a_read_only_pool_says_so(pool: RandomPool, note: Path) -> None:
    (entry,) = pool.control.table(pool.name)
    assert isinstance(entry.target, ThinPool)
    frozen = attrs.evolve(entry.target, features=(*entry.target.features, "read_only"))
    swap_table(pool.control, pool.name, [attrs.evolve(entry, target=frozen)])
    with pytest.raises(PoolFailed, match="pool pinned takes no messages: it is in mode ro"):
        metadata_snapshot(pool.control, pool.name, note=note).__enter__()
    assert not note.exists()
    assert read_books(pool.metadata, lambda books: len(list(books.devices()))) == 2
    swap_table(pool.control, pool.name, [entry])


HOLDER = """
import sys
from pathlib import Path
from thinpool.dm import Control
from thinpool.metadata import metadata_snapshot
with Control() as control, metadata_snapshot(control, sys.argv[1], note=Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def killed_holder(pool: RandomPool, note: Path) -> None:
    command = [sys.executable, "-c", HOLDER, pool.name, str(note)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
    assert held_root(pool) is not None
    assert note.exists()


def test_what_a_killed_process_left_is_released(pool: RandomPool, note: Path) -> None:
    killed_holder(pool, note)
    assert release_leftover(pool.control, pool.name, note=note)
    assert held_root(pool) is None
    assert not release_leftover(pool.control, pool.name, note=note)

    killed_holder(pool, note)
    with pinned_books(pool.control, pool.name, pool.metadata, note=note) as books:
        assert books.superblock.held_root == held_root(pool)

    killed_holder(pool, note)
    note.write_text("?\n")
    assert release_leftover(pool.control, pool.name, note=note)

    killed_holder(pool, note)
    assert release_leftover(pool.control, pool.name)
    assert not release_leftover(pool.control, pool.name)
    assert not release_leftover(pool.control, pool.name, note=note)


def test_others_of_us_wait_for_their_turn(pool: RandomPool, note: Path) -> None:
    failures: list[BaseException] = []
    inside: list[int] = []

    def read() -> None:
        try:
            for _ in range(5):
                with metadata_snapshot(pool.control, pool.name, note=note):
                    inside.append(1)
                    assert not release_leftover(pool.control, pool.name, note=note)
                    assert sum(inside) == 1
                    inside.append(-1)
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(inside) == 40


def test_no_such_pool(pool: RandomPool, note: Path) -> None:
    with pytest.raises(DeviceMapperError), metadata_snapshot(pool.control, "nobody", note=note):
        raise AssertionError
    assert not note.exists()


def test_superblock_of_a_live_pool(pool: RandomPool) -> None:
    pool.message("set_transaction_id 0 77")
    superblock = read_superblock(pool.metadata)
    status = pool_status(pool.control, pool.name)
    assert superblock.transaction_id == status.transaction_id == 77
    assert superblock.data_block_size == BLOCK
    assert not superblock.needs_check
    assert superblock.data_space_map is not None
    assert superblock.data_space_map.allocated == status.data_used_blocks
    assert superblock.data_space_map.blocks == status.data_total_blocks
    assert superblock.metadata_space_map is not None
    assert superblock.metadata_space_map.blocks == status.metadata_total_blocks == 4096


def test_answers_hold_while_the_pool_is_written_to(pool: RandomPool, note: Path) -> None:
    """A writer commits all the time; what does not change must come out the same each time."""
    first, second = pool.devices
    busy = pool.create()
    done = threading.Event()

    def write() -> None:
        start = 0
        with pool.opened(busy) as fd:
            while not done.is_set():
                for block in range(start, start + 8):
                    os.pwritev(fd, [bytes_of_a_block], block % 4000 * BLOCK)
                os.fsync(fd)
                start += 8

    bytes_of_a_block = memoryview(pool.buffer)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            exclusive = read_books(
                pool.metadata,
                lambda books: (books.exclusive_blocks(first), books.exclusive_blocks(second)),
                pinned=lambda: metadata_snapshot(pool.control, pool.name, note=note),
            )
            assert exclusive == (50, 100)
            with pinned_books(pool.control, pool.name, pool.metadata, note=note) as books:
                assert books.difference_blocks(second, first) == 100
                assert [device.thin_id for device in books.usage()] == [first, second, busy]
    finally:
        done.set()
        writer.join()
    pool.message("set_transaction_id 0 1")
    with Books.open(pool.metadata) as books:
        assert books.exclusive_blocks(busy) == books.mapped_blocks(busy) > 0
