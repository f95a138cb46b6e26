"""The life of a pool on a real kernel: activated and deactivated, known again, grown online."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.kernel.pool.tools import run
from thinpool import Store
from thinpool.dm import Control
from thinpool.errors import ConfigError, DeviceMapperError, PoolFailed
from thinpool.metadata import Books
from thinpool.pool import PoolIdentity, PoolOptions, ThinPool
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

SMALL = {"dm.loopdatasize": "1G", "dm.loopmetadatasize": "16M", "dm.basesize": "256M"}
DiskFactory = Callable[[int], Path]


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


@attrs.define
class Recorded:
    """A pool, and the identities that it had recorded."""

    control: Control
    folder: Path
    options: PoolOptions = attrs.field(factory=lambda: PoolOptions.parse(SMALL))
    identities: list[PoolIdentity] = attrs.field(factory=list)

    def pool(self, identity: PoolIdentity | None = None) -> ThinPool:
        known = identity or (self.identities[-1] if self.identities else None)
        name = f"thinpool-life{os.getpid()}"
        return ThinPool(self.control, self.folder, name, self.options, known, remember=self.identities.append)


@pytest.fixture
def recorded(scratch: Path) -> Iterator[Recorded]:
    with Control() as control:
        made = Recorded(control, scratch)
        pool = made.pool()
        made.identities.append(pool.create(begun=False))
        pool.deactivate()
        yield made


def test_the_transaction_id_moves_with_each_activation_and_deactivation(recorded: Recorded) -> None:
    before = recorded.identities[-1].transaction_id
    pool = recorded.pool()
    assert pool.activate()
    assert pool.status().transaction_id == before + 1
    assert not recorded.pool().activate()
    assert pool.status().transaction_id == before + 1
    pool.deactivate()
    assert recorded.identities[-1] == attrs.evolve(recorded.identities[0], transaction_id=before + 2)
    assert recorded.pool().status().transaction_id == before + 2


@pytest.mark.parametrize("taken", ["at rest", "in use"])
def test_an_older_copy_of_the_metadata_is_refused(recorded: Recorded, taken: str) -> None:
    metadata, copied = recorded.folder / "metadata", recorded.folder / "copy"
    pool = recorded.pool()
    if taken == "at rest":
        copy(metadata, copied)
    pool.activate()
    if taken == "in use":
        copy(metadata, copied)
    pool.thins.create(1)
    pool.deactivate()
    latest = recorded.folder / "latest"
    copy(metadata, latest)
    copy(copied, metadata)
    with pytest.raises(PoolFailed, match="is older than the records"):
        recorded.pool().activate()
    copy(latest, metadata)
    recorded.pool().activate()
    recorded.pool().deactivate()


def test_older_records_are_refused(recorded: Recorded) -> None:
    old = recorded.identities[-1]
    pool = recorded.pool()
    pool.activate()
    pool.deactivate()
    with pytest.raises(PoolFailed, match="is newer than the records"):
        recorded.pool(old).activate()


def test_the_metadata_of_another_pool_is_refused(recorded: Recorded) -> None:
    with pytest.raises(PoolFailed, match="of another pool"):
        recorded.pool(attrs.evolve(recorded.identities[-1], uuid="0" * 32)).activate()


class Killed(Exception):
    """Stands for the death of the process at a step."""


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_crash_at_any_step_of_a_move_is_accepted(recorded: Recorded, step: int) -> None:
    """Two moves of two records each: dying at any of them leaves a pool that activates."""
    count = 0

    def remember(identity: PoolIdentity) -> None:
        nonlocal count
        if count == step:
            raise Killed
        count += 1
        recorded.identities.append(identity)

    pool = recorded.pool()
    pool._remember = remember
    with pytest.raises(Killed):
        pool.activate()
        pool.deactivate()
    if pool.is_active():
        subprocess.run(["dmsetup", "remove", "--noudevsync", pool.name], check=True)  # as a reboot
    recorded.pool().activate()
    recorded.pool().deactivate()
    assert recorded.identities[-1].pending is None


def test_a_pool_that_was_left_suspended_goes_on(recorded: Recorded) -> None:
    pool = recorded.pool()
    pool.activate()
    recorded.control.suspend(pool.name)
    assert not recorded.pool().activate()
    assert not recorded.control.info(pool.name).suspended
    pool.deactivate()


# -- growth


def test_loop_files_grow_online(recorded: Recorded, thin_check: Callable[[Path], None]) -> None:
    pool = recorded.pool()
    pool.activate()
    pool.thins.create(1)
    device = pool.thins.activate(1, 64 << 20)
    pool.grow(2 << 30, 32 << 20)
    status = pool.status()
    assert (status.data_total, status.metadata_total) == (2 << 30, 32 << 20)
    with Path(f"/dev/dm-{device.minor}").open("r+b", 0) as file:
        file.write(bytes(4096))
    assert pool.options.in_force()["dm.loopdatasize"] == "2G"
    assert pool.thins.deactivate(1)
    pool.deactivate()
    at_rest = pool.status()
    assert (at_rest.mode, at_rest.data_total, at_rest.metadata_total) == ("inactive", 2 << 30, 32 << 20)
    assert at_rest.data_used == 64 << 10
    thin_check(recorded.folder / "metadata")


@pytest.mark.parametrize(
    ("data", "metadata", "said"),
    [
        (1 << 29, None, "data size 512M is less than the 1G there are"),
        (None, 8 << 20, "metadata size 8M is less than the 16M there are"),
        (None, 17 << 30, "at most 16G"),
        ((1 << 30) + 1, None, "in steps of 512"),
        (1 << 50, None, "more metadata"),
        (1 << 63, None, "at most 1E"),
    ],
)
def test_sizes_that_a_pool_cannot_have(recorded: Recorded, data: int | None, metadata: int | None, said: str) -> None:
    pool = recorded.pool()
    pool.activate()
    before = pool.status()
    with pytest.raises(ConfigError, match=said):
        pool.grow(data, metadata)
    assert pool.status() == before
    assert os.stat(recorded.folder / "data").st_size == 1 << 30
    pool.deactivate()


def test_growth_that_was_cut_short_is_accepted_and_finished(recorded: Recorded) -> None:
    """The file is larger, and neither table nor records know it."""
    pool = recorded.pool()
    pool.activate()
    os.truncate(recorded.folder / "data", 2 << 30)
    recorded.pool().grow(2 << 30, None)
    assert pool.status().data_total == 2 << 30
    os.truncate(recorded.folder / "data", 3 << 30)
    pool.deactivate()
    again = recorded.pool()
    again.activate()
    assert again.status().data_total == 3 << 30
    with pytest.raises(ConfigError, match="less than the 3G there are"):
        again.grow(2 << 30, None)
    again.deactivate()


def test_metadata_grow_first_as_data_need_them(recorded: Recorded, thin_check: Callable[[Path], None]) -> None:
    pool = recorded.pool()
    pool.activate()
    with pytest.raises(ConfigError, match=r"of data need .* more metadata to count") as caught:
        pool.grow(8 << 40, None)
    assert caught.value.hint == "grow the metadata too"
    pool.grow(8 << 40, 256 << 20)
    status = pool.status()
    assert (status.data_total, status.metadata_total, status.mode) == (8 << 40, 256 << 20, "rw")
    pool.thins.create(1)
    pool.deactivate()
    thin_check(recorded.folder / "metadata")


def test_a_file_that_grew_by_more_than_can_be_counted(recorded: Recorded) -> None:
    """By hand, or by a growth that died: the kernel would leave a pool that needs a check."""
    os.truncate(recorded.folder / "data", 8 << 40)
    pool = recorded.pool()
    pool.activate()
    status = pool.status()
    assert (status.data_total, status.mode) == (1 << 30, "rw")
    pool.grow(8 << 40, 256 << 20)
    assert pool.status().data_total == 8 << 40
    pool.deactivate()


def test_growth_that_the_kernel_refuses_is_undone(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DeviceMapperError("DM_TABLE_LOAD", "pool", errno.ENOMEM, "no memory")

    pool = recorded.pool()
    pool.activate()
    with monkeypatch.context() as patched:
        patched.setattr("thinpool.pool.pool.swap_table", refuse)
        with pytest.raises(PoolFailed, match="goes on as it was: no memory"):
            pool.grow(2 << 30, None)
    assert os.stat(recorded.folder / "data").st_size == 1 << 30
    assert pool.options == recorded.options
    pool.thins.create(1)
    pool.grow(2 << 30, None)
    assert pool.status().data_total == 2 << 30
    pool.deactivate()


def test_block_devices_grow_to_their_size(scratch: Path, disk_factory: DiskFactory) -> None:
    data, metadata = disk_factory(1 << 30), disk_factory(32 << 20)
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "256M"}
    with Store.open(scratch / "root", "devicemapper", options) as store:
        with pytest.raises(ConfigError, match="is not the 1G of /dev/"):
            store.grow(data=2 << 30)
        image = Path(f"/sys/block/{data.name}/loop/backing_file").read_text().strip()
        os.truncate(image, 2 << 30)
        subprocess.run(["losetup", "--set-capacity", data], check=True)
        store.grow(data=2 << 30)
        pool = store.info().pool
        assert pool is not None
        assert pool.data_total == 2 << 30
        assert "dm.loopdatasize" not in store.info().options
        store.down()
        os.truncate(image, 1 << 30)
        subprocess.run(["losetup", "--set-capacity", data], check=True)
        with pytest.raises(PoolFailed, match="it was cut"):
            store.up()
        os.truncate(image, 2 << 30)
        subprocess.run(["losetup", "--set-capacity", data], check=True)
        store.up()
        store.down()


# -- options in force


def test_options_are_in_the_table_and_change_while_the_pool_is_active(store: Store) -> None:
    def table() -> str:
        pool = store.info().pool
        assert pool is not None
        return subprocess.run(["dmsetup", "table", pool.name], check=True, capture_output=True, text=True).stdout

    assert table().split()[6:] == ["6553", "1", "error_if_no_space"]
    changed = {"dm.error_if_no_space": "false", "dm.blkdiscard": "false", "dm.thinp_autoextend_threshold": "50%"}
    Store.open(store.root, options=changed).close()
    assert table().split()[6:] == ["16384", "1", "no_discard_passdown"]
    store.down()
    with Store.open(store.root) as again:
        again.up()
    assert table().split()[6:] == ["16384", "1", "no_discard_passdown"]


def test_the_warning_about_loop_files_is_given_once(scratch: Path) -> None:
    with Store.open(scratch / "root", "devicemapper", SMALL) as store:
        assert sum("loop files, which are for trying" in warning for warning in store.info().warnings) == 1
    with Store.open(scratch / "root", "devicemapper", SMALL) as store:
        assert not any("trying" in warning for warning in store.info().warnings)
        store.down()


def test_a_file_system_below_that_is_too_small_is_a_warning(scratch: Path) -> None:
    with Store.open(
        scratch / "root", "devicemapper", SMALL | {"dm.loopdatasize": "4T", "dm.loopmetadatasize": "64M"}
    ) as store:
        assert any("the pool may take 4.00 TiB more" in warning for warning in store.info().warnings)
        assert any("of metadata are few" in warning for warning in store.info().warnings)
        store.down()


def test_a_larger_base_size_is_for_layers_from_then_on(store: Store) -> None:
    assert store.prepare("before").size == 512 * MIB
    with Store.open(store.root, options={"dm.basesize": "1G"}) as again:
        assert again.prepare("after").size == 1 << 30
        with again.mount("after") as root:
            space = os.statvfs(root)
            assert space.f_blocks * space.f_frsize > 900 * MIB
        again.commit("done", "after")
        assert again.prepare("child", "done").size == 1 << 30
        assert again.stat("before").size == 512 * MIB


def test_a_device_may_be_named_by_another_path(scratch: Path, disk_factory: DiskFactory) -> None:
    data, metadata, other = disk_factory(1 << 30), disk_factory(32 << 20), disk_factory(1 << 30)
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "256M"}
    Store.open(scratch / "root", "devicemapper", options).close()
    (scratch / "link").symlink_to(data)
    with Store.open(scratch / "root", options={"dm.datadev": str(scratch / "link")}) as store:
        assert store.info().options["dm.datadev"] == str(data)
        with pytest.raises(ConfigError, match=r"dm\.datadev is .* fixed when a store is made"):
            Store.open(scratch / "root", options={"dm.datadev": str(other)})
        store.down()


def test_a_pool_is_made_by_the_one_who_finishes_it(scratch: Path) -> None:
    """Killed while it makes the base, once the pool is recorded: the base is made anew, nothing of the old is left."""
    code = (
        "import os, sys\n"
        "import thinpool.drivers.thinbase as base\n"
        "from thinpool import Store\n"
        "base.make_base = lambda *_: os._exit(9)\n"
        "Store.open(sys.argv[1], 'devicemapper', eval(sys.argv[2]))\n"
    )
    assert subprocess.run(["python", "-c", code, scratch / "root", repr(SMALL)], check=False).returncode == 9
    with Store.open(scratch / "root", "devicemapper", SMALL) as store:
        store.prepare("work")
        with store.mount("work") as root:
            assert os.listdir(root) == []
        metadata = store._session.driver._pool.table().metadata  # type: ignore[attr-defined]
        with Books.open(metadata) as books:
            assert len(list(books.devices())) == 2
        store.down()


def test_a_metadata_snapshot_that_a_power_cut_left_is_released(store: Store) -> None:
    """Its note was in memory alone, and nobody who reserved it can be left."""
    pool = store.info().pool
    assert pool is not None
    run("dmsetup", "message", pool.name, "0", "reserve_metadata_snap")
    store.down()
    store.up()
    assert run("dmsetup", "status", pool.name).split()[6] == "-"
