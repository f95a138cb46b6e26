"""Bad input to `Store.open` and the driver: a clear error, nothing changed, nothing left behind."""

import hashlib
import io
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.test_store import archive
from thinpool import Store
from thinpool.errors import (
    ConfigError,
    DeviceUnsafe,
    DriverUnsupported,
    NotPermitted,
    PoolFailed,
    PoolFull,
    StateError,
    StoreNotFound,
    ThinPoolError,
)

pytestmark = pytest.mark.kernel

SMALL = {"dm.loopdatasize": "1G", "dm.loopmetadatasize": "16M", "dm.basesize": "256M"}
DiskFactory = Callable[[int], Path]


def fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize(
    "options",
    [
        {"dm.nonsense": "1"},
        {"dm.basesize": "big"},
        {"dm.basesize": "-1"},
        {"dm.blocksize": "63K"},
        {"dm.blocksize": "2G"},
        {"dm.loopmetadatasize": "17G"},
        {"dm.fs": "ntfs"},
        {"dm.min_free_space": "101%"},
        {"dm.use_deferred_removal": "perhaps"},
        {"dm.datadev": "/dev/null"},
        {"dm.datadev": "/dev/loop8", "dm.metadatadev": "/dev/loop9", "dm.loopdatasize": "1G"},
        {"dm.thinpooldev": "pool", "dm.datadev": "/dev/loop8", "dm.metadatadev": "/dev/loop9"},
        {"dm.thinp_autoextend_threshold": "0"},
        {"overlay.size": "1G"},
    ],
)
def test_bad_options_name_the_key_and_leave_nothing(scratch: Path, options: dict[str, str]) -> None:
    key = next(iter(options))
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        Store.open(scratch / "root", "devicemapper", options)
    assert not (scratch / "root").exists()
    with Store.open(scratch / "root", "devicemapper", SMALL) as store:
        store.down()


def test_unknown_driver(scratch: Path) -> None:
    with pytest.raises(ConfigError, match="zfs"):
        Store.open(scratch / "root", "zfs")


def test_a_driver_that_cannot_work_here_says_why(scratch: Path) -> None:
    with pytest.raises(DriverUnsupported, match="aufs") as caught:
        Store.open(scratch / "root", "aufs")
    assert caught.value.reasons.keys() == {"aufs"}


def test_a_root_that_is_a_file(scratch: Path) -> None:
    (scratch / "root").write_text("precious")
    with pytest.raises(ConfigError, match="not a directory"):
        Store.open(scratch / "root", "devicemapper", SMALL)
    with pytest.raises(ConfigError, match="directory"):
        Store.open(scratch / "root/below", "devicemapper", SMALL)
    assert (scratch / "root").read_text() == "precious"


def test_a_root_that_is_not_ours(scratch: Path) -> None:
    (scratch / "root").mkdir()
    (scratch / "root/thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        Store.open(scratch / "root", "devicemapper", SMALL)
    assert os.listdir(scratch / "root") == ["thesis.tex"]


def test_a_root_of_another_driver_or_of_two(store: Store) -> None:
    with pytest.raises(ConfigError, match="devicemapper"):
        Store.open(store.root, "overlay")
    (store.root / "btrfs").mkdir()
    try:
        with pytest.raises(ConfigError, match="btrfs and devicemapper"):
            Store.open(store.root)
    finally:
        (store.root / "btrfs").rmdir()


def test_a_read_only_root(scratch: Path) -> None:
    root = scratch / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", root], check=True)
    try:
        with pytest.raises(NotPermitted, match=r"read-only|not writable"):
            Store.open(root, "devicemapper", SMALL)
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_newer_schema(store: Store) -> None:
    database = sqlite3.connect(store.root / "store.db")
    database.execute("PRAGMA user_version = 77")
    try:
        with pytest.raises(StateError, match="schema version 77"):
            Store.open(store.root)
    finally:
        database.execute("PRAGMA user_version = 1")
        database.close()


def test_no_store_is_made_unless_asked_for(scratch: Path) -> None:
    with pytest.raises(StoreNotFound) as caught:
        Store.open(scratch / "root", create=False)
    assert caught.value.hint is not None
    assert not (scratch / "root").exists()


def test_not_root(scratch: Path) -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            Store.open(scratch / "root", "devicemapper", SMALL)
        except NotPermitted:
            os._exit(0)
        except ThinPoolError:
            os._exit(2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_shrinking_and_another_block_size_are_refused_and_growing_is_done(store: Store) -> None:
    for options in ({"dm.loopdatasize": "1G"}, {"dm.blocksize": "128K"}, {"dm.fs": "xfs"}, {"dm.basesize": "128M"}):
        with pytest.raises(ConfigError, match=next(iter(options)).replace(".", r"\.")):
            Store.open(store.root, options=options)
    with Store.open(store.root, options={"dm.loopdatasize": "3G"}) as grown:
        pool = grown.info().pool
    assert pool is not None
    assert pool.data_total == 3 << 30


def test_devices_with_data_on_them_are_not_touched(scratch: Path, disk_factory: DiskFactory) -> None:
    data, metadata = disk_factory(1 << 30), disk_factory(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", data], check=True)
    before = fingerprint(data), fingerprint(metadata)
    with pytest.raises(DeviceUnsafe, match="ext4"):
        Store.open(
            scratch / "root",
            "devicemapper",
            {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "256M"},
        )
    assert (fingerprint(data), fingerprint(metadata)) == before
    assert not (scratch / "root").exists()


@pytest.mark.parametrize(
    "devices", [("missing", "metadata"), ("data", "data"), ("file", "metadata"), ("data", "small")]
)
def test_devices_that_cannot_be_used(scratch: Path, disk_factory: DiskFactory, devices: tuple[str, str]) -> None:
    (scratch / "file").write_bytes(bytes(1 << 20))
    paths = {
        "data": disk_factory(1 << 30),
        "metadata": disk_factory(32 << 20),
        "small": disk_factory(64 << 10),
        "missing": scratch / "missing",
        "file": scratch / "file",
    }
    options = {"dm.datadev": str(paths[devices[0]]), "dm.metadatadev": str(paths[devices[1]]), "dm.basesize": "256M"}
    before = {name: fingerprint(path) for name, path in paths.items() if path.exists()}
    with pytest.raises((ConfigError, DeviceUnsafe)):
        Store.open(scratch / "root", "devicemapper", options)
    assert {name: fingerprint(path) for name, path in paths.items() if path.exists()} == before


def test_block_devices_serve_one_store_and_are_taken_up_again(scratch: Path, disk_factory: DiskFactory) -> None:
    data, metadata = disk_factory(1 << 30), disk_factory(32 << 20)
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "256M"}
    with Store.open(scratch / "root", "devicemapper", options) as store:
        store.prepare("work")
        with pytest.raises(DeviceUnsafe):
            Store.open(scratch / "other", "devicemapper", options)
        store.down()
    with pytest.raises(DeviceUnsafe, match=r"thin-pool|thin pool"):
        Store.open(scratch / "other", "devicemapper", options)
    with Store.open(scratch / "root") as store:
        with store.mount("work") as root:
            assert os.listdir(root) == []
        store.down()


@pytest.mark.parametrize("name", ["data", "metadata"])
@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_loop_files_lost_behind_our_back(store: Store, name: str, damage: str) -> None:
    store.down()
    store.close()
    path = store.root / "devicemapper" / name
    saved = path.with_name("saved")
    if damage == "deleted":
        path.rename(saved)
    else:
        subprocess.run(["cp", "--sparse=always", path, saved], check=True)
        os.truncate(path, 1 << 20)
    with Store.open(store.root) as again, pytest.raises(PoolFailed, match=name):
        again.prepare("work")
    saved.rename(path)
    with Store.open(store.root) as again:
        again.prepare("work")
        again.down()


MAKE = "import sys; from thinpool import Store; Store.open(sys.argv[1], 'devicemapper', eval(sys.argv[2])).close()"


def test_two_processes_make_the_same_store_at_once(scratch: Path) -> None:
    both = [subprocess.Popen(["python", "-c", MAKE, scratch / "root", repr(SMALL)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    with Store.open(scratch / "root") as store:
        store.prepare("work")
        store.down()


def test_a_store_whose_making_was_killed_is_finished(scratch: Path) -> None:
    """Killed at many moments of its making, a store is finished by the next open."""
    for number, delay in enumerate((0.15, 0.3, 0.45, 0.6, 0.8)):
        root = scratch / f"root-{number}"
        making = subprocess.Popen(["python", "-c", MAKE, root, repr(SMALL)])
        try:
            making.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            making.kill()
            making.wait()
        with Store.open(root, "devicemapper", SMALL) as store:
            store.prepare("work")
            with store.mount("work") as mounted:
                assert os.listdir(mounted) == []
            store.down()


def test_a_full_file_system_under_the_loop_files(scratch: Path) -> None:
    small = scratch / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        with pytest.raises(ThinPoolError):
            Store.open(small / "root", "devicemapper", SMALL)
        assert os.listdir(small) == []
        subprocess.run(["mount", "-o", "remount,size=4M", small], check=True)
        with Store.open(small / "root", "devicemapper", SMALL) as store:
            with pytest.raises((PoolFull, PoolFailed)):
                store.import_layer("big", io.BytesIO(archive({"big": os.urandom(8 << 20)}).getvalue()))
            assert list(store.walk()) == []
            store.down()
    finally:
        subprocess.run(["umount", small], check=True)
