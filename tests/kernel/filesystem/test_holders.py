"""Every way of holding a device or a mount is told, with the process that does."""

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conftest import DiskFactory
from tests.kernel.people import let_go, somebody
from thinpool import loop
from thinpool.errors import LayerInUse
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.holders import Why, of_device, of_lock, of_mount
from thinpool.locks import LockFile
from thinpool.units import MIB

pytestmark = pytest.mark.kernel(device_mapper=False)


@pytest.fixture
def disk(scratch_disk: DiskFactory) -> Path:
    """A disk with ext4."""
    made = scratch_disk(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", "-O", "^has_journal", made], check=True)
    return made


@pytest.fixture
def mounted(disk: Path, scratch: Path) -> Iterator[Path]:
    """It, mounted."""
    target = scratch / "target"
    target.mkdir()
    syscalls.mount(str(disk), str(target), "ext4")
    yield target
    syscalls.umount(str(target))


def numbers(device: Path) -> tuple[int, int]:
    found = os.stat(device).st_rdev
    return os.major(found), os.minor(found)


def told(device: Path) -> list[tuple[Why, str, int | None]]:
    holders = [holder for holder in of_device(numbers(device)) if "udev" not in holder.comm]  # it looks, and goes
    return [(holder.why, holder.what, holder.pid) for holder in holders]


def test_nobody_holds_what_is_at_rest(disk: Path) -> None:
    assert told(disk) == []


@pytest.mark.parametrize(
    ("script", "why", "what"),
    [
        ("cd {}", Why.CWD, ""),
        ("exec 3<{}/file", Why.FILE, "/file"),
        ("exec 3<{}", Why.FILE, ""),
    ],
)
def test_processes_of_a_mount_are_told_and_keep_it(mounted: Path, disk: Path, script: str, why: Why, what: str) -> None:
    (mounted / "file").write_text("x")
    with somebody(script.format(mounted)) as process:
        expected = (why, f"{mounted}{what}", process.pid)
        assert [(holder.why, holder.what, holder.pid) for holder in of_mount(mounted)] == [expected]
        assert told(disk) == [(Why.MOUNT, str(mounted), None), expected]
        with pytest.raises(LayerInUse, match=rf"is busy: pid {process.pid} \(sh\): {why.value} ") as raised:
            mounts.unmount(mounted)
        assert [holder.pid for holder in raised.value.holders] == [process.pid]
    assert list(of_mount(mounted)) == []


def test_a_process_that_lives_in_it_is_told(mounted: Path) -> None:
    (mounted / "bin").mkdir()
    shutil.copy("/bin/busybox", mounted / "bin/sh")
    with somebody("", "chroot", str(mounted)) as process:
        program = f"{mounted}/bin/sh"
        found = {holder.why: holder.what for holder in of_mount(mounted)}
        assert found == {
            Why.CWD: str(mounted), Why.ROOT: str(mounted), Why.PROGRAM: program, Why.MAPPED: program,
        }  # fmt: skip
        assert {holder.pid for holder in of_mount(mounted)} == {process.pid}


def test_a_mapped_file_is_told(mounted: Path, disk: Path) -> None:
    (mounted / "file").write_bytes(bytes(4096))
    with (mounted / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        expected = (Why.MAPPED, f"{mounted}/file", os.getpid())
        assert expected in [(holder.why, holder.what, holder.pid) for holder in of_mount(mounted)]
        assert expected in told(disk)
        assert mapping[0] == 0


def test_what_is_mounted_inside_is_told(mounted: Path) -> None:
    (mounted / "inside").mkdir()
    syscalls.mount("none", str(mounted / "inside"), "tmpfs")
    with pytest.raises(LayerInUse, match=f"is busy: mounted on {mounted}/inside"):
        mounts.unmount(mounted)
    syscalls.umount(str(mounted / "inside"))


def test_a_loop_device_of_a_file_in_it_is_told(mounted: Path, disk: Path) -> None:
    with (mounted / "image").open("wb") as file:
        file.truncate(MIB)
    with loop.attach(mounted / "image", autoclear=True) as device:
        expected = (Why.LOOP, f"{device.path}: {mounted}/image", None)
        assert expected in told(disk)
        assert expected[:2] in [(holder.why, holder.what) for holder in of_mount(mounted)]
        assert (Why.DEVICE, str(device.path), os.getpid()) in told(device.path)


def test_swap_in_it_is_told(mounted: Path, disk: Path) -> None:
    swap = mounted / "swap"
    swap.write_bytes(bytes(MIB))
    swap.chmod(0o600)
    subprocess.run(["mkswap", swap], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", swap], check=True)
    try:
        assert (Why.SWAP, str(swap), None) in told(disk)
    finally:
        subprocess.run(["swapoff", swap], check=True)


def test_mounts_in_other_namespaces_are_told(mounted: Path, disk: Path) -> None:
    with somebody("", "unshare", "--mount", "--propagation", "private") as process:
        mounts.detach(mounted)
        assert told(disk) == [(Why.MOUNT, str(mounted), process.pid)]
        syscalls.mount(str(disk), str(mounted), "ext4")


def test_a_namespace_without_a_process_is_told_by_what_keeps_it(mounted: Path, disk: Path, scratch: Path) -> None:
    kept = scratch / "kept"
    kept.mkdir()
    syscalls.mount("none", str(kept), "tmpfs")
    syscalls.mount("none", str(kept), None, syscalls.MS_PRIVATE)
    (kept / "ns").touch()
    subprocess.run(["unshare", f"--mount={kept}/ns", "--propagation", "private", "true"], check=True)
    mounts.detach(mounted)
    assert told(disk) == [(Why.MOUNT, f"{mounted} in the mount namespace that {kept}/ns keeps", None)]
    syscalls.mount(str(disk), str(mounted), "ext4")
    syscalls.umount(str(kept / "ns"))
    syscalls.umount(str(kept))


def test_a_namespace_that_only_an_open_file_keeps_is_told(mounted: Path, disk: Path) -> None:
    with somebody("", "unshare", "--mount", "--propagation", "private") as process:
        namespace = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY)
    mounts.detach(mounted)
    path = f"/proc/{os.getpid()}/fd/{namespace}"
    assert told(disk) == [(Why.MOUNT, f"{mounted} in the mount namespace that {path} keeps", None)]
    syscalls.mount(str(disk), str(mounted), "ext4")
    os.close(namespace)


def test_what_is_detached_is_told_by_its_files(mounted: Path, disk: Path) -> None:
    fd = mounts.detached_mount("ext4", str(disk))
    mounts.detach(mounted)
    assert told(disk) == [(Why.FILE, "/", os.getpid())]
    os.close(fd)
    with somebody(f"exec 3<{disk}") as process:
        assert told(disk) == [(Why.DEVICE, str(disk), process.pid)]
        assert str(next(iter(of_device(numbers(disk))))) == f"open by pid {process.pid} (sh)"
        let_go(process)
    syscalls.mount(str(disk), str(mounted), "ext4")


def test_holders_of_a_lock_are_told(scratch: Path) -> None:
    locks = LockFile(scratch / "lock")
    with locks.use(7):
        found = [(holder.pid, holder.why) for holder in of_lock(scratch / "lock", (1 << 25) + 7)]
        assert found == [(os.getpid(), Why.LOCK)]
        assert list(of_lock(scratch / "lock", (1 << 25) + 8)) == []
