"""The drivers that the conformance suite is run for. A new one gets the whole suite by its line in `DRIVERS`."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.readme import DRIVERS as PAGE
from tests.readme import example
from thinpool import Store
from thinpool.drivers import selection
from thinpool.filesystem import syscalls

Place = Callable[[Path], contextlib.AbstractContextManager[Path]]

_DISK_BYTES = 3 << 30
_NOATIME = 1024


def has_file_system(name: str) -> bool:
    """Whether the kernel lists a file system, its module loaded where there is one."""
    subprocess.run(["modprobe", "--quiet", name], check=False)
    return name in Path("/proc/filesystems").read_text(encoding="ascii").split()


def has_thin_pools(_name: str) -> bool:
    """Whether the kernel has device-mapper and its thin-pool target."""
    subprocess.run(["modprobe", "--quiet", "dm-thin-pool"], check=False)
    return (
        "device-mapper" in Path("/proc/misc").read_text(encoding="ascii").split()
        and Path("/sys/module/dm_thin_pool").exists()
    )


def has_all(_name: str) -> bool:
    """For a driver that asks nothing of the kernel."""
    return True


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A folder in memory."""
    yield folder


@contextlib.contextmanager
def on_disk(file_system: str, folder: Path, *, quotas: bool = False) -> Iterator[Path]:
    """A folder on a small disk of its own: a loop device on a sparse file in memory."""
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    with contextlib.ExitStack() as undo:
        loop = _run("losetup", "--find", "--show", str(image)).strip()
        undo.callback(_run, "losetup", "--detach", loop)
        _run(f"mkfs.{file_system}", *_MKFS[file_system], *(_QUOTAS if quotas else ()), loop)
        target = folder / "disk"
        target.mkdir()
        syscalls.mount(loop, str(target), file_system, _NOATIME, "prjquota" if quotas else "")
        undo.callback(syscalls.umount, str(target))
        yield target


_MKFS = {  # an image is a hole, so there is nothing to discard, nor to fill with zeros
    "ext4": ("-q", "-O", "^has_journal", "-E", "nodiscard,assume_storage_prezeroed=1"),
    "btrfs": ("-q", "-K"),
}
_QUOTAS = ("-O", "quota,project", "-E", "quotatype=prjquota")


def quota_ext4(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder on ext4 that keeps project quotas."""
    return on_disk("ext4", folder, quotas=True)


def ext4(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder on ext4."""
    return on_disk("ext4", folder)


def btrfs(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder on btrfs."""
    return on_disk("btrfs", folder)


@attrs.frozen
class Driver:
    """What the suite knows of a driver.

    Attributes:
        name: as in `-s NAME`.
        place: where a root can be made for it.
        options: for its stores.
        kernel: whether this kernel has what it needs. The driver's own probe is not asked: it is under test.
        in_lab: the lab's kernels have it for certain.
        shares: a child occupies only what differs from its parent.
        coherent: a mount shows of what was changed through it what the next mount will; else times of directories,
            modes and attributes may come out when a layer is mounted again.
        tells_holes: whoever asks for the holes of a file is told of them.
        instant: a snapshot of a layer that is written to is of one instant; else it may be refused, or be of several.
        depth: of directories that it can hold; cp(1), by which the example copies, takes no path beyond PATH_MAX.
        module: the source of a module that brings it, for one that comes from another package.
    """

    name: str
    place: Place
    options: Mapping[str, str] = attrs.field(factory=dict)
    kernel: Callable[[str], bool] = has_file_system
    in_lab: bool = True
    shares: bool = True
    coherent: bool = True
    tells_holes: bool = True
    instant: bool = True
    depth: int = 1000
    module: Callable[[], str] | None = None


DRIVERS = (
    Driver("aufs", ext4, in_lab=False, coherent=False, tells_holes=False),
    Driver("btrfs", btrfs),
    Driver(
        "devicemapper",
        in_memory,
        options={"dm.loopdatasize": "4G", "dm.loopmetadatasize": "64M", "dm.basesize": "1G"},
        kernel=has_thin_pools,
    ),
    Driver("overlay", ext4),
    Driver(
        "copy",
        ext4,
        kernel=has_all,
        shares=False,
        instant=False,
        depth=600,
        module=lambda: example("driver", PAGE) + "\n",
    ),
)


@contextlib.contextmanager
def installed(driver: Driver) -> Iterator[None]:
    """Install the package that brings a driver, if it needs one, for this process and those it starts."""
    if driver.module is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="package-") as name, pytest.MonkeyPatch.context() as patch:
        package = Path(name)
        (package / f"thinpool_{driver.name}.py").write_text(driver.module(), encoding="utf-8")
        metadata = package / f"thinpool_{driver.name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thinpool-{driver.name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            f"[{selection.GROUP}]\n{driver.name} = thinpool_{driver.name}:TYPE\n", encoding="utf-8"
        )
        patch.syspath_prepend(name)
        patch.setenv("PYTHONPATH", name, prepend=os.pathsep)
        selection._others.cache_clear()
        try:
            yield
        finally:
            selection._others.cache_clear()


@contextlib.contextmanager
def opened(driver: Driver) -> Iterator[Store]:
    """A new store of a driver; it is brought down afterwards, and everything below it taken away."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(installed(driver))
        folder = tempfile.mkdtemp(prefix=f"{driver.name}-", dir=os.environ.get("LAB_SCRATCH"))
        undo.callback(_run, "rm", "--recursive", "--one-file-system", folder)
        root = undo.enter_context(driver.place(Path(folder))) / "root"
        store = undo.enter_context(Store.open(root, driver.name, driver.options))
        undo.callback(bring_down, root)
        yield store


def bring_down(root: Path) -> None:
    """Bring a store down, whether or not a test left it open, and check what can be checked without it."""
    with Store.open(root, create=False) as store:
        store.down()
    metadata = root / "devicemapper" / "metadata"
    if metadata.exists():
        # through a loop device, as thin_check opens with O_DIRECT, which files in memory do not have
        loop = _run("losetup", "--read-only", "--find", "--show", str(metadata)).strip()
        try:
            _run("thin_check", loop)
        finally:
            _run("losetup", "--detach", loop)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
