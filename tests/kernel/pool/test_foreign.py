"""A pool that somebody else made: used politely, never made, resized or removed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.kernel.conformance.layers import fill, told
from tests.kernel.pool.tools import mapped, node_of, run
from thinpool import Store
from thinpool.dm import Control
from thinpool.drivers.base import INTENT
from thinpool.errors import ConfigError, PoolFailed, ThinPoolError, ToolError
from thinpool.metadata import Books
from thinpool.pool.foreign import resolve
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

DiskFactory = Callable[[int], Path]
THEIRS = range(1, 6)
BLOCK = 128 << 10


@attrs.frozen
class Elsewhere:
    """A pool made with dmsetup, with five devices in it."""

    name: str
    data: Path
    metadata: Path

    def message(self, text: str) -> None:
        run("dmsetup", "message", self.name, "0", text)

    def table(self) -> str:
        return run("dmsetup", "table", self.name)

    def devices(self) -> dict[int, int]:
        """Mapped blocks by thin id."""
        run("dmsetup", "status", self.name)  # commits
        with Books.open(self.metadata) as books:
            return {device.thin_id: device.mapped_blocks for device in books.devices()}

    def transaction_id(self) -> int:
        return int(run("dmsetup", "status", "--noflush", self.name).split()[3])


@contextmanager
def made_elsewhere(name: str, disk_factory: DiskFactory, *features: str) -> Iterator[Elsewhere]:
    with made_on(name, disk_factory(1 << 30), disk_factory(16 << 20), *features) as pool:
        yield pool


@contextmanager
def made_on(name: str, data: Path, metadata: Path, *features: str) -> Iterator[Elsewhere]:
    pool = Elsewhere(name, data, metadata)
    words = " ".join([str(len(features)), *features])
    table = f"0 {(1 << 30) // 512} thin-pool {pool.metadata} {pool.data} {BLOCK // 512} 0 {words}"
    try:
        with mapped(name, table):
            for number in THEIRS:
                pool.message(f"create_thin {number}")
            pool.message("set_transaction_id 0 42")
            yield pool
    finally:
        run("thin_check", pool.metadata)


@pytest.fixture
def elsewhere(disk_factory: DiskFactory) -> Iterator[Elsewhere]:
    with made_elsewhere(f"vg-pool{os.getpid()}", disk_factory) as pool:
        yield pool


def options(pool: Elsewhere, named: str | None = None, **more: str) -> dict[str, str]:
    return {"dm.thinpooldev": named or pool.name, "dm.basesize": "256M"} | {f"dm.{key}": more[key] for key in more}


def handle_of(store: Store, name: str) -> int:
    with store.device(name) as device:
        return int(Path(f"/sys/block/{device.name}/dm/name").read_text().strip().rpartition("-")[2])


def test_layers_live_in_a_pool_made_elsewhere(scratch: Path, elsewhere: Elsewhere) -> None:
    table = elsewhere.table()
    with Store.open(scratch / "root", "devicemapper", options(elsewhere)) as store:
        store.prepare("work")
        with store.mount("work") as root:
            (root / "file").write_bytes(os.urandom(MIB))
        store.commit("done", "work")
        info = store.info()
        assert info.pool is not None
        assert (info.pool.name, info.pool.mode, info.pool.block_size) == (elsewhere.name, "rw", BLOCK)
        assert (info.pool.data_total, info.pool.metadata_total) == (1 << 30, 16 << 20)
        assert info.options["dm.thinpooldev"] == elsewhere.name
        assert "dm.blocksize" not in info.options
        assert store.usage("done").size >= MIB
        with pytest.raises(ConfigError, match="was made elsewhere"):
            store.grow(data=2 << 30)
        store.down()
        assert elsewhere.table() == table
        assert elsewhere.transaction_id() == 42
        assert elsewhere.devices().keys() > set(THEIRS)
    with Store.open(scratch / "root") as store:
        with store.mount("done") as root:
            assert os.listdir(root) == ["file"]
        store.remove("done")
        store.down()
    assert {number: blocks for number, blocks in elsewhere.devices().items() if number in THEIRS} == dict.fromkeys(
        THEIRS, 0
    )
    assert len(elsewhere.devices()) == len(THEIRS) + 1  # the base


def test_down_lets_go_of_our_devices_alone(scratch: Path, elsewhere: Elsewhere) -> None:
    pool = node_of(elsewhere.name)
    with mapped("theirs", f"0 2048 thin {pool} 1"):
        with Store.open(scratch / "root", "devicemapper", options(elsewhere)) as store:
            store.prepare("work")
            store.mount("work")
            store.down()
        names = run("dmsetup", "ls")
        assert "theirs" in names
        assert elsewhere.name in names
        assert "thinpool-" not in names


def test_every_name_of_the_pool_is_understood(scratch: Path, elsewhere: Elsewhere) -> None:
    link = scratch / "link"
    kernel_name = node_of(elsewhere.name).name
    link.symlink_to(f"/dev/{kernel_name}")
    over = f"0 {(1 << 30) // 512} linear /dev/{kernel_name} 0"
    with mapped("my--group-the--pool", over), Control() as control:
        names = [elsewhere.name, f"/dev/mapper/{elsewhere.name}", kernel_name, str(link), "my--group-the--pool"]
        for given in [*names, "/dev/my-group/the-pool"]:  # LVM makes no such link while the pool has active volumes
            assert resolve(control, given) == elsewhere.name
    with Store.open(scratch / "root", "devicemapper", options(elsewhere, str(link))) as store:
        assert store.info().options["dm.thinpooldev"] == elsewhere.name
    with Store.open(scratch / "root", options=options(elsewhere, f"/dev/{kernel_name}")) as store:
        store.down()


@pytest.mark.parametrize("given", ["missing", "/dev/missing/pool", "dm-99", "{linear}", "/dev/null", "{data}"])
def test_what_is_no_pool(scratch: Path, elsewhere: Elsewhere, given: str) -> None:
    with mapped("plain", "0 2048 error"):
        named = given.format(linear="plain", data=elsewhere.data)
        with pytest.raises(ConfigError, match=r"dm\.thinpooldev"):
            Store.open(scratch / "root", "devicemapper", options(elsewhere, named))
    assert not (scratch / "root").exists()
    assert elsewhere.devices().keys() == set(THEIRS)


def test_numbers_that_others_took_are_skipped(scratch: Path, elsewhere: Elsewhere) -> None:
    with Store.open(scratch / "root", "devicemapper", options(elsewhere)) as store:
        store.prepare("a")
        first = handle_of(store, "a")
        assert first > 1 << 20
        for number in (first + 1, first + 2):
            elsewhere.message(f"create_thin {number}")
        store.prepare("b")
        assert handle_of(store, "b") == first + 3
        store.remove("b")
        store.remove("a")
        store.down()
    assert {first + 1, first + 2} <= elsewhere.devices().keys()


def test_two_stores_share_a_pool(scratch: Path, elsewhere: Elsewhere) -> None:
    for name in ("one", "two"):
        Store.open(scratch / name, "devicemapper", options(elsewhere)).close()
    with Store.open(scratch / "one") as one, Store.open(scratch / "two") as two:
        for number in range(3):
            for store in (one, two):
                store.prepare(f"layer-{number}")
                with store.mount(f"layer-{number}") as root:
                    (root / "whose").write_text(store.root.name)
        for store in (one, two):
            for number in range(3):
                with store.mount(f"layer-{number}") as root:
                    assert (root / "whose").read_text() == store.root.name
        one.down()
        with two.mount("layer-0") as root:
            assert (root / "whose").read_text() == "two"
        two.down()


def test_recovery_deletes_only_what_is_ours(scratch: Path, elsewhere: Elsewhere) -> None:
    """A process may die after it found its number taken, or after it used it: the records look the same."""
    with Store.open(scratch / "root", "devicemapper", options(elsewhere)) as store:
        store.prepare("a")
        number = handle_of(store, "a") + 1
        base = next(thin_id for thin_id in elsewhere.devices() if thin_id > 5)
        state = store._session.state
        elsewhere.message(f"create_thin {number}")
        state.put(INTENT, str(number))
        store.up()
        assert number in elsewhere.devices()
        elsewhere.message(f"create_snap {number + 1} {base}")
        state.put(INTENT, str(number + 1))
        store.up()
        assert number + 1 not in elsewhere.devices()
        store.remove("a")
        store.down()


def test_a_store_that_could_not_be_made_leaves_no_device(scratch: Path, elsewhere: Elsewhere) -> None:
    with pytest.raises(ToolError):
        Store.open(scratch / "root", "devicemapper", options(elsewhere, mkfsarg="--nonsense"))
    assert elsewhere.devices().keys() == set(THEIRS)
    assert not (scratch / "root").exists()


def test_a_base_that_was_begun_is_made_anew(scratch: Path, elsewhere: Elsewhere) -> None:
    code = (
        "import os, sys\n"
        "import thinpool.drivers.thinbase as driver\n"
        "from thinpool import Store\n"
        "driver.make_base = lambda *_: os._exit(9)\n"
        "Store.open(sys.argv[1], 'devicemapper', eval(sys.argv[2]))\n"
    )
    given = options(elsewhere)
    assert subprocess.run(["python", "-c", code, scratch / "root", repr(given)], check=False).returncode == 9
    assert len(elsewhere.devices()) == len(THEIRS) + 1
    with Store.open(scratch / "root", "devicemapper", given) as store:
        store.prepare("work")
        with store.mount("work") as root:
            assert os.listdir(root) == []
        store.remove("work")
        store.down()
    assert len(elsewhere.devices()) == len(THEIRS) + 1


def test_a_pool_that_does_not_zero(scratch: Path, disk_factory: DiskFactory) -> None:
    with made_elsewhere(f"vg-raw{os.getpid()}", disk_factory, "skip_block_zeroing") as pool:
        with pool.data.open("r+b", 0) as disk:
            for offset in range(0, 128 * MIB, MIB):
                os.pwrite(disk.fileno(), b"\xff" * MIB, offset)
            os.fsync(disk.fileno())
        with Store.open(scratch / "root", "devicemapper", options(pool)) as store:
            base = max(pool.devices())
            assert pool.devices()[base] * BLOCK > 8 * MIB  # inode tables and journal are written
            assert any("does not zero" in warning for warning in store.info().warnings)
            store.prepare("work", size="512M")
            with store.mount("work") as root:
                for number in range(200):
                    (root / str(number)).write_bytes(os.urandom(10_000))
            with store.device("work") as device:
                run("e2fsck", "-fn", device)
            store.down()


@pytest.mark.parametrize("features", [(), ("skip_block_zeroing",)])
def test_comparisons_read_what_changed(scratch: Path, disk_factory: DiskFactory, features: tuple[str, ...]) -> None:
    """On data in two pieces, as LVM's, full of what somebody left there; the others' devices are left alone."""
    data, metadata, half = disk_factory(1 << 30), disk_factory(16 << 20), (512 << 20) // 512
    with data.open("r+b", 0) as disk:
        for offset in range(0, 96 * MIB, MIB):
            os.pwrite(disk.fileno(), b"\xff" * MIB, offset)
        os.fsync(disk.fileno())
    pieces = f"0 {half} linear {data} {half}\n{half} {half} linear {data} 0"
    name = f"vg-pieces{os.getpid()}"
    with (
        mapped(name, pieces),
        made_on(f"vg-read{os.getpid()}", node_of(name), metadata, "no_discard_passdown", *features) as pool,
        Store.open(scratch / "root", "devicemapper", options(pool)) as store,
    ):

        def change(root: Path) -> None:
            shutil.rmtree(root / "d3")
            (root / "d1/f7").write_text("changed")
            (root / "d2").rename(root / "moved")

        fill(store, "base", plant)
        fill(store, "child", change, "base")
        found = store.changes("child", method="fast")
        assert found.method == "fast"
        assert told(found) == told(store.changes("child", method="walk"))
        store.down()


def plant(root: Path) -> None:
    for folder in range(5):
        (root / f"d{folder}").mkdir()
        for number in range(20):
            (root / f"d{folder}/f{number}").write_bytes(os.urandom(5000))


def test_a_pool_that_is_gone(scratch: Path, disk_factory: DiskFactory) -> None:
    with made_elsewhere(f"vg-gone{os.getpid()}", disk_factory) as pool:
        Store.open(scratch / "root", "devicemapper", options(pool)).close()
    with Store.open(scratch / "root") as store:
        info = store.info().pool
        assert info is not None
        assert (info.mode, info.data_total) == ("inactive", 0)
        with pytest.raises(PoolFailed, match="is not active") as caught:
            store.prepare("work")
        assert "lvchange" in (caught.value.hint or "")
        with pytest.raises(ThinPoolError):
            store.usage("work")
        store.down()
