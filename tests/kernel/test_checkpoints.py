"""Checkpoints of what runs: a guest that has the device, hooks around the moment, and what goes wrong with them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.pool.holders import device_of, info_of, wait_for_end
from tests.kernel.pool.tools import loop_on, run
from tests.kernel.test_crash import check_storage
from thinpool import Kind, Store
from thinpool.errors import ConfigError, HookFailed, LayerExists, WrongKind

pytestmark = pytest.mark.kernel


@contextmanager
def guest(store: Store, folder: Path) -> Iterator[Path]:
    """What a microVM is to the host: somebody has the device open, and a file system on it that we cannot see."""
    folder.mkdir()
    with store.device("vm") as device, loop_on(device) as disk:
        run("mount", disk, folder)
        try:
            yield folder
        finally:
            run("umount", folder)


def write(path: Path, text: str, *, synced: bool) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def agent(folder: Path, log: Path) -> list[str]:
    """A hook that freezes and thaws a guest, and notes what it was called with."""
    return ["sh", "-c", f'echo "$1" >>{log}; fsfreeze --"$(echo "$1" | sed s/thaw/unfreeze/)" {folder}', "agent"]


def test_of_a_guests_device_what_a_power_cut_would_leave(store: Store, scratch: Path) -> None:
    store.prepare("vm")
    with guest(store, scratch / "guest") as root:
        for number in range(3):
            write(root / f"{number}", f"{number}", synced=True)
            layer = store.checkpoint(f"point-{number}", "vm")
            assert (layer.kind, layer.crash_consistent) == (Kind.COMMITTED, True)
            assert layer == store.stat(f"point-{number}")
        write(root / "late", "late", synced=True)
    for number in range(3):
        with store.mount(f"point-{number}") as root:  # the journal is replayed
            assert {path.name for path in root.iterdir()} == {f"{before}" for before in range(number + 1)}
            assert (root / f"{number}").read_text() == f"{number}"
    layer = store.checkpoint("rest", "vm")
    assert not layer.crash_consistent
    with store.mount("rest") as root:
        assert (root / "late").read_text() == "late"
    check_storage(store)


def test_a_guest_that_holds_still_is_copied_clean(store: Store, scratch: Path) -> None:
    store.prepare("vm")
    log = scratch / "log"
    with guest(store, scratch / "guest") as root:
        write(root / "f", "only in the guest's memory", synced=False)
        store.checkpoint("point", "vm", freeze=agent(root, log))
        write(root / "f", "after", synced=True)  # it was thawed
    assert log.read_text().split() == ["freeze", "thaw"]
    with store.mount("point") as root:
        assert (root / "f").read_text() == "only in the guest's memory"
    with store.device("point") as device:
        assert "needs_recovery" not in run("dumpe2fs", "-h", device)


def test_a_mounted_layer_is_clean(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        write(root / "f", "text", synced=False)
        assert not store.checkpoint("point", "work").crash_consistent
    with store.device("point") as device:
        assert "needs_recovery" not in run("dumpe2fs", "-h", device)


def test_a_function_is_called_around_the_copy(store: Store) -> None:
    store.prepare("work")
    calls: list[tuple[str, bool]] = []
    with store.mount("work") as root:

        def hook(step: str) -> None:
            (root / step).touch()
            calls.append((step, info_of(store, "work").suspended))

        store.checkpoint("point", "work", freeze=hook)
    assert calls == [("freeze", False), ("thaw", False)]
    with store.mount("point") as root:
        assert os.listdir(root) == ["freeze"]


@pytest.mark.parametrize("failing", ["freeze", "thaw"])
def test_a_hook_that_fails(store: Store, scratch: Path, failing: str) -> None:
    store.prepare("work")
    log = scratch / "log"
    command = ["sh", "-c", f'echo "$1" >>{log}; if [ "$1" = {failing} ]; then echo no such guest; exit 3; fi', "agent"]
    with store.mount("work"):
        with pytest.raises(HookFailed, match=rf"{failing}` failed with status 3: no such guest"):
            store.checkpoint("point", "work", freeze=command)
        assert log.read_text().split() == ["freeze", "thaw"]

        def hook(step: str) -> None:
            if step == failing:
                raise ValueError(step)

        with pytest.raises(HookFailed, match=f"failed at {failing}: ValueError"):
            store.checkpoint("point", "work", freeze=hook)
    assert [layer.name for layer in store.walk()] == ["work"]
    check_storage(store)


def test_a_hook_that_does_not_end_is_ended(store: Store, scratch: Path) -> None:
    store.prepare("work")
    log = scratch / "log"
    script = f'echo "$1" >>{log}; if [ "$1" = freeze ]; then sleep 1000 & sleep 1000; fi'
    with store.mount("work"), pytest.raises(HookFailed, match=r"took longer than 0\.3 s and was ended"):
        store.checkpoint("point", "work", freeze=["sh", "-c", script, "agent"], freeze_seconds=0.3)
    assert log.read_text().split() == ["freeze", "thaw"]
    assert [layer.name for layer in store.walk()] == ["work"]


def test_the_thaw_comes_also_where_the_copy_fails(store: Store) -> None:
    store.prepare("work")
    calls: list[str] = []
    with store.mount("work") as root:
        run("fsfreeze", "--freeze", str(root))
        with pytest.raises(Exception, match="held frozen"):
            store.checkpoint("point", "work", freeze=calls.append)
        run("fsfreeze", "--unfreeze", str(root))
    assert calls == ["freeze", "thaw"]


def test_no_hook_is_called_in_vain(store: Store) -> None:
    store.prepare("work")
    store.checkpoint("base", "work")
    store.view("view", "base")
    calls: list[str] = []
    with pytest.raises(LayerExists):
        store.checkpoint("base", "work", freeze=calls.append)
    for name in ("base", "view"):
        with pytest.raises(WrongKind, match="only an active layer"):
            store.checkpoint("point", name, freeze=calls.append)
    hooks: list[Sequence[str]] = [[], "fsfreeze --freeze /mnt"]
    for hook in hooks:
        with pytest.raises(ConfigError, match="accepted are a function and a list"):
            store.checkpoint("point", "work", freeze=hook)
    with pytest.raises(ConfigError, match="more than 0"):
        store.checkpoint("point", "work", freeze=["true"], freeze_seconds=0)
    with pytest.raises(HookFailed, match="cannot be run: No such file"):
        store.checkpoint("point", "work", freeze=["/no/such/agent"])
    assert calls == []


def test_a_guest_is_thawed_where_the_process_that_froze_it_is_killed(store: Store, scratch: Path) -> None:
    store.prepare("work")
    log = scratch / "log"
    script = (
        "import sys; from thinpool import Store; store = Store.open(sys.argv[1]);"
        "store.checkpoint('point', 'work', freeze=['sh', '-c', sys.argv[2], 'agent'])"
    )
    hook = f'echo "$1" >>{log}; if [ "$1" = freeze ]; then echo $$ >&3; exec sleep 1000; fi; echo $$ >&3'
    read, told = os.pipe()
    with store.mount("work"), os.fdopen(read) as numbers:
        words = [sys.executable, "-c", script, str(store.root), f"exec 3>/proc/{os.getpid()}/fd/{told}; {hook}"]
        process = subprocess.Popen(words)
        freezing = int(numbers.readline())
        process.kill()
        process.wait()
        thawing = int(numbers.readline())
        os.close(told)
        wait_for_end(thawing)
        os.kill(freezing, signal.SIGKILL)
        assert log.read_text().split() == ["freeze", "thaw"]
        store.checkpoint("point", "work")
    assert device_of(store, "work")
    check_storage(store)
