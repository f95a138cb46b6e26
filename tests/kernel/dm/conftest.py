"""For the tests of device-mapper itself: the control device, disks, and a machine without an udevd."""

import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from thinpool import loop
from thinpool.dm import Control, DeviceInfo, TableEntry
from thinpool.dm.device import create_device, remove_device
from thinpool.errors import DeviceMapperError

MakeDevice = Callable[..., DeviceInfo]
MakeDisk = Callable[[int], Path]

_UDEVD = "/lib/systemd/systemd-udevd"
_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


@pytest.fixture
def control() -> Iterator[Control]:
    with Control() as control:
        yield control


@pytest.fixture
def disk(scratch: Path) -> Iterator[MakeDisk]:
    """Make a loop device of so many bytes, on a sparse file in memory."""
    with ExitStack() as held:
        made = 0

        def make(size: int) -> Path:
            nonlocal made
            image = scratch / f"disk{made}"
            made += 1
            with image.open("wb") as file:
                file.truncate(size)
            return held.enter_context(loop.attach(image, autoclear=True)).path

        yield make


@pytest.fixture
def device(control: Control, disk: MakeDisk) -> Iterator[MakeDevice]:  # noqa: ARG001 - the disks go last
    """Make a device with a table; what the test has not removed goes in reverse order, before the disks."""
    names: list[str] = []

    def make(name: str, table: list[TableEntry], *, uuid: str = "", read_only: bool = False) -> DeviceInfo:
        info = create_device(control, name, table, uuid=uuid, read_only=read_only)
        names.append(name)
        return info

    yield make
    for name in reversed(names):
        with suppress(DeviceMapperError):
            remove_device(control, name)


@pytest.fixture
def no_udevd() -> Iterator[None]:
    """No udevd: it is ended, and started again after the test."""
    subprocess.run(["udevadm", "settle"], check=True, timeout=120)  # or it would leave names that it made before
    (number,) = _udevds()
    try:
        _end(number)
        Path("/run/udev/control").unlink(missing_ok=True)
        yield
    finally:
        _start_udevd()


def _end(process: int) -> None:
    handle = os.pidfd_open(process)
    try:
        os.kill(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(30_000), "udevd did not end"
    finally:
        os.close(handle)


def _start_udevd() -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)  # or the new udevd would be taken for one that the test left behind
    try:
        subprocess.run([_UDEVD, "--daemon"], check=True, timeout=30)
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    assert _udevds()


def _udevds() -> list[int]:
    """The main process of each udevd: its workers' parent is that, its own is process 1."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            _, _, rest = entry.read_text(encoding="utf-8", errors="replace").partition("(")
            name, _, fields = rest.rpartition(")")
            if name in {"systemd-udevd", "udevd"} and fields.split()[1] == "1":
                found.append(int(entry.parts[2]))
    return found
