"""Pools that are short, full, read-only or failed, and devices that somebody holds."""

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.pool.tools import loop_on, mapped, run
from tests.kernel.test_store import archive
from thinpool import Store
from thinpool.dm import Control
from thinpool.errors import LayerInUse, PoolFailed, PoolFull
from thinpool.metadata.superblock import SUPERBLOCK_SALT, checksum
from thinpool.pool import ThinPool
from thinpool.units import MIB, SECTOR

pytestmark = pytest.mark.kernel

DiskFactory = Callable[[int], Path]


def fill(store: Store, name: str, size: int) -> None:
    with store.mount(name) as root, (root / "ballast").open("wb", 0) as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


# -- short of space


@pytest.fixture
def small(scratch: Path, thin_check: Callable[[Path], None]) -> Iterator[Store]:
    """A pool of 128 MiB."""
    options = {"dm.loopdatasize": "128M", "dm.loopmetadatasize": "4M", "dm.basesize": "256M"}
    with Store.open(scratch / "root", "devicemapper", options) as store:
        yield store
        store.down()
    thin_check(scratch / "root/devicemapper/metadata")


def test_nothing_new_is_begun_where_little_is_free(small: Store) -> None:
    small.prepare("work")
    fill(small, "work", 118 * MIB)
    actions: tuple[Callable[[], object], ...] = (
        lambda: small.prepare("more"),
        lambda: small.import_layer("more", archive({"a": b"a"})),
        lambda: small.checkpoint("instant", "work"),
    )
    for action in actions:
        with pytest.raises(PoolFull):
            action()
    with pytest.raises(PoolFull, match=r"has [0-9] % of its data free .*dm\.min_free_space is 10%") as full:
        small.prepare("more")
    assert "thinpool grow --data" in (full.value.hint or "")
    assert any("less than dm.min_free_space" in warning for warning in small.info().warnings)
    assert [layer.name for layer in small.walk()] == ["work"]
    small.commit("done", "work")  # at rest it costs no space
    with Store.open(small.root, options={"dm.min_free_space": "0"}) as daring:
        daring.prepare("more")
        daring.remove("more")
    with Store.open(small.root, options={"dm.min_free_space": "5%", "dm.loopdatasize": "256M"}) as grown:
        grown.prepare("more")
    small.remove("more")
    small.remove("done")


def test_a_full_pool_fails_writes_and_gives_way_to_removal(small: Store) -> None:
    small.prepare("keep")
    fill(small, "keep", MIB)
    small.commit("kept", "keep")
    small.prepare("work")
    with pytest.raises(OSError):  # noqa: PT011 - ENOSPC or EIO, as the file system sees it
        fill(small, "work", 200 * MIB)
    pool = small.info().pool
    assert pool is not None
    assert pool.mode == "out_of_data_space"
    with small.mount("kept") as root:
        assert (root / "ballast").stat().st_size == MIB
    with pytest.raises(PoolFull):
        small.prepare("more")
    small.remove("work")
    small.prepare("more")
    fill(small, "more", MIB)


# -- failed


def mark_needs_check(metadata: Path) -> None:
    block = bytearray(metadata.read_bytes()[:4096])
    struct.pack_into("<I", block, 4, 1)
    struct.pack_into("<I", block, 0, checksum(bytes(block), SUPERBLOCK_SALT))
    with metadata.open("r+b", 0) as file:
        file.write(block)


def test_metadata_that_needs_a_check(store: Store) -> None:
    store.import_layer("debian", archive({"etc/motd": b"hello\n"}))
    store.prepare("work", "debian")
    store.down()
    metadata = store.root / "devicemapper/metadata"
    mark_needs_check(metadata)
    for _ in range(2):  # the second time its transaction id may be either
        with Store.open(store.root) as again:
            with again.mount("debian") as root:
                assert (root / "etc/motd").read_text() == "hello\n"
            for action in (lambda: again.prepare("more", "debian"), lambda: again.remove("work")):
                with pytest.raises(PoolFailed, match="needs a check") as caught:
                    action()
                assert "thin_check" in (caught.value.hint or "")
            info = again.info()
            assert info.pool is not None
            assert (info.pool.mode, info.pool.needs_check) == ("ro", True)
            assert any("needs a check" in warning for warning in info.warnings)
            again.down()
            at_rest = again.info().pool
            assert at_rest is not None
            assert (at_rest.mode, at_rest.needs_check) == ("inactive", True)
    with loop_on(metadata) as device:
        run("thin_check", "--clear-needs-check-flag", device)
    with Store.open(store.root) as again:
        again.prepare("more", "debian")
        again.down()


def swap(name: str, target: str) -> None:
    run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    run("dmsetup", "load", name, "--table", f"0 {64 * MIB // SECTOR} {target}")
    run("dmsetup", "resume", "--noudevsync", name)


@pytest.mark.parametrize("broken", ["flakey {disk} 0 0 60 1 error_writes", "error"])
def test_metadata_that_cannot_be_written(scratch: Path, disk_factory: DiskFactory, broken: str) -> None:
    data, disk = disk_factory(512 * MIB), disk_factory(64 * MIB)
    with mapped("fragile", f"0 {64 * MIB // SECTOR} linear {disk} 0") as metadata:
        options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "128M"}
        with Store.open(scratch / "root", "devicemapper", options) as store:
            store.import_layer("debian", archive({"etc/motd": b"hello\n"}))
            with store.mount("debian") as root:
                swap("fragile", broken.format(disk=disk))
                for _ in range(2):  # also the first time, when the kernel has noticed nothing before
                    with pytest.raises(PoolFailed) as caught:
                        store.prepare("work", "debian")
                    assert caught.value.hint
                if broken != "error":  # its mappings can still be read
                    assert (root / "etc/motd").read_text() == "hello\n"
                info = store.info()
                assert info.pool is not None
                assert info.pool.mode in {"ro", "fail"}
                assert any("fail" in text or "check" in text for text in info.warnings)
                assert [layer.name for layer in store.walk()] == ["debian"]
            store.down()
            swap("fragile", f"linear {disk} 0")
            store.up()
            with store.mount("debian") as root:
                assert (root / "etc/motd").read_text() == "hello\n"
            if broken == "error":  # the kernel could not write that a check is needed
                store.prepare("work", "debian")
                with store.mount("work") as root:
                    assert (root / "etc/motd").read_text() == "hello\n"
            store.down()


def test_loop_files_that_are_gone(store: Store) -> None:
    store.down()
    data = store.root / "devicemapper/data"
    data.rename(data.with_name("elsewhere"))
    with Store.open(store.root) as again:
        info = again.info().pool
        assert info is not None
        assert (info.mode, info.data_total) == ("inactive", 0)
        with pytest.raises(PoolFailed, match=r"data file .* cannot be used: No such file"):
            again.up()
    data.with_name("elsewhere").rename(data)


# -- in use


@contextmanager
def device_above(store: Store, layer: str) -> Iterator[str]:
    """A device-mapper device on a layer's, as people make them: the name of the layer's device."""
    with ExitStack() as held:
        with store.device(layer) as device:
            held.enter_context(mapped("above", f"0 2048 linear {device} 0"))
            name = Path(f"/sys/block/{device.name}/dm/name").read_text().strip()
        yield name


@pytest.mark.parametrize("deferred", [True, False])
def test_down_names_who_holds_a_device(store: Store, deferred: bool) -> None:
    store.prepare("work")
    options = {"dm.use_deferred_removal": str(deferred)}
    with Store.open(store.root, options=options) as again:
        with (
            device_above(again, "work") as name,
            pytest.raises(LayerInUse, match=r"device thinpool-\S+ is in use: held by dm-\d+ \(above\)"),
        ):
            again.down()
        assert (name in run("dmsetup", "ls")) is not deferred
        again.down()
        assert name not in run("dmsetup", "ls")


def test_down_names_mounts_of_others(store: Store) -> None:
    store.prepare("work")
    with store.device("work") as device:
        script = f"mount {device} /mnt && echo mounted && exec cat"
        holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
    with pytest.raises(LayerInUse, match=rf"mounted on /mnt for pid {holder.pid} \((sh|cat)\)"):
        store.down()
    holder.communicate()
    store.down()


def test_a_device_that_was_to_go_stays_for_its_new_user(store: Store) -> None:
    store.prepare("work")
    store.commit("done", "work")
    with store.device("done") as device:
        held = os.open(device, os.O_RDONLY)
    with store.mount("done") as root:
        os.close(held)
        assert os.listdir(root) == []
        assert device.exists()


def test_a_device_that_was_to_go_is_kept_when_it_is_activated_again(pool: ThinPool) -> None:
    pool.thins.create(1)
    node = f"/dev/dm-{pool.thins.activate(1, 64 * MIB).minor}"
    held = os.open(node, os.O_RDONLY)
    assert not pool.thins.deactivate(1)
    pool.thins.activate(1, 64 * MIB)
    os.close(held)
    with Control() as control:
        assert not control.info(pool.thins.name(1)).deferred_remove
    assert pool.thins.deactivate(1)
