"""A layer in use is held for its copy and for nothing else, and let go by somebody whatever becomes of the holder."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.pool.holders import checkpointer, device_of, info_of, wait_for_end
from tests.kernel.pool.tools import mapped, run
from tests.kernel.test_crash import check_storage
from thinpool import Store
from thinpool.dm import Control
from thinpool.errors import LayerInUse, PoolFailed, PoolFull
from thinpool.guard import Guard, Order
from thinpool.units import MIB, SECTOR

pytestmark = pytest.mark.kernel

DiskFactory = Callable[[int], Path]
SUSPEND, MESSAGE, RESUME, STATUS = IOCTLS = range(5, 9)
"""The last of the ioctls of a checkpoint; the first four look at devices."""


@contextmanager
def worked_in(store: Store) -> Iterator[Path]:
    """The layer `work`, mounted, with a file."""
    store.prepare("work")
    with store.mount("work") as root:
        (root / "f").write_text("before")
        yield root


def names(store: Store) -> set[str]:
    return {layer.name for layer in store.walk()}


# -- killed


@pytest.mark.timeout(200)
@pytest.mark.parametrize("guarded", [True, False])
def test_killed_before_each_of_its_ioctls(store: Store, *, guarded: bool) -> None:
    with worked_in(store) as root:
        for stop in IOCTLS:
            with checkpointer(store, stop) as process:
                held = stop in {MESSAGE, RESUME}
                assert info_of(store, "work").suspended == held
                if not guarded:
                    os.kill(process.guard, signal.SIGKILL)
                    wait_for_end(process.guard)
                process.end()
                wait_for_end(process.guard)  # it ends when there is nothing left to do
                assert info_of(store, "work").suspended == (held and not guarded), stop
            with Store.open(store.root) as again:
                again.up()
                assert not info_of(again, "work").suspended
                (root / "f").write_text(f"after {stop}")
                if "point" in names(again):
                    again.remove("point")
                assert names(again) == {"work"}
                again.checkpoint("next", "work")
                again.remove("next")
    check_storage(store)


def test_what_others_suspended_is_theirs_also_after_a_crash(store: Store) -> None:
    with worked_in(store):
        name = device_of(store, "work")
        with checkpointer(store, 1) as process:
            process.end()
        run("dmsetup", "suspend", name)
        with Store.open(store.root) as again:
            again.up()
            assert info_of(again, "work").suspended
        run("dmsetup", "resume", name)


# -- stuck


def test_a_stopped_process_does_not_hold_for_ever(store: Store) -> None:
    with worked_in(store) as root, checkpointer(store, MESSAGE, seconds=0.2) as process:
        os.kill(process.pid, signal.SIGSTOP)
        (root / "f").write_text("written while the process is stopped")
        os.sync()
        assert not info_of(store, "work").suspended
        os.kill(process.pid, signal.SIGCONT)
        assert process.go_on().startswith("PoolFailed device thinpool-")
        assert names(store) == {"work"}
        store.checkpoint("point", "work")
    check_storage(store)


def test_resumed_by_somebody_else_the_copy_is_not_trusted(store: Store) -> None:
    with worked_in(store), checkpointer(store, MESSAGE) as process:
        assert info_of(store, "work").suspended
        run("dmsetup", "resume", device_of(store, "work"))
        assert "was resumed before its copy was made" in process.go_on()
        assert names(store) == {"work"}
    check_storage(store)


@pytest.fixture
def slow_store(scratch: Path, disk_factory: DiskFactory) -> Iterator[tuple[Store, Callable[[int], None]]]:
    """A store on a metadata device whose writes can be made to take some milliseconds each."""
    run("modprobe", "dm-delay")
    data, disk = disk_factory(512 * MIB), disk_factory(64 * MIB)
    sectors = 64 * MIB // SECTOR
    with mapped("slow", f"0 {sectors} delay {disk} 0 0 {disk} 0 0") as metadata:

        def delay(milliseconds: int) -> None:
            run("dmsetup", "load", "slow", "--table", f"0 {sectors} delay {disk} 0 0 {disk} 0 {milliseconds}")
            run("dmsetup", "resume", "--noudevsync", "slow")

        options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "128M"}
        with Store.open(scratch / "root", "devicemapper", options) as store:
            yield store, delay
            store.down()


def test_a_copy_that_takes_too_long_is_given_up(slow_store: tuple[Store, Callable[[int], None]]) -> None:
    store, delay = slow_store
    holder = store._session.driver._thins.holder  # type: ignore[attr-defined]
    with worked_in(store) as root:
        store.checkpoint("first", "work")
        _wait_until_ready(holder.guard, store.root / "ready")
        holder._seconds = 0.05
        delay(300)
        with pytest.raises(PoolFailed, match=r"took longer than 0\.05 s"):
            store.checkpoint("point", "work")
        delay(0)
        assert not info_of(store, "work").suspended
        (root / "f").write_text("after")
        assert names(store) == {"first", "work"}
        holder._seconds = 10.0
        store.checkpoint("point", "work")
    with store.mount("point") as root:
        assert (root / "f").read_text() == "after"
    check_storage(store)


def _wait_until_ready(guard: Guard, flag: Path) -> None:
    """Wait until the guard does what it is told; where all is slow, it may take longer to start than a hold takes."""
    with guard.over(Order(0.001, command=("touch", str(flag)))):
        while not flag.exists():
            assert guard.pid is not None


def test_a_guard_that_was_killed_is_replaced(store: Store) -> None:
    with worked_in(store):
        store.checkpoint("one", "work")
        guard = store._session.driver._thins.holder.guard  # type: ignore[attr-defined]
        first = guard.pid
        os.kill(first, signal.SIGKILL)
        wait_for_end(first)
        store.checkpoint("two", "work")
        assert guard.pid != first


def test_no_guard_where_nobody_is_held(store: Store) -> None:
    store.prepare("work")
    store.checkpoint("one", "work")
    store.commit("two", "work")
    assert store._session.driver._thins.holder.guard.pid is None  # type: ignore[attr-defined]


# -- held by others, or beyond help


@pytest.mark.parametrize("live", [True, False])
def test_a_file_system_that_somebody_else_froze(store: Store, *, live: bool) -> None:
    commit = store.checkpoint if live else store.commit
    with worked_in(store) as root:
        run("fsfreeze", "--freeze", str(root))
        with pytest.raises(LayerInUse, match="held frozen by somebody else") as caught:
            commit("point", "work")
        assert "fsfreeze" in (caught.value.hint or "")
        assert names(store) == {"work"}
        run("fsfreeze", "--unfreeze", str(root))  # an error where it is not frozen any more
        commit("point", "work")
    check_storage(store)


def test_a_device_that_somebody_else_suspended(store: Store) -> None:
    with worked_in(store) as root:
        (root / "dirty").write_bytes(bytes(MIB))
        name = device_of(store, "work")
        run("dmsetup", "suspend", "--nolockfs", "--noflush", name)
        with pytest.raises(LayerInUse, match="held suspended by somebody else"):
            store.checkpoint("point", "work")
        assert info_of(store, "work").suspended
        run("dmsetup", "resume", name)
        store.checkpoint("point", "work")


@pytest.mark.parametrize("live", [True, False])
def test_a_file_system_that_an_error_made_read_only(store: Store, *, live: bool) -> None:
    with worked_in(store) as root:
        run("mount", "-o", "remount,errors=remount-ro", str(root))
        minor = info_of(store, "work").minor
        Path(f"/sys/fs/ext4/dm-{minor}/trigger_fs_error").write_text("for a test")
        with pytest.raises(OSError, match="Read-only"):
            (root / "g").touch()
        with pytest.raises(
            PoolFailed, match=r"read-only since an error|cannot be frozen: Input/output error"
        ) as caught:
            (store.checkpoint if live else store.commit)("point", "work")
        assert "dmesg" in (caught.value.hint or "")
        assert names(store) == {"work"}
        assert not info_of(store, "work").suspended


def test_a_full_file_system(store: Store) -> None:
    with worked_in(store) as root:
        with pytest.raises(OSError, match="No space"), (root / "ballast").open("wb", 0) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 30)
        with pytest.raises(OSError, match="No space"), (root / "ballast").open("wb", 0) as file:
            while True:
                file.write(bytes(MIB))
        size = (root / "ballast").stat().st_size
        store.checkpoint("point", "work")
    with store.mount("point") as root:
        assert (root / "ballast").stat().st_size == size
        assert (root / "f").read_text() == "before"


def test_metadata_that_run_out_in_the_middle(scratch: Path) -> None:
    options = {"dm.loopdatasize": "1G", "dm.loopmetadatasize": "2M", "dm.basesize": "256M", "dm.min_free_space": "0"}
    with Store.open(scratch / "root", "devicemapper", options) as store:
        with worked_in(store) as root, (root / "f").open("r+b", 0) as file:
            made = 0
            with pytest.raises((PoolFull, PoolFailed)) as caught:
                while True:
                    store.checkpoint(f"point-{made}", "work")
                    made += 1
                    os.pwrite(file.fileno(), bytes(4096), made << 20)
            assert caught.value.hint
            assert made > 3
            assert not info_of(store, "work").suspended
            assert names(store) == {"work", *(f"point-{number}" for number in range(made))}
        store.down()


def test_checkpoints_at_once(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                store.checkpoint(f"point-{number}-{turn}", "work")
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    with worked_in(store):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        with Store.open(store.root) as other:
            for turn in range(5):
                other.checkpoint(f"other-{turn}", "work")
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(names(store)) == 1 + 4 * 5 + 5
    check_storage(store)


def test_a_fork_has_a_guard_of_its_own(store: Store) -> None:
    with worked_in(store):
        store.checkpoint("one", "work")
        guard = store._session.driver._thins.holder.guard  # type: ignore[attr-defined]
        ours = guard.pid
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.checkpoint("two", "work")
                status = 0 if guard.pid != ours else 2
                guard.close()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert guard.pid == ours
        store.checkpoint("three", "work")
    assert {"one", "two", "three"} <= names(store)


def test_the_kernel_is_told_to_resume_by_the_same_call(store: Store) -> None:
    """What the guard does is what `Control.resume` does."""
    with worked_in(store), Control() as control:
        name = device_of(store, "work")
        control.suspend(name)
        script = "import fcntl, sys; fcntl.ioctl(int(sys.argv[1]), int(sys.argv[2]), bytearray.fromhex(sys.argv[3]))"
        request, argument = control.resume_call(name)
        words = ["python", "-c", script, str(control.fileno()), str(request), argument.hex()]
        subprocess.run(words, check=True, pass_fds=[control.fileno()])
        assert not control.info(name).suspended
        assert not control.resume(name).resumed
        control.suspend(name)
        assert control.resume(name).resumed
