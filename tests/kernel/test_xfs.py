"""Layers with xfs: the same life as with ext4, and what is its own: one uuid in all, a log to replay, growth alone."""

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.test_store import archive, listed
from thinpool import Store
from thinpool.errors import ConfigError
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

OPTIONS = {"dm.fs": "xfs", "dm.basesize": "300M", "dm.loopdatasize": "2G", "dm.loopmetadatasize": "16M"}


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def xfs(scratch: Path, thin_check: Callable[[Path], None]) -> Iterator[Store]:
    """A store whose layers are xfs, with one imported layer."""
    root = scratch / "root"
    with Store.open(root, "devicemapper", OPTIONS) as store:
        store.import_layer("debian", archive({"etc/motd": b"hello\n", "bin/sh": b"#!", "etc/passwd": b"root:x:0:0\n"}))
        yield store
        store.down()
    thin_check(root / "devicemapper/metadata")


def repaired(store: Store, name: str) -> None:
    """The layer's file system is whole; a log that waits for its replay would fail this."""
    with store.device(name) as device:
        run("xfs_repair", "-n", device)


def test_the_life_of_a_layer(xfs: Store) -> None:
    xfs.prepare("work", "debian")
    with xfs.mount("work") as root:
        assert run("stat", "--file-system", "--format=%T", root).strip() == "xfs"
        (root / "etc/motd").write_text("changed\n")
        (root / "bin/sh").unlink()
        (root / "new").write_bytes(os.urandom(MIB))
        os.setxattr(root / "new", "user.note", b"kept")
    assert listed(xfs, "work") == [("D", "/bin/sh"), ("C", "/etc/motd"), ("A", "/new")]
    xfs.commit("done", "work")
    exported = io.BytesIO()
    xfs.export_layer("done", exported)
    exported.seek(0)
    xfs.import_layer("again", exported, parent="debian")
    assert listed(xfs, "again", "done") == []
    for name in ("debian", "done", "again"):
        repaired(xfs, name)


def test_layers_of_one_base_are_mounted_at_once(xfs: Store) -> None:
    """They share a uuid, which xfs refuses to mount twice unless told."""
    xfs.view("look", "debian")
    xfs.prepare("work", "debian")
    xfs.prepare("empty")
    with xfs.mount("look") as look, xfs.mount("work") as work, xfs.mount("debian") as base, xfs.mount("empty") as empty:
        (work / "etc/motd").write_text("mine\n")
        assert (look / "etc/motd").read_text() == (base / "etc/motd").read_text() == "hello\n"
        assert os.listdir(empty) == []
        for read_only in (look, base):
            with pytest.raises(OSError, match="Read-only"):
                (read_only / "x").touch()


def test_a_mounted_layer_commits_the_instant_of_the_call(xfs: Store) -> None:
    """A frozen xfs has a log to replay, which a layer that is mounted read-only, on a read-only device, cannot."""
    xfs.prepare("work", "debian")
    with xfs.mount("work") as root:
        for number in range(50):
            (root / f"file-{number}").write_bytes(os.urandom(10_000))
        xfs.checkpoint("instant", "work")
        for number in range(50):
            (root / f"file-{number}").unlink()
        (root / "after").touch()
    with xfs.mount("instant") as root:
        assert sorted(os.listdir(root)) == sorted(["bin", "etc", *(f"file-{number}" for number in range(50))])
        assert all((root / f"file-{number}").stat().st_size == 10_000 for number in range(50))
    repaired(xfs, "instant")
    xfs.prepare("child", "instant")
    with xfs.mount("child") as root:
        (root / "file-0").write_text("child")
    assert listed(xfs, "child") == [("C", "/file-0")]


def test_a_layer_whose_log_is_dirty_is_committed(xfs: Store) -> None:
    """As after a crash: the log holds what the file system does not, and the layer is mounted read-only then."""
    xfs.prepare("work", "debian")
    with xfs.device("work") as device:
        target = xfs.root.parent / "target"
        target.mkdir()
        run("mount", "-o", "nouuid", device, target)
        for number in range(50):
            (target / f"file-{number}").write_bytes(os.urandom(10_000))
        run("xfs_io", "-x", "-c", "shutdown -f", target)  # the log is flushed, and nothing after it
        run("umount", target)
    assert subprocess.run(["sync"], check=True).returncode == 0
    xfs.commit("crashed", "work")
    xfs.view("look", "crashed")
    for name in ("crashed", "look"):
        with xfs.mount(name) as root:
            assert len(os.listdir(root)) == 52
    assert len(listed(xfs, "crashed")) == 50
    xfs.prepare("child", "crashed")
    with xfs.mount("child") as root:
        assert len(os.listdir(root)) == 52


def test_a_layer_can_be_larger_than_its_parent(xfs: Store) -> None:
    layer = xfs.prepare("large", "debian", size="500M")
    assert layer.size == 500 * MIB
    with xfs.mount("large") as root:
        space = os.statvfs(root)
        assert 430 * MIB < space.f_blocks * space.f_frsize <= 500 * MIB  # without the log, of 64 MiB
        with (root / "big").open("wb") as file:
            for _ in range(350):  # a UML process cannot have that much in memory at once
                file.write(bytes(MIB))
        assert (root / "etc/motd").read_text() == "hello\n"
    repaired(xfs, "large")


def test_a_base_that_is_too_small(scratch: Path) -> None:
    with pytest.raises(ConfigError, match=r"dm\.basesize=256M: xfs needs at least 300M"):
        Store.open(scratch / "root", "devicemapper", OPTIONS | {"dm.basesize": "256M"})
    assert not (scratch / "root").exists()
