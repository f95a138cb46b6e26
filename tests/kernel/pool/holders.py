"""A process that checkpoints a layer and stops at a chosen ioctl, for whoever wants to kill or stop it there."""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from thinpool import Store
from thinpool.dm import Control, DeviceInfo

SCRIPT = """
import sys
from thinpool import Store

root, stop, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
counting, count = False, 0

def hook(event, arguments):
    global count
    if counting and event == "fcntl.ioctl" and arguments[0] == control:
        count += 1
        if count == stop:
            print("stopped", flush=True)
            sys.stdin.readline()

with Store.open(root) as store:
    holder = store._session.driver._thins.holder
    holder._seconds = seconds
    holder.guard.start()
    control = store._session.driver._control.fileno()
    print(holder.guard.pid, flush=True)
    store.up()
    sys.addaudithook(hook)
    counting = True
    try:
        store.checkpoint("point", "work")
        print("done", count, flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


class Checkpointer:
    """The process, before its `stop`-th ioctl or (0) at its end.

    Attributes:
        guard: process id of its guard.
        said: what it said last.
    """

    def __init__(self, store: Store, stop: int, seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, store.root, str(stop), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.guard = int(self.line())
        self.said = self.line()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> str:
        """Let it end: what it said of its checkpoint."""
        said, _ = self._process.communicate("\n")
        return said.strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def checkpointer(store: Store, stop: int, *, seconds: float = 10.0) -> Iterator[Checkpointer]:
    """The process that checkpoints `work` as `point`, there until the end of the block at the latest."""
    process = Checkpointer(store, stop, seconds)
    try:
        yield process
    finally:
        process.end()


def device_of(store: Store, name: str) -> str:
    """The device-mapper name of a layer's device."""
    record = store._session.record(name)
    return store._session.driver._thins.name(record.handle)  # type: ignore[attr-defined,no-any-return]


def info_of(store: Store, name: str) -> DeviceInfo:
    """The kernel's state of a layer's device."""
    with Control() as control:
        return control.info(device_of(store, name))


def wait_for_end(pid: int) -> None:
    """Wait until a process that need not be a child of ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)
