"""Layers on btrfs, from the front door."""

import os
import stat
from pathlib import Path

import pytest

from thinpool import Store
from thinpool.btrfs import ioctl
from thinpool.errors import LayerInUse
from thinpool.model import Change, Kind

pytestmark = pytest.mark.kernel


def write(store: Store, name: str, **files: str) -> None:
    with store.mount(name) as tree:
        for file, text in files.items():
            (tree / file).write_text(text)


def subvolumes(root: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(root / "btrfs") if name.isdecimal())


def test_the_life_of_layers(store: Store, root: Path) -> None:
    store.prepare("base-work")
    write(store, "base-work", a="1", b="2")
    base = store.commit("base", "base-work")
    assert base.kind is Kind.COMMITTED
    store.prepare("work", "base")
    with store.mount("work") as tree:
        assert stat.S_IMODE(tree.stat().st_mode) == 0o755
        assert (tree / "a").read_text() == "1"
        (tree / "a").write_text("changed")
        (tree / "b").unlink()
        (tree / "c").mkdir()
    changes = store.changes("work")
    assert changes.method == "fast"
    assert list(changes) == [Change("C", "/a"), Change("D", "/b"), Change("A", "/c")]
    store.commit("done", "work")
    assert list(store.changes("done")) == list(changes)
    store.view("look", "done")
    with store.mount("look") as tree, pytest.raises(OSError, match="Read-only"):
        (tree / "d").write_text("no")
    for name in ("look", "done", "base"):
        store.remove(name)
    assert subvolumes(root) == []


def test_what_is_committed_is_read_only_in_the_file_system_itself(store: Store, root: Path) -> None:
    store.prepare("work")
    write(store, "work", a="1")
    store.commit("base", "work")
    (number,) = subvolumes(root)
    with pytest.raises(OSError, match="Read-only"):
        (root / "btrfs" / str(number) / "b").write_text("no")


def test_a_mounted_layer_is_not_removed_and_its_commit_is_the_state_of_the_instant(store: Store, root: Path) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "a").write_text("1")
        with pytest.raises(LayerInUse, match=str(tree)):
            store.remove("work")
        store.checkpoint("first", "work")
        (tree / "a").write_text("2")
        store.commit("second", "work")
        (tree / "a").write_text("3")
        assert len(subvolumes(root)) == 3
    assert len(subvolumes(root)) == 2
    for name, text in (("first", "1"), ("second", "2")):
        with store.mount(name) as tree:
            assert (tree / "a").read_text() == text
    assert list(store.changes("second", "first")) == [Change("C", "/a")]


def test_a_chain_of_two_hundred(store: Store) -> None:
    store.prepare("work")
    for depth in range(200):
        write(store, "work", **{f"f{depth}": str(depth)})
        store.commit(f"layer-{depth}", "work")
        store.prepare("work", f"layer-{depth}")
    with store.mount("work") as tree:
        assert sorted(os.listdir(tree)) == sorted(f"f{depth}" for depth in range(200))
    assert [change.path for change in store.changes("layer-199", "layer-190")] == sorted(
        f"/f{depth}" for depth in range(191, 200)
    )


def test_a_mount_allows_what_the_mount_of_the_store_forbids(store: Store, host: Path) -> None:
    store.prepare("work")
    fd = os.open(host, os.O_PATH)
    try:
        from thinpool.filesystem import syscalls  # noqa: PLC0415

        forbidden = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
        syscalls.mount_setattr(fd, set_attributes=forbidden)
    finally:
        os.close(fd)
    with store.mount("work") as tree:
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (tree / "null").read_bytes() == b""
        flags = os.statvfs(tree).f_flag
        assert not flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
        assert flags & os.ST_NOATIME


def test_the_umask_does_not_matter(store: Store, root: Path) -> None:
    before = os.umask(0o077)
    try:
        store.prepare("work")
    finally:
        os.umask(before)
    (number,) = subvolumes(root)
    assert stat.S_IMODE((root / "btrfs" / str(number)).stat().st_mode) == 0o755


def test_a_subvolume_says_when_it_changed(host: Path) -> None:
    fd = os.open(host, os.O_RDONLY)
    try:
        ioctl.create_subvolume(fd, "one")
        with_one = os.open("one", os.O_RDONLY, dir_fd=fd)
        (host / "one" / "file").write_text("x")
        ioctl.create_snapshot(fd, "two", with_one, read_only=True)
        one, two = ioctl.subvolume_info(with_one), ioctl.subvolume_info(os.open("two", os.O_RDONLY, dir_fd=fd))
        assert two.read_only
        assert not one.read_only
        assert one.made <= two.changed <= two.made
        assert one.uuid != two.uuid
    finally:
        os.closerange(fd, fd + 10)
