"""Several processes and threads with one store, a store closed and opened, brought down and up, and killed users."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import Everything, fill, is_mounted, look, names_in, text, told
from thinpool import Kind, Store
from thinpool.drivers.base import BlockDevices, Deferring, Growable, Naming
from thinpool.errors import ConfigError, DriverUnsupported, LayerExists, LayerInUse, LayerNotFound, ThinPoolError

pytestmark = pytest.mark.kernel(device_mapper=False)


def in_other_process(call: str, root: Path, *starter: str) -> subprocess.Popen[str]:
    """Run a statement about `store` in another process, started by whatever, and hold the process when it is done."""
    script = f"import sys; from thinpool import Store; store = Store.open(sys.argv[1], create=False); {call}"
    process = subprocess.Popen(
        [*starter, sys.executable, "-c", f"{script}; print('ready', flush=True); sys.stdin.read()", root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_closed_and_opened_again(own_store: Store) -> None:
    fill(own_store, "base", text("f"))
    work = own_store.prepare("work", "base", labels={"a": "b"})
    own_store.close()
    with Store.open(own_store.root) as again:
        assert not again.created
        assert again.driver == own_store.driver
        assert again.stat("work") == work
        with again.mount("work") as root:
            (root / "g").write_text("g")
        again.commit("done", "work")
        assert told(again.changes("done")) == [("A", "/g")]
    again.close()


def test_everything_is_there_after_down_and_up(own_store: Store) -> None:
    store = own_store
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    mount = store.mount("work")
    (mount.target / "g").write_text("g")
    store.down()
    assert not is_mounted(mount.target)
    assert os.listdir(store.root / "mnt") == []
    store.down()
    assert names_in(store) == {"base", "work"}
    store.up()
    store.up()
    assert set(look(store, "work")) == {b"/", b"/f", b"/g"}
    store.down()
    with store.mount("work") as root:  # what needs the storage brings it up
        assert (root / "g").read_text() == "g"


def test_down_says_what_is_in_use(own_store: Store) -> None:
    own_store.prepare("work")
    with own_store.mount("work") as root:
        holder = os.open(root, os.O_RDONLY)
        with pytest.raises(LayerInUse):
            own_store.down()
        assert is_mounted(root)
        os.close(holder)


def test_another_driver_does_not_open_it(store: Store) -> None:
    other = "overlay" if store.driver != "overlay" else "devicemapper"
    for driver in (other, "no-such-driver"):
        with pytest.raises(ConfigError, match=driver):
            Store.open(store.root, driver)
    with pytest.raises(ConfigError, match="no-such-option"):
        Store.open(store.root, options={"no-such-option": "1"})
    with Store.open(store.root, store.driver, store.info().options) as again:
        assert again.info().options == store.info().options


def test_two_values_of_one_store_see_each_other(store: Store) -> None:
    fill(store, "base", text("f"))
    with Store.open(store.root) as other:
        other.prepare("work", "base")
        with store.mount("work") as root:
            (root / "g").touch()
            with pytest.raises(LayerInUse, match=str(root)):
                other.remove("work")
            assert other.mounted() == {"work"}
            other.commit("done", "work")
        assert told(store.changes("done")) == [("A", "/g")]
        other.unmount(store.mount("done").target)
        assert store.mounted() == set()


def work_a_lot(root: str, worker: str) -> None:
    """Make, use, commit and remove layers."""
    with Store.open(root) as store:
        for number in range(4):
            name = f"{worker}-{number}"
            store.prepare(name, "base")
            with store.mount(name) as mounted:
                (mounted / name).write_text(name)
                if number % 3 == 0:
                    store.checkpoint(f"{name}.point", name)
            store.commit(f"{name}.done", name)
            if number % 2:
                store.remove(f"{name}.done")


def test_processes_and_threads_work_at_once(store: Store) -> None:
    fill(store, "base", text("f"))
    script = f"import sys; from {__name__} import work_a_lot; work_a_lot(*sys.argv[1:])"
    workers = [subprocess.Popen([sys.executable, "-c", script, store.root, f"process-{n}"]) for n in range(2)]
    threads = [threading.Thread(target=work_a_lot, args=(str(store.root), f"thread-{n}")) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(names_in(store)) == 1 + 4 * (2 + 2)
    for worker in ("process-0", "thread-1"):
        assert told(store.changes(f"{worker}-2.done")) == [("A", f"/{worker}-2")]
        assert told(store.changes(f"{worker}-3.point")) == [("A", f"/{worker}-3")]


def test_one_name_is_given_to_one_of_many(store: Store) -> None:
    won: list[int] = []
    failures: list[BaseException] = []

    def take(number: int) -> None:
        try:
            store.prepare("wanted")
            won.append(number)
        except LayerExists:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(won) == 1


def test_a_mount_outlives_the_process_that_made_it(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    process = in_other_process("mount = store.mount('work')", store.root)
    process.kill()
    process.communicate()
    [target] = store.mounts("work")
    assert (target / "f").read_text() == "text"
    with pytest.raises(LayerInUse, match=str(target)):
        store.remove("work")
    store.unmount("work")
    assert not target.exists()
    store.remove("work")


def test_a_mount_in_another_namespace_is_seen(own_store: Store) -> None:
    """It keeps the layer from being removed, or only its storage, where that can follow when the mount is gone."""
    store = own_store
    store.prepare("work")
    process = in_other_process("mount = store.mount('work')", store.root, "unshare", "--mount")
    try:
        assert list(store.mounts("work")) == []
        before = Everything.of(store)
        if isinstance(store._session.driver, Deferring):
            store.remove("work")
            assert len(store._session.state.unfinished()) == 1
            store.prepare("work")
        else:
            with pytest.raises(LayerInUse) as raised:
                store.remove("work")
            assert isinstance(store._session.driver, Naming) == (f"pid {process.pid}" in raised.value.message)
            assert Everything.of(store).layers == before.layers
    finally:
        process.kill()
        process.communicate()
    limit = time.monotonic() + 30
    while True:  # the kernel takes the namespace's mounts down after its last process, and tells nobody
        try:
            store.remove("work")
            return
        except LayerInUse:
            assert time.monotonic() < limit
            time.sleep(0.02)


def test_a_look_inside_ends_with_the_process_that_looks(store: Store) -> None:
    """A process that dies while it compares, exports or imports holds nothing any more."""
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    look_inside = "import os, thinpool.mounting as m; o = m.looked_into(store._session, 'work'); o.__enter__()"
    process = in_other_process(look_inside, store.root)
    process.kill()
    process.communicate()
    store.remove("work")
    store.remove("base")


def test_an_import_whose_process_dies_leaves_nothing(store: Store) -> None:
    fill(store, "base", lambda root: (root / "big").write_bytes(os.urandom(2 << 20)))
    before = Everything.of(store)
    script = (
        "import sys; from thinpool import Store; store = Store.open(sys.argv[1]);"
        "store.import_layer('new', sys.stdin.buffer, parent='base')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, store.root], stdin=subprocess.PIPE)
    archive = Path("/dev/shm") / f"archive-{os.getpid()}"
    with archive.open("w+b") as file:
        store.export_layer("base", file)
        file.seek(0)
        assert process.stdin is not None
        process.stdin.write(file.read(1 << 20))  # more than a pipe holds, so that the import has begun
        process.stdin.flush()
    archive.unlink()
    process.kill()
    process.stdin.close()
    process.wait()
    store.up()
    assert Everything.of(store) == before
    fill(store, "new", text("f"), "base")


def test_a_name_whose_commit_was_killed_is_one_or_the_other(store: Store) -> None:
    """Killed at any moment of a commit, there is either the active layer or the committed one, never both or none."""
    for number in range(6):
        store.prepare("work")
        with store.mount("work") as root:
            (root / "f").write_text(f"{number}")
        script = (
            "import sys; from thinpool import Store; store = Store.open(sys.argv[1]); store.stat('work');"
            "print('ready', flush=True); store.commit('done', 'work')"
        )
        process = subprocess.Popen([sys.executable, "-c", script, store.root], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        store.up()
        [layer] = store.walk()
        assert (layer.name, layer.kind) in {("work", Kind.ACTIVE), ("done", Kind.COMMITTED)}
        with store.mount(layer.name) as root:
            assert (root / "f").read_text() == f"{number}"
        store.remove(layer.name)


def test_block_devices_are_given_or_refused_plainly(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    before = Everything.of(store)
    if isinstance(store._session.driver, BlockDevices):
        with store.device("work") as device:
            assert device.is_block_device()
            with pytest.raises(LayerInUse):
                store.remove("work")
        with store.device("base") as device, device.open("r+b", 0) as file, pytest.raises(OSError, match="permitted"):
            file.write(bytes(4096))
    else:
        with pytest.raises(DriverUnsupported, match=store.driver):
            store.device("work")
    assert Everything.of(store) == before
    with pytest.raises((LayerNotFound, DriverUnsupported)):
        store.device("missing")


def test_storage_grows_or_that_is_refused_plainly(own_store: Store) -> None:
    if isinstance(own_store._session.driver, Growable):
        own_store.grow(data="5G")
        pool = own_store.info().pool
        assert pool is not None
        assert pool.data_total >= 5 << 30
        with pytest.raises(ConfigError):
            own_store.grow(data="1G")
    else:
        with pytest.raises(DriverUnsupported, match=own_store.driver):
            own_store.grow(data="5G")


def test_what_is_told_of_the_store(store: Store) -> None:
    info = store.info()
    assert (info.root, info.driver, info.layers) == (store.root, store.driver, 0)
    assert dict(info.options) == json.loads(json.dumps(dict(info.options)))
    assert all("\n" not in warning and not warning.endswith(".") for warning in info.warnings)
    with pytest.raises(ThinPoolError):
        store.layer_of(1 << 23)
