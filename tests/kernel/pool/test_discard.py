"""What a removed layer alone had goes back to the loop file; what others have stays."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from thinpool import Store
from thinpool.dm import thin
from thinpool.metadata import Books
from thinpool.pool import ThinPool
from thinpool.pool.discard import freed_by_deletion, give_back, own_ranges
from thinpool.units import KIB, MIB

pytestmark = pytest.mark.kernel

BLOCK = 64 * KIB


def occupied(store: Store) -> int:
    return os.stat(store.root / "devicemapper/data").st_blocks * 512


def fill(store: Store, name: str, file: str, size: int) -> str:
    digest = hashlib.sha256()
    with store.mount(name) as root, (root / file).open("wb", 0) as out:
        for _ in range(size // MIB):
            data = os.urandom(MIB)
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


@pytest.mark.parametrize("wanted", [True, False])
def test_a_removed_layer_gives_its_space_back(store: Store, wanted: bool) -> None:
    with Store.open(store.root, options={"dm.blkdiscard": str(wanted)}) as again:
        again.prepare("parent")
        digest = fill(again, "parent", "kept", 48 * MIB)
        again.commit("base", "parent")
        before = occupied(again)
        again.prepare("child", "base")
        fill(again, "child", "gone", 64 * MIB)
        assert occupied(again) > before + 60 * MIB
        again.remove("child")
        assert (occupied(again) < before + 8 * MIB) is wanted
        with again.mount("base") as root:
            assert hashlib.sha256((root / "kept").read_bytes()).hexdigest() == digest
        pool = again.info().pool
        assert pool is not None
        assert pool.data_used < 60 * MIB
        again.down()


def path_of(pool: ThinPool, number: int) -> Path:
    return Path(f"/dev/dm-{pool.thins.activate(number, 64 * MIB).minor}")


def write(device: Path, blocks: Iterable[int]) -> dict[int, bytes]:
    written = {number: os.urandom(KIB) for number in blocks}
    fd = os.open(device, os.O_WRONLY)
    try:
        for number, data in written.items():
            os.pwrite(fd, data, number * BLOCK)
        os.fsync(fd)
    finally:
        os.close(fd)
    return written


def test_the_ranges_are_what_a_device_alone_has(pool: ThinPool) -> None:
    """Blocks written before a snapshot are shared; those written after are each device's own."""
    thins = pool.thins
    thins.create(1)
    write(path_of(pool, 1), [0, 1, 2, 10])
    thins.snapshot(2, 1, quiesce=True)
    write(path_of(pool, 2), [1, 20, 21, 22, 400])
    metadata = pool.table().metadata
    assert not give_back(thins, metadata, 2)  # in use, and little
    for number in (1, 2):
        assert thins.deactivate(number)
    assert list(own_ranges(metadata, 2)) == [(BLOCK, BLOCK), (20 * BLOCK, 3 * BLOCK), (400 * BLOCK, BLOCK)]
    assert list(own_ranges(metadata, 1)) == [(BLOCK, BLOCK)]
    assert freed_by_deletion(metadata, 2) == 5 * BLOCK
    assert not give_back(thins, metadata, 2)  # little
    assert not give_back(thins, metadata, 3)  # none


def test_a_discard_takes_nothing_from_others(pool: ThinPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinpool.pool.discard.WORTHWHILE", BLOCK)
    thins = pool.thins
    thins.create(1)
    written = write(path_of(pool, 1), range(0, 64, 2))
    thins.snapshot(2, 1, quiesce=True)
    write(path_of(pool, 2), range(32))
    for number in (1, 2):
        assert thins.deactivate(number)
    assert give_back(thins, pool.table().metadata, 2)
    assert not thins.is_active(2)
    thin.pool_status(pool._control, pool.name, commit=True)
    with Books.open(pool.table().metadata) as books:
        assert books.mapped_blocks(2) == 16  # what it shares
    assert thins.delete(2)
    path = path_of(pool, 1)
    for number, data in written.items():
        assert path.read_bytes()[number * BLOCK : number * BLOCK + KIB] == data
    assert thins.deactivate(1)


def test_a_layer_that_was_written_while_it_was_left_active(store: Store) -> None:
    store.prepare("work")
    mounted = store.mount("work")
    (mounted.target / "a").write_bytes(os.urandom(64 * MIB))
    store.down()
    before = occupied(store)
    with Store.open(store.root) as again:
        again.remove("work")
        assert occupied(again) < before - 60 * MIB


def test_little_is_not_noted(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "a").write_bytes(b"little")
    store.checkpoint("instant", "work")
    notes = store.root / "devicemapper/written"
    assert not notes.exists() or b"1" not in notes.read_bytes()


def test_removal_of_much_is_followed_by_a_sound_pool(store: Store, thin_check: Callable[[Path], None]) -> None:
    store.prepare("work")
    fill(store, "work", "a", 100 * MIB)
    store.checkpoint("instant", "work")
    fill(store, "work", "b", 40 * MIB)
    store.remove("work")
    store.remove("instant")
    assert occupied(store) < 8 * MIB
    assert b"1" not in (store.root / "devicemapper/written").read_bytes()
    store.down()
    thin_check(store.root / "devicemapper/metadata")
