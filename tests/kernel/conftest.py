"""For the tests that need device-mapper: a fixture for each resource, and a check that no test leaves one behind."""

import contextlib
import ctypes
import gc
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest

from thinpool.units import SECTOR

if TYPE_CHECKING:
    from thinpool.pool.pool import ThinPool
    from thinpool.store import Store

Key = TypeVar("Key", int, str)
DiskFactory = Callable[[int], Path]

_HERE = Path(__file__).parent
# the kernel finishes some of an unmount, a deferred removal or an exit after the call that asked for it
_SETTLE_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    unmarked = [
        item.nodeid for item in items if item.path.is_relative_to(_HERE) and item.get_closest_marker("kernel") is None
    ]
    if unmarked:
        raise pytest.UsageError(f"without `pytestmark = pytest.mark.kernel`: {', '.join(unmarked)}")


@attrs.frozen
class Mount:
    """One line of mountinfo (proc(5)).

    Attributes:
        number: the kernel's number of the mount.
        target: where it is.
        what: type and source, for people.
    """

    number: int
    target: Path
    what: str


@attrs.frozen
class Resources:
    """Kernel objects that exist at one moment.

    Attributes:
        devices: device-mapper devices: name by kernel name (`dm-0`).
        loops: backing file by loop device (`loop0`).
        mounts: mounts by number.
        processes: command lines of this process's descendants by process id.
        files: what of /dev this process holds open, by file descriptor.
    """

    devices: dict[str, str]
    loops: dict[str, str]
    mounts: dict[int, Mount]
    processes: dict[int, str]
    files: dict[int, str]

    @classmethod
    def now(cls) -> "Resources":
        return cls(_devices(), _loops(), _mounts(), _processes(), _open_devices())

    def beyond(self, before: "Resources") -> "Resources":
        """What is here and was not there before."""
        return Resources(
            _extra(self.devices, before.devices),
            _extra(self.loops, before.loops),
            {number: mount for number, mount in self.mounts.items() if number not in before.mounts},
            {number: line for number, line in self.processes.items() if number not in before.processes},
            _extra(self.files, before.files),
        )

    def describe(self) -> list[str]:
        return [
            *(f"device-mapper device {name} ({kernel_name})" for kernel_name, name in self.devices.items()),
            *(f"loop device {loop} on {file}" for loop, file in self.loops.items()),
            *(f"mount on {mount.target} ({mount.what})" for mount in self.mounts.values()),
            *(f"process {number}: {line}" for number, line in self.processes.items()),
            *(f"file descriptor {number} of {path}" for number, path in self.files.items()),
        ]

    def destroy(self) -> None:
        """Take away what can be taken away, so that the tests that follow start clean."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for number in self.files:
            os.close(number)
        for number in sorted(self.mounts, reverse=True):
            _try("umount", "--lazy", str(self.mounts[number].target))
        for _ in self.devices:  # a thin device has to go before its pool: as many rounds as levels suffice
            for name in _extra(_devices(), {}).values():
                if name in self.devices.values():
                    _try("dmsetup", "remove", "--force", "--noudevsync", name)
        for loop in self.loops:
            _try("losetup", "--detach", f"/dev/{loop}")


@attrs.define
class LeakCheck:
    """Notices what a test leaves behind.

    Attributes:
        before: what there was before the test.
        folders: folders removed when nothing of the test is left in the kernel.
    """

    before: Resources
    folders: list[Path] = attrs.field(factory=list)

    def settled(self) -> Resources:
        """What is left once the kernel is done with what was asked of it."""
        limit = time.monotonic() + _SETTLE_SECONDS
        left = Resources.now().beyond(self.before)
        while left.describe() and time.monotonic() < limit:
            gc.collect()
            time.sleep(0.02)
            left = Resources.now().beyond(self.before)
        return left


@pytest.fixture(scope="session", autouse=True)
def _adopt_orphans() -> None:
    """Become the parent of what descendants leave running, or the leak check would lose sight of it."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(autouse=True)
def leak_check() -> Iterator[LeakCheck]:
    """Fail a test that leaves a device, loop, mount, process or open device behind, and take that away."""
    check = LeakCheck(Resources.now())
    yield check
    left = check.settled()
    left.destroy()
    inside = [mount.target for mount in _mounts().values() if any(map(mount.target.is_relative_to, check.folders))]
    if not inside:
        for folder in check.folders:
            shutil.rmtree(folder)
    if leaks := [*left.describe(), *(f"mount on {target} that cannot be undone" for target in inside)]:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)


@pytest.fixture
def scratch(leak_check: LeakCheck) -> Path:
    """A fresh folder in memory, removed after the test."""
    folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=os.environ.get("LAB_SCRATCH")))
    leak_check.folders.append(folder)
    return folder


@pytest.fixture
def disk_factory(leak_check: LeakCheck) -> Iterator[DiskFactory]:
    """Make a block device of so many bytes: a loop device on a sparse file in memory, gone after the test."""
    loops: list[Path] = []

    def make(size: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="disk-", dir=os.environ.get("LAB_SCRATCH")))
        leak_check.folders.append(folder)
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(size)
        loop = Path(_run("losetup", "--find", "--show", str(image)).strip())
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        _run("losetup", "--detach", str(loop))


@pytest.fixture
def scratch_disk(disk_factory: DiskFactory) -> DiskFactory:
    """The same as `disk_factory`, by the name that reads well where one disk is wanted."""
    return disk_factory


@pytest.fixture
def lab_disk() -> Path:
    """The first real disk of the lab, its old content unreadable: the superblocks are zeroed before each use."""
    disks = os.environ.get("LAB_DISKS", "").split()
    if not disks:
        pytest.fail("no disk in $LAB_DISKS: `tools/lab --disk 8G`", pytrace=False)
    disk = Path(disks[0])
    _run("wipefs", "--all", "--force", str(disk))
    with disk.open("r+b", buffering=0) as device:
        device.write(bytes(8 * SECTOR))
        os.fsync(device.fileno())
    return disk


@pytest.fixture
def thin_check() -> Callable[[Path], None]:
    """Check a pool's metadata, a device or a file, after the pool is gone; damage fails the test."""

    def check(metadata: Path) -> None:
        # through a loop device, as thin_check opens with O_DIRECT, which files in memory do not have
        device = _run("losetup", "--read-only", "--find", "--show", str(metadata)).strip()
        try:
            done = subprocess.run(["thin_check", device], check=False, capture_output=True, text=True)
        finally:
            _run("losetup", "--detach", device)
        assert done.returncode == 0, f"thin_check {metadata}: {done.stdout}{done.stderr}"

    return check


@pytest.fixture
def pool(scratch: Path, thin_check: Callable[[Path], None]) -> Iterator["ThinPool"]:
    """An active pool of 512 MiB on loop devices; its thin devices are to be gone when it is deactivated and checked."""
    from thinpool.dm.control import Control  # noqa: PLC0415
    from thinpool.pool.options import PoolOptions  # noqa: PLC0415
    from thinpool.pool.pool import ThinPool  # noqa: PLC0415

    folder = scratch / "pool"
    folder.mkdir()
    options = PoolOptions.parse({"dm.loopdatasize": "512M", "dm.loopmetadatasize": "16M", "dm.basesize": "128M"})
    with Control() as control:
        pool = ThinPool(control, folder, f"thinpool-test{os.getpid()}", options, None)
        pool.create(begun=False)
        yield pool
        pool.thins.close()
        pool.deactivate()
    thin_check(folder / "metadata")


@pytest.fixture
def store(scratch: Path, thin_check: Callable[[Path], None]) -> Iterator["Store"]:
    """A small store on a loop-backed pool; it is brought down, and the pool's metadata checked, after the test."""
    # here, so that the other fixtures work where the store does not
    from thinpool.store import Store  # noqa: PLC0415

    root = scratch / "root"
    options = {"dm.loopdatasize": "2G", "dm.loopmetadatasize": "64M", "dm.basesize": "512M"}
    with Store.open(root, driver="devicemapper", options=options) as store:
        yield store
    with Store.open(root) as again:  # as the test may have closed the one it had
        again.down()
    thin_check(root / "devicemapper" / "metadata")


def _devices() -> dict[str, str]:
    found = {}
    for entry in Path("/sys/block").glob("dm-*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            found[entry.name] = (entry / "dm" / "name").read_text(encoding="utf-8").rstrip("\n")
    return found


def _loops() -> dict[str, str]:
    found = {}
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found[entry.parts[3]] = entry.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n")
    return found


def _mounts() -> dict[int, Mount]:
    found = {}
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1 :]
        target = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        found[int(fields[0])] = Mount(int(fields[0]), Path(target), f"{kind[0]} of {kind[1]}")
    return found


def _processes() -> dict[int, str]:
    """Descendants of this process that run; what waits for its exit status to be read holds nothing any more."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            if state not in {"Z", "X"}:
                parents[int(entry.parts[2])] = int(parent)
    descendants: dict[int, str] = {}
    generation = {os.getpid()}
    while generation:
        generation = {number for number, parent in parents.items() if parent in generation}
        for number in generation:
            with contextlib.suppress(OSError):
                raw = Path(f"/proc/{number}/cmdline").read_bytes()
                descendants[number] = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return descendants


def _open_devices() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{entry}")
            if path.startswith(("/dev/dm-", "/dev/loop", "/dev/mapper/")):
                found[int(entry)] = path
    return found


def _extra(now: dict[Key, str], before: dict[Key, str]) -> dict[Key, str]:
    return {key: value for key, value in now.items() if before.get(key) != value}


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _try(*command: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=False, capture_output=True, timeout=10)
