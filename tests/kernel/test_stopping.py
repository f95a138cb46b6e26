"""A store brought down while others hold something of it, and up again after a boot."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.kernel.people import let_go, somebody
from thinpool import Store, loop
from thinpool.drivers.devicemapper import Devicemapper
from thinpool.errors import LayerInUse
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.holders import Why
from thinpool.metadata import Books
from thinpool.mounting import looked_into

pytestmark = pytest.mark.kernel


@pytest.fixture
def place(scratch: Path) -> Path:
    """A directory to mount on."""
    made = scratch / "place"
    made.mkdir()
    return made


def devices() -> list[str]:
    """The names of all device-mapper devices."""
    found = []
    for entry in Path("/sys/block").glob("dm-*/dm/name"):
        with suppress(OSError):
            found.append(entry.read_text().strip())
    return found


def is_down(store: Store) -> bool:
    """Whether the store has nothing in the kernel."""
    files = (store.root / "devicemapper" / name for name in ("data", "metadata"))
    return not any("thinpool" in name for name in devices()) and not any(map(loop.find, files))


def wait_until_down(store: Store) -> None:
    """The kernel takes what is deferred down in a thread of its own, and tells of devices only by their uevents."""
    while not is_down(store):
        os.sched_yield()


def thin_ids(store: Store) -> set[int]:
    """The storage that is in the pool, its base left out."""
    driver = store._session.driver
    assert isinstance(driver, Devicemapper)
    with driver._pool.open_metadata() as device, Books.open(device) as books:
        return {found.thin_id for found in books.devices()} - {driver._base.storage.handle}


def test_down_names_all_that_is_held_and_takes_down_the_rest(store: Store, place: Path) -> None:
    for name in ("free", "worked-in", "open", "elsewhere"):
        store.prepare(name)
    free, worked_in, opened = (store.mount(name).target for name in ("free", "worked-in", "open"))
    (opened / "file").touch()
    store.mount("elsewhere", place)
    with (
        somebody(f"cd {worked_in}") as first,
        somebody(f"exec 3<{opened}/file") as second,
        somebody(f"umount {free} {worked_in} {opened}", "unshare", "--mount", "--propagation", "private") as third,
    ):
        with pytest.raises(LayerInUse) as raised:
            store.down()
        for process, why in ((first, Why.CWD), (second, Why.FILE), (third, Why.MOUNT)):
            assert (process.pid, why) in {(holder.pid, holder.why) for holder in raised.value.holders}
            assert f"pid {process.pid} (sh)" in raised.value.message
        assert [store.mounted(), free.exists()] == [{"worked-in", "open"}, False]
    store.down()
    assert is_down(store)
    store.down()


def test_what_others_mounted_inside_is_theirs(store: Store) -> None:
    store.prepare("work")
    root = store.mount("work").target
    (root / "inside").mkdir()
    syscalls.mount("none", str(root / "inside"), "tmpfs")
    with pytest.raises(LayerInUse, match=f"mounted on {root}/inside"):
        store.down()
    store.down(lazy=True)
    assert is_down(store)
    assert root / "inside" not in {entry.target for entry in mounts.mount_table()}


def test_a_layer_inside_a_layer_goes_first(store: Store, place: Path) -> None:
    store.prepare("outer")
    store.prepare("inner")
    store.mount("outer", place)
    (place / "inside").mkdir()
    store.mount("inner", place / "inside")
    store.down()
    assert is_down(store)


@pytest.mark.parametrize("option", ["lazy", "force"])
def test_detached_all_goes_when_the_last_user_lets_go(
    store: Store, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare("work")
    root = store.mount("work").target
    with somebody(f"cd {root}; echo before >file") as process:
        store.down(**{option: True})
        assert f"pid {process.pid} (sh): working directory" in caplog.text
        assert not root.exists()
        assert not is_down(store)
    wait_until_down(store)
    with store.mount("work") as again:
        assert (again / "file").read_text() == "before\n"


def test_a_store_that_was_to_go_stays_when_it_is_needed_again(store: Store) -> None:
    store.prepare("work")
    root = store.mount("work").target
    with somebody(f"cd {root}") as process:
        store.down(lazy=True)
        store.prepare("other")
        with store.mount("work"), store.mount("other"):
            let_go(process)
    assert store.info().pool is not None
    assert store.info().pool.mode == "rw"  # type: ignore[union-attr]
    store.remove("other")


def test_without_deferred_removal_what_is_busy_is_an_error_that_names_it(store: Store) -> None:
    store.prepare("work")
    with Store.open(store.root, options={"dm.use_deferred_removal": "false"}) as again:
        root = again.mount("work").target
        with somebody(f"cd {root}") as process:
            for lazy in (False, True):
                with pytest.raises(LayerInUse, match=rf"pid {process.pid} \(sh\): working directory"):
                    again.down(lazy=lazy)
        again.down()
        assert is_down(again)


def test_force_detaches_in_other_namespaces(store: Store, place: Path) -> None:
    store.prepare("work")
    store.mount("work", place)
    with somebody("", "unshare", "--mount", "--propagation", "private") as process:
        there = Path(f"/proc/{process.pid}/mountinfo")
        store.down(lazy=True)
        assert str(place) in there.read_text()
        assert not is_down(store)
        store.down(force=True)
        assert f" {place} " not in there.read_text()
        wait_until_down(store)


def test_down_waits_for_those_who_hold_something(store: Store) -> None:
    store.prepare("work")
    root = store.mount("work").target
    with somebody(f"cd {root}") as process:
        thread = threading.Timer(0.3, let_go, [process])
        thread.start()
        store.down(timeout=60)
        thread.join()
    assert is_down(store)
    assert not root.exists()


def test_down_waits_no_longer_than_it_is_told(store: Store) -> None:
    store.prepare("work")
    root = store.mount("work").target
    with somebody(f"cd {root}") as process:
        with pytest.raises(LayerInUse, match=f"pid {process.pid}"):
            store.down(timeout=0.3)
        store.down(timeout=0.3, lazy=True)
    wait_until_down(store)


def boot(store: Store) -> None:
    """Take everything of the store out of the kernel as a boot does: without a word to its records."""
    store.close()
    prefix = f"thinpool-{os.stat(store.root).st_dev:x}-{os.stat(store.root).st_ino:x}"
    for entry in reversed(list(mounts.mount_table())):
        if entry.source.startswith("/dev/dm-"):
            mounts.detach(entry.target)
    thins = [name for name in devices() if name.startswith(prefix) and not name.endswith("-pool")]
    for name in [*thins, f"{prefix}-pool"]:
        subprocess.run(["dmsetup", "remove", "--noudevsync", "--retry", name], check=True)


def test_up_brings_a_store_back_after_a_boot(store: Store) -> None:
    for name in ("one", "two"):
        store.prepare(name)
        (store.mount(name).target / "file").write_text(name)
    boot(store)
    assert is_down(store)
    done = subprocess.run(["thinpool", "--root", store.root, "up"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Store.open(store.root) as again:
        assert again.info().pool is not None
        assert again.info().pool.mode == "rw"  # type: ignore[union-attr]
        for name in ("one", "two"):
            with again.mount(name) as root:
                assert (root / "file").read_text() == name


# -- mounts that others have


@contextmanager
def copied(store: Store, place: Path) -> Iterator["subprocess.Popen[str]"]:
    """The layer `work`, unmounted here, and in the namespace that somebody made while it was mounted."""
    store.mount("work", place)
    (place / "file").write_text("x")
    with somebody("", "unshare", "--mount", "--propagation", "private") as process:
        store.unmount("work")
        yield process


def test_a_copy_in_another_namespace_keeps_nobody_from_starting_again(store: Store, place: Path) -> None:
    store.prepare("work")
    with copied(store, place) as process:
        with store.mount("work", place) as root:
            assert (root / "file").read_text() == "x"
            (root / "more").touch()
        assert Path(f"/proc/{process.pid}/root{place}/more").exists()
        with pytest.raises(LayerInUse, match=rf"mounted on {place} for pid {process.pid} \(sh\)"):
            store.device("work")
        store.commit("done", "work")
        with store.device("done") as device:
            assert device.is_block_device()
        store.prepare("work", "done")
        with store.mount("work") as root:
            assert (root / "more").exists()


def test_a_look_inside_is_copied_by_nobody(store: Store) -> None:
    """What diff, export and import look into is in no mount table, so a namespace that is made meanwhile lacks it."""
    store.prepare("work")
    with ExitStack() as held:
        with looked_into(store._session, "work") as (_, root):
            number = os.fstat(root).st_dev
            held.enter_context(somebody("", "unshare", "--mount", "--propagation", "private"))
            assert list(mounts.everywhere((os.major(number), os.minor(number)))) == []
            with pytest.raises(LayerInUse, match=rf"pid {os.getpid()} \(.*\), at work with it"):
                store.remove("work")
        store.remove("work")
        assert store._session.state.unfinished() == []


def test_a_copy_of_a_private_mount_goes_with_it(store: Store) -> None:
    store.prepare("work")
    root = store.mount("work").target
    with somebody("", "unshare", "--mount", "--propagation", "private") as process:
        there = Path(f"/proc/{process.pid}/mountinfo")
        assert str(root) in there.read_text()
        store.unmount("work")
        assert str(root) not in there.read_text()
        store.remove("work")
        assert len(store._session.state.unfinished()) == 0


def test_a_layer_that_others_have_a_copy_of_is_removed(
    store: Store, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.prepare("work")
    with copied(store, place) as process:
        ids = thin_ids(store)
        store.remove("work")
        assert f"mounted on {place} for pid {process.pid} (sh)" in caplog.text
        assert [layer.name for layer in store.walk()] == []
        assert thin_ids(store) == ids
        store.prepare("work")
        with store.mount("work") as root:
            assert not (root / "file").exists()
        store.remove("work")
        assert Path(f"/proc/{process.pid}/root{place}/file").read_text() == "x"
        assert thin_ids(store) == ids
    wait_until_gone(store, ids)


def test_a_copy_that_somebody_works_in_keeps_its_layer(store: Store, place: Path) -> None:
    """As the root file system of a container that has a mount namespace of its own."""
    store.prepare("work")
    mount = store.mount("work", place)
    (mount.target / "file").write_text("x")
    with somebody(f"cd {place}", "unshare", "--mount", "--propagation", "private") as process:
        store.unmount("work")
        with pytest.raises(LayerInUse, match=rf"pid {process.pid} \(sh\): working directory"):
            store.remove("work")
        assert [layer.name for layer in store.walk()] == ["work"]
    remove_when_free(store, "work")


def remove_when_free(store: Store, name: str) -> None:
    """The kernel ends a namespace when its process is gone already."""
    removed = False
    while not removed:
        with suppress(LayerInUse):
            store.remove(name)
            removed = True


def wait_until_gone(store: Store, ids: set[int]) -> None:
    """Every removal looks after those before it; the kernel ends a namespace when its process is gone already."""
    while ids & thin_ids(store):
        store.prepare("another")
        store.remove("another")


@pytest.mark.parametrize("option", ["dm.use_deferred_removal", "dm.use_deferred_deletion"])
def test_where_nothing_is_deferred_the_copy_is_named(store: Store, place: Path, option: str) -> None:
    store.prepare("work")
    with Store.open(store.root, options={option: "false"}) as again:
        with copied(again, place) as process:
            with pytest.raises(LayerInUse, match=rf"mounted on {place} for pid {process.pid} \(sh\)"):
                again.remove("work")
            with again.mount("work") as root:
                assert (root / "file").exists()
        remove_when_free(again, "work")


def test_a_block_device_that_somebody_has_is_never_removed(store: Store) -> None:
    store.prepare("work")
    with store.device("work") as device:
        with (
            somebody(f"exec 3<{device}") as process,
            pytest.raises(LayerInUse, match=rf"open by pid {process.pid} \(sh\)"),
        ):
            store.remove("work")
        with pytest.raises(LayerInUse, match=rf"open by pid {os.getpid()} "):
            store.remove("work")
        with pytest.raises(LayerInUse, match="is open as a block device"):
            store.mount("work")
    store.remove("work")


def test_a_mount_of_a_dead_process_is_unmounted_removed_and_started_again(store: Store, place: Path) -> None:
    store.prepare("work")
    script = (
        "import os, sys; from thinpool import Store; Store.open(sys.argv[1]).mount('work', sys.argv[2]);"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run(["python", "-c", script, store.root, place], check=False)
    assert list(store.mounts("work")) == [place]
    with store.mount("work", place):
        pass
    store.unmount("work")
    store.remove("work")
    store.prepare("work")
    with store.mount("work", place):
        pass


def test_lazily_unmounted_it_can_be_removed_while_somebody_works_in_it(store: Store, place: Path) -> None:
    store.prepare("work")
    store.mount("work", place)
    with somebody(f"cd {place}") as process:
        with pytest.raises(LayerInUse, match=rf"pid {process.pid} \(sh\): working directory"):
            store.unmount("work")
        store.unmount("work", lazy=True)
        assert list(store.mounts("work")) == []
        ids = thin_ids(store)
        store.remove("work")
        assert thin_ids(store) == ids
    wait_until_gone(store, ids)
