"""Bad input, and what others do to a store's subvolumes."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.btrfs.conftest import Host
from thinpool import Store
from thinpool.drivers import selection
from thinpool.errors import (
    ConfigError,
    DriverUnsupported,
    LayerInUse,
    PoolFailed,
    PoolFull,
    ThinPoolError,
    TreeError,
)
from thinpool.filesystem import syscalls
from thinpool.model import Change
from thinpool.units import KIB, MIB

pytestmark = pytest.mark.kernel


def subvolumes(root: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(root / "btrfs") if name.isdecimal())


def btrfs(*arguments: str | Path) -> str:
    done = subprocess.run(["btrfs", *map(str, arguments)], check=True, capture_output=True, text=True)
    return done.stdout


def fill(path: Path) -> None:
    """Write until there is no room, in ever smaller pieces."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 64 * KIB, 4 * KIB):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(os.urandom(size))
                    os.fsync(file.fileno())
    os.sync()  # so that what was written to mapped files has to be written anew, which needs room


def archive(**files: str) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    out.seek(0)
    return out


# -- where there is no btrfs


def test_another_file_system_is_refused_by_its_name(scratch: Path) -> None:
    with pytest.raises(DriverUnsupported, match=f"the file system at {scratch} is tmpfs, btrfs is needed"):
        Store.open(scratch / "root", "btrfs")
    assert os.listdir(scratch) == []


def test_a_read_only_mount_is_refused(make_host: Host) -> None:
    host = make_host()
    fd = os.open(host, os.O_PATH)
    syscalls.mount_setattr(fd, set_attributes=syscalls.MOUNT_ATTR_RDONLY)
    os.close(fd)
    with pytest.raises(DriverUnsupported, match="make and delete a subvolume: Read-only file system"):
        Store.open(host / "root", "btrfs")


def test_btrfs_is_chosen_by_itself_where_the_root_will_be_on_one(host: Path) -> None:
    assert selection.choose(host / "not" / "there" / "yet") == "btrfs"
    assert os.listdir(host) == []


def test_a_probe_removes_what_one_that_died_left(host: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    btrfs("subvolume", "create", host / f".thinpool-probe-{dead.pid}")
    (host / f".thinpool-probe-{dead.pid + 1}x").mkdir()
    assert selection.reason_against("btrfs", host / "root") is None
    assert os.listdir(host) == [f".thinpool-probe-{dead.pid + 1}x"]


# -- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dm.basesize": "1G"}, "'dm.basesize' is one of the devicemapper driver, not of btrfs"),
        ({"overlay.size": "1G"}, "'overlay.size' is one of the overlay driver"),
        ({"btrfs.min_spac": "1G"}, "unknown option 'btrfs.min_spac'"),
        ({"btrfs.min_space": "much"}, "btrfs.min_space='much' is not accepted; it takes a size"),
        ({"btrfs.min_space": "-1"}, "btrfs.min_space='-1' is not accepted"),
    ],
)
def test_an_option_that_cannot_be_is_named(host: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Store.open(host / "root", "btrfs", options)
    assert os.listdir(host) == []


def test_no_layer_is_begun_with_less_than_the_space_that_was_asked_for(root: Path) -> None:
    with Store.open(root, "btrfs", {"btrfs.min_space": "64M"}) as store:
        assert store.info().options == {"btrfs.min_space": "64M"}
        store.prepare("work")
        assert store.info().warnings == ()
    with Store.open(root, options={"btrfs.min_space": "1T"}) as store:
        assert "no layer can be begun" in store.info().warnings[0]
        before = subvolumes(root)
        actions: list[Callable[[], object]] = [
            lambda: store.prepare("more"),
            lambda: store.checkpoint("done", "work"),
            lambda: store.commit("done", "work"),
            lambda: store.import_layer("in", archive(a="1")),
        ]
        for action in actions:
            with pytest.raises(PoolFull, match=r"less than btrfs\.min_space=1\.00 TiB"):
                action()
        assert subvolumes(root) == before
        assert [layer.name for layer in store.walk()] == ["work"]
        store.remove("work")
    with Store.open(root) as store:
        assert store.info().options == {"btrfs.min_space": "1T"}


def test_a_full_file_system_is_told_as_such_and_serves_again_when_there_is_room(make_host: Host) -> None:
    root = make_host(256 * MIB, "--mixed") / "root"
    with Store.open(root, "btrfs") as store:
        store.import_layer("base", archive(a="1"))
        store.prepare("work", "base")
        with store.mount("work") as tree:
            fill(tree / "big")
    with Store.open(root) as store:
        before = subvolumes(root)
        with pytest.raises(PoolFull):
            store.import_layer("in", archive(**{f"f{number}": "x" * 100_000 for number in range(400)}))
        assert subvolumes(root) == before
        assert [layer.name for layer in store.walk()] == ["base", "work"]
        store.remove("work")
        btrfs("subvolume", "sync", root / "btrfs")
        store.import_layer("in", archive(b="2"))
        assert list(store.changes("in")) == [Change("A", "/b")]


# -- what others do


def test_a_subvolume_that_somebody_deleted(store: Store, root: Path) -> None:
    store.prepare("work")
    (number,) = subvolumes(root)
    btrfs("subvolume", "delete", root / "btrfs" / str(number))
    for action in (lambda: store.mount("work"), lambda: store.commit("done", "work")):
        with pytest.raises(PoolFailed, match=f"the subvolume {root}/btrfs/{number} of the layer is gone"):
            action()
    assert store.usage("work").size == 0
    store.remove("work")
    assert list(store.walk()) == []


def test_something_else_in_the_place_of_a_subvolume(store: Store, root: Path) -> None:
    store.prepare("work")
    (number,) = subvolumes(root)
    place = root / "btrfs" / str(number)
    btrfs("subvolume", "delete", place)
    place.mkdir()
    (place / "precious").write_text("x")
    for action in (lambda: store.mount("work"), lambda: store.remove("work")):
        with pytest.raises(PoolFailed, match="is not the subvolume of a layer any more"):
            action()
    assert (place / "precious").read_text() == "x"


def test_a_link_in_the_place_of_a_subvolume_is_not_followed(store: Store, root: Path, host: Path) -> None:
    store.prepare("work")
    (number,) = subvolumes(root)
    place = root / "btrfs" / str(number)
    btrfs("subvolume", "delete", place)
    btrfs("subvolume", "create", host / "precious")
    place.symlink_to(host / "precious")
    with pytest.raises(ThinPoolError):
        store.mount("work")
    with pytest.raises((ThinPoolError, OSError)):
        store.remove("work")
    assert (host / "precious").is_dir()


def test_a_committed_layer_that_was_made_writable_and_written_to(store: Store, root: Path) -> None:
    store.import_layer("base", archive(a="1"))
    (number,) = subvolumes(root)
    store.prepare("work", "base")
    btrfs("property", "set", "-f", root / "btrfs" / str(number), "ro", "false")
    (root / "btrfs" / str(number) / "b").write_text("behind our back")
    os.sync()
    changes = store.changes("work")
    assert list(changes) == [Change("D", "/b")]
    assert changes.method == "walk"
    assert changes.reason == "the layer that both descend from was changed after it was committed"


# -- subvolumes in layers


def test_a_layer_with_a_subvolume_in_it_is_not_committed_but_removed(store: Store, root: Path) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "a").mkdir()
        btrfs("subvolume", "create", tree / "a" / "b")
        before = subvolumes(root)
        for live in (True, False):
            with pytest.raises(
                TreeError, match="the layer holds the subvolume /a/b, which a snapshot cannot take along"
            ):
                (store.checkpoint if live else store.commit)("done", "work")
        with pytest.raises(TreeError, match="/a/b"):
            store.changes("work", "work")
    assert subvolumes(root) == before
    store.remove("work")
    assert subvolumes(root) == []
    assert btrfs("subvolume", "list", root / "btrfs").splitlines() == []


def test_a_layer_goes_with_all_that_was_nested_in_it_also_where_that_is_read_only(store: Store, root: Path) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "deep").mkdir()
        place = tree / "deep" / "one"
        for name in ("two", "three", "four"):
            btrfs("subvolume", "create", place)
            (place / "file").write_text("x")
            place = place / name
        btrfs("subvolume", "create", tree / "other")
        btrfs("property", "set", tree / "deep" / "one" / "two", "ro", "true")
    store.remove("work")
    assert subvolumes(root) == []
    assert btrfs("subvolume", "list", root / "btrfs").splitlines() == []


def test_what_is_outside_stays_when_a_layer_links_to_it(store: Store, host: Path) -> None:
    btrfs("subvolume", "create", host / "precious")
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "a").symlink_to(host)
        btrfs("subvolume", "create", tree / "precious")
    store.remove("work")
    assert (host / "precious").is_dir()


def test_an_unmounted_layer_with_a_subvolume_in_it_is_compared_by_walking(store: Store) -> None:
    store.import_layer("base", archive(a="1"))
    store.prepare("work", "base")
    with store.mount("work") as tree:
        btrfs("subvolume", "create", tree / "b")
        (tree / "b" / "c").write_text("x")
    changes = store.changes("work")
    assert list(changes) == [Change("A", "/b"), Change("A", "/b/c")]
    assert changes.reason == "there is a subvolume in it"


# -- other namespaces, and processes that die


def test_a_mount_in_another_namespace_counts(store: Store, root: Path) -> None:
    store.prepare("work")
    (number,) = subvolumes(root)
    script = f"mount --bind {root}/btrfs/{number} /mnt && echo ready && read line"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(LayerInUse):
            store.remove("work")
        store.commit("done", "work")
        assert len(subvolumes(root)) == 2
        other.communicate("go\n")
    store.up()
    assert len(subvolumes(root)) == 1
    store.remove("done")


@pytest.mark.parametrize("booted", [True, False])
def test_a_deletion_that_a_power_cut_undid_is_done_again(store: Store, root: Path, *, booted: bool) -> None:
    store.prepare("first")
    (number,) = subvolumes(root)
    store.prepare("second")
    store.remove("first")
    btrfs("subvolume", "create", root / "btrfs" / str(number))
    with Store.open(root) as again:
        if booted:
            again._session.state.put("btrfs-boot", "another boot")
            again.prepare("third")
        else:
            again.prepare("third")
            again.up()
        assert number not in subvolumes(root)
        assert len(subvolumes(root)) == 2


@pytest.mark.timeout(200)
def test_killed_in_the_middle_of_ioctls(store: Store, root: Path) -> None:
    """A process is killed at the entry of, or just after, each ioctl in turn."""
    store.import_layer("base", archive(a="1"))
    script = f"from {__name__} import work; work({str(root)!r}, int(__import__('sys').argv[1]))"
    for moment in range(100):
        done = subprocess.run([sys.executable, "-c", script, str(moment)], check=False, timeout=60)
        with Store.open(root) as again:
            again.up()
            again.down()
            names = [layer.name for layer in again.walk()]
            assert "base" in names
            assert len(subvolumes(root)) == len(names)
            assert os.listdir(root / "btrfs" / "passing") == []
            for layer in sorted(again.walk(), key=lambda layer: layer.created, reverse=True):
                with again.mount(layer.name) as tree:
                    assert (tree / "a").read_text() == "1"
                if layer.name != "base":
                    again.remove(layer.name)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    else:
        pytest.fail("it never came to an end")
    assert moment > 10


def work(root: str, moment: int) -> None:
    """Prepare, commit, compare and remove; die around the ioctl of that number."""
    from thinpool.btrfs import ioctl  # noqa: PLC0415

    count = 0
    carry_out: Callable[..., None] = ioctl.call

    def dying(fd: int, request: int, name: str, argument: bytearray) -> None:
        nonlocal count
        if request in {ioctl.TREE_SEARCH_V2, ioctl._GET_SUBVOL_INFO, ioctl._FS_INFO}:
            carry_out(fd, request, name, argument)
            return
        for before in (True, False):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            if before:
                carry_out(fd, request, name, argument)

    ioctl.call = dying
    with Store.open(root) as store:
        store.prepare("work", "base")
        with store.mount("work") as tree:
            (tree / "b").write_text("x")
            store.checkpoint("first", "work")
        store.changes("work")
        store.commit("second", "work")
        store.remove("first")
        store.view("look", "second")
        store.remove("look")
