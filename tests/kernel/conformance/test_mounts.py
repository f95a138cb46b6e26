"""Where layers are mounted, how they are let go, and that only what may be written can be."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import Everything, fill, is_mounted, look, text
from thinpool import Store
from thinpool.errors import LayerInUse, LayerNotFound, MountError
from thinpool.filesystem import syscalls

pytestmark = pytest.mark.kernel(device_mapper=False)


@pytest.fixture
def target(scratch: Path) -> Path:
    """A directory to mount on."""
    (scratch / "target").mkdir()
    return scratch / "target"


@pytest.fixture
def layers(store: Store) -> Store:
    """A store with `base`, and on it `work` and `look`."""
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    store.view("look", "base")
    return store


def test_an_empty_layer_is_an_empty_root(store: Store) -> None:
    umask = os.umask(0o077)
    try:
        store.prepare("work")
    finally:
        os.umask(umask)
    with store.mount("work") as root:
        assert os.listdir(root) == []
        status = root.stat()
        assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFDIR | 0o755, 0, 0)
    store.commit("base", "work")
    store.view("look", "base")
    with store.mount("look") as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_a_private_directory_is_gone_with_its_mount(layers: Store) -> None:
    with layers.mount("work") as root:
        assert root.parent == layers.root / "mnt"
        assert is_mounted(root)
        assert list(layers.mounts("work")) == [root]
        assert layers.mounted() == {"work"}
    assert os.listdir(layers.root / "mnt") == []
    assert list(layers.mounts("work")) == []
    mount = layers.mount("work")
    layers.unmount("work")
    assert not mount.target.exists()


def test_on_a_directory_of_the_callers(layers: Store, target: Path) -> None:
    (target / "below").write_text("hidden meanwhile")
    with layers.mount("work", target) as root:
        assert root == target
        assert os.listdir(target) == ["f"]
        assert list(layers.mounts("work")) == [target]
    assert os.listdir(target) == ["below"]


def test_mounting_again_on_the_same_target_is_one_mount(layers: Store, target: Path) -> None:
    with layers.mount("work", target):
        with layers.mount("work", str(target)) as again:
            assert (again / "f").exists()
        assert list(layers.mounts("work")) == [target]
    assert not is_mounted(target)


def test_another_layer_is_not_mounted_over_one(layers: Store, target: Path) -> None:
    with layers.mount("work", target):
        before = Everything.of(layers)
        for name in ("base", "look"):
            with pytest.raises(LayerInUse, match=str(target)):
                layers.mount(name, target)
        assert Everything.of(layers) == before
        assert (target / "f").exists()


def test_unmount_by_target_and_by_name(layers: Store, target: Path) -> None:
    layers.mount("work", target)
    layers.unmount(target)
    assert not is_mounted(target)
    first, second = layers.mount("work", target), layers.mount("work")
    layers.unmount("work")
    assert layers.mounted() == set()
    for mount in (first, second):
        with mount:
            pass
    for given, error in ((target, MountError), ("work", MountError), ("nothing-there", LayerNotFound)):
        with pytest.raises(error):
            layers.unmount(given)


def test_what_others_mounted_is_not_unmounted(layers: Store, target: Path) -> None:
    syscalls.mount("none", str(target), "tmpfs")
    try:
        with pytest.raises(MountError, match="no layer of this store"):
            layers.unmount(target)
        with layers.mount("work", target):
            pass
        assert is_mounted(target)
    finally:
        syscalls.umount(str(target))


def test_targets_that_cannot_be(layers: Store, scratch: Path) -> None:
    (scratch / "file").touch()
    (scratch / "link").symlink_to(scratch)
    before = Everything.of(layers)
    for name in ("missing", "file", "link", "file/below"):
        with pytest.raises(MountError, match=name):
            layers.mount("work", scratch / name)
    assert Everything.of(layers) == before


def test_a_busy_mount_stays_until_it_is_let_go(layers: Store) -> None:
    with layers.mount("work") as root:
        holder = os.open(root / "f", os.O_RDONLY)
        with pytest.raises(LayerInUse, match="busy"):
            layers.unmount("work")
        assert (root / "f").read_text() == "text"
        os.close(holder)


def test_the_names_of_a_target_may_be_strange(layers: Store, scratch: Path) -> None:
    target = Path(os.fsdecode(os.fsencode(scratch) + b"/new\nline \\040 \xff"))
    target.mkdir()
    with layers.mount("work", target):
        assert list(layers.mounts("work")) == [target]
        with layers.mount("work", target):
            pass
    assert not is_mounted(target)


@pytest.mark.parametrize("name", ["base", "look"])
def test_committed_layers_and_views_are_read_only_always(layers: Store, name: str) -> None:
    with layers.mount(name, read_only=False) as root:
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").write_text("x")
        with pytest.raises(OSError, match="Read-only"):
            (root / "f").open("a")
        with pytest.raises(OSError, match="Read-only"):
            (root / "f").unlink()
        with pytest.raises(OSError, match="Read-only"):
            os.utime(root / "f")
        with pytest.raises(OSError, match="Read-only"):
            root.chmod(0o700)
        assert os.statvfs(root).f_flag & os.ST_RDONLY
    with layers.mount(name) as root:
        assert os.listdir(root) == ["f"]


def test_an_active_layer_mounted_read_only(layers: Store) -> None:
    with layers.mount("work", read_only=True) as root:
        assert (root / "f").read_text() == "text"
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").write_text("x")
    with layers.mount("work") as root:
        (root / "x").write_text("x")


def test_two_mounts_of_an_active_layer_show_the_same(layers: Store, target: Path) -> None:
    with (
        layers.mount("work") as one,
        layers.mount("work", target) as two,
        layers.mount("work", read_only=True) as three,
    ):
        (one / "new").write_text("from one")
        (two / "f").write_text("from two")
        for root in (one, two, three):
            assert ((root / "new").read_text(), (root / "f").read_text()) == ("from one", "from two")
        with pytest.raises(OSError, match="Read-only"):
            (three / "x").write_text("x")
        assert set(layers.mounts("work")) == {one, two, three}
    with layers.mount("work") as root:
        assert (root / "new").read_text() == "from one"


def test_the_first_of_two_mounts_may_go_first(layers: Store, target: Path) -> None:
    first = layers.mount("work")
    with layers.mount("work", target):
        layers.unmount(first.target)
        (target / "later").write_text("later")
    assert b"/later" in look(layers, "work")


def test_many_readers_and_children_of_one_layer_at_once(layers: Store) -> None:
    layers.prepare("other", "base")
    with (
        layers.mount("base") as base,
        layers.mount("base") as again,
        layers.mount("look") as view,
        layers.mount("work") as work,
        layers.mount("other") as other,
    ):
        (work / "f").write_text("work's")
        (other / "f").unlink()
        assert [path.read_text() for path in (base / "f", again / "f", view / "f")] == ["text"] * 3
        assert (work / "f").read_text() == "work's"
        assert layers.mounted() == {"base", "look", "work", "other"}


def test_what_is_mounted_is_not_removed(layers: Store) -> None:
    for name in ("work", "look"):
        with layers.mount(name) as root:
            before = Everything.of(layers)
            with pytest.raises(LayerInUse, match=str(root)):
                layers.remove(name)
            assert Everything.of(layers) == before
            assert (root / "f").exists()
        layers.remove(name)


def test_what_is_written_is_there_when_it_is_mounted_again(layers: Store) -> None:
    for number in range(4):
        with layers.mount("work") as root:
            assert sorted(os.listdir(root)) == sorted(["f", *(f"{before}" for before in range(number))])
            (root / f"{number}").write_text(f"{number}")
    assert set(look(layers, "base")) == {b"/", b"/f"}


def test_no_other_namespace_keeps_a_mount(layers: Store, target: Path) -> None:
    """Where it was taken along to another namespace, because the directory's mount is shared, it goes with ours."""
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    other = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo ready; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "ready\n"
        with layers.mount("work", target):
            inside = subprocess.run(
                ["findmnt", "-no", "PROPAGATION", target], capture_output=True, text=True, check=True
            )
            assert inside.stdout.strip() == "private"
        layers.remove("work")
    finally:
        other.communicate("go\n")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
