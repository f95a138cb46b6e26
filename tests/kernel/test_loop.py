"""Loop devices, on the real kernel."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.kernel.dm.private_dev import paused_udevd, run_without_udevd
from thinpool import loop
from thinpool.dm.device import block_device_size
from thinpool.errors import LoopError
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

LOOP_CTL_GET_FREE = 0x4C82  # include/uapi/linux/loop.h


@pytest.fixture(autouse=True)
def _quiet_udev() -> Iterator[None]:
    """Nobody but the test uses a device: udevd opens what is new or was written to, and so keeps it a little longer."""
    with paused_udevd():
        yield


@pytest.fixture
def image(scratch: Path) -> Path:
    path = scratch / "image"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def attached(image: Path) -> Iterator[loop.LoopDevice]:
    """The image, attached until somebody else detaches it."""
    device = loop.attach(image)
    yield device
    if device in loop.list_loops():
        loop.detach(device)


def queue(device: loop.LoopDevice, name: str) -> int:
    return int(Path(f"/sys/block/loop{device.number}/queue/{name}").read_text())


def files() -> set[tuple[int, int]]:
    return {(device.backing_device, device.backing_inode) for device in loop.list_loops()}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_what_is_written_to_the_device_is_in_the_file(image: Path, attached: loop.LoopDevice) -> None:
    assert stat.S_ISBLK(attached.path.stat().st_mode)
    assert block_device_size(attached.path) == MIB
    with attached.path.open("r+b", buffering=0) as device:
        device.write(b"x" * 4096)
        os.fsync(device.fileno())
    assert image.read_bytes()[:4097] == b"x" * 4096 + b"\0"
    assert not attached.read_only
    assert not attached.autoclear
    assert loop.list_loops() == [attached]
    assert loop.detach(attached)
    assert loop.list_loops() == []


def test_it_is_what_losetup_shows(image: Path, attached: loop.LoopDevice) -> None:
    columns = "NAME,RO,DIO,AUTOCLEAR,OFFSET,SIZELIMIT,BACK-INO,BACK-FILE"
    shown = run("losetup", "--list", "--noheadings", "--raw", "--output", columns, str(attached.path)).split()
    flags = [str(int(flag)) for flag in (attached.read_only, attached.direct_io, attached.autoclear)]
    assert shown == [str(attached.path), *flags, "0", "0", str(attached.backing_inode), str(image)]


def test_autoclear_goes_with_its_last_user(image: Path) -> None:
    with loop.attach(image, autoclear=True) as device:
        assert device.autoclear
        assert loop.find(image) == device
        user = os.open(device.path, os.O_RDONLY)
    assert loop.find(image) == device
    os.close(user)
    assert loop.find(image) is None


def test_autoclear_goes_with_a_process_that_is_killed(image: Path) -> None:
    script = """
import sys
from thinpool import loop
with loop.attach(sys.argv[1], autoclear=True) as device:
    print(device.path, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"/dev/loop")
        assert loop.find(image) is not None
        process.send_signal(signal.SIGKILL)
    assert loop.find(image) is None


def test_it_is_found_by_its_file_and_not_by_a_path(image: Path, attached: loop.LoopDevice, scratch: Path) -> None:
    moved = image.rename(scratch / "moved")
    image.write_bytes(bytes(MIB))
    (scratch / "link").hardlink_to(moved)
    assert loop.find(moved) == loop.find(scratch / "link") == attached
    assert loop.find(image) is None
    with image.open("rb") as other, moved.open("rb") as same:
        assert loop.find(other.fileno()) is None
        assert loop.find(same.fileno()) == attached
    with loop.attach(image, autoclear=True) as second:
        assert second.number != attached.number
        assert loop.find(image) == second
        assert loop.list_loops() == sorted([attached, second], key=lambda device: device.number)


def test_the_file_behind_it(image: Path, attached: loop.LoopDevice, scratch: Path) -> None:
    numbers = image.stat().st_dev, image.stat().st_ino
    assert loop.backing(attached) == loop.backing(attached.path) == loop.BackingFile(*numbers, image, deleted=False)
    moved = image.rename(scratch / "moved")
    assert loop.backing(attached) == loop.BackingFile(*numbers, moved, deleted=False)
    misleading = moved.rename(scratch / "moved (deleted)")
    assert loop.backing(attached) == loop.BackingFile(*numbers, misleading, deleted=False)
    misleading.unlink()
    assert loop.backing(attached) == loop.BackingFile(*numbers, misleading, deleted=True)
    misleading.touch()
    assert loop.backing(attached).deleted
    assert loop.find(misleading) is None
    loop.detach(attached)


def test_read_only(image: Path) -> None:
    image.chmod(0o400)
    with loop.attach(image, read_only=True, autoclear=True) as device:
        assert device.read_only
        assert loop.find(image) == device
        with device.path.open("r+b", buffering=0) as opened, pytest.raises(PermissionError):
            opened.write(bytes(4096))


def test_a_part_of_the_file(image: Path) -> None:
    image.write_bytes(b"a" * 4096 + b"b" * 8192 + b"c" * 4096)
    with loop.attach(image, offset=4096, size_limit=8192, autoclear=True) as device:
        assert (device.offset, device.size_limit) == (4096, 8192)
        assert device.path.read_bytes() == b"b" * 8192


def test_a_file_by_its_descriptor(image: Path) -> None:
    with image.open("r+b") as file:
        device = loop.attach(file.fileno(), autoclear=True)
        assert not file.closed
    with device:
        image.unlink()
        assert loop.backing(device) == loop.BackingFile(
            device.backing_device, device.backing_inode, image, deleted=True
        )


def test_direct_io_and_block_size_follow_the_disk(image: Path, scratch: Path) -> None:
    """On files in memory there may be no direct I/O; on ext4 there is, in blocks of the disk below."""
    place = scratch / "place"
    place.mkdir()
    with loop.attach(image, block_size=4096, autoclear=True) as disk:
        assert queue(disk, "logical_block_size") == 4096
    disk_file = scratch / "disk"
    with disk_file.open("wb") as file:
        file.truncate(64 * MIB)
    for size in (512, 4096):
        with loop.attach(disk_file, block_size=size, autoclear=True) as disk:
            run("mkfs.ext4", "-q", "-F", "-b", "4096", str(disk.path))
            run("mount", str(disk.path), str(place))
            try:
                inner = place / "inner"
                inner.write_bytes(bytes(MIB))
                with loop.attach(inner, autoclear=True) as device:
                    assert device.direct_io
                    assert queue(device, "logical_block_size") == size
                    assert queue(device, "discard_granularity") == 4096
                with loop.attach(inner, direct_io=False, autoclear=True) as device:
                    assert not device.direct_io
                    assert queue(device, "logical_block_size") == 512
            finally:
                run("umount", str(place))


def test_it_takes_up_the_size_of_its_file(image: Path, attached: loop.LoopDevice) -> None:
    os.truncate(image, 3 * MIB)
    assert block_device_size(attached.path) == MIB
    loop.refresh_size(attached)
    assert block_device_size(attached.path) == 3 * MIB
    os.truncate(image, 4 * MIB)
    loop.refresh_size(attached.path)
    assert block_device_size(attached.path) == 4 * MIB


def test_detached_while_in_use_it_goes_later(image: Path, attached: loop.LoopDevice) -> None:
    with attached.path.open("rb"):
        assert not loop.detach(attached)
        assert loop.find(image) is not None
    assert loop.find(image) is None
    with pytest.raises(LoopError, match="it has no file"):
        loop.detach(attached)


def test_a_value_detaches_only_its_own_file(attached: loop.LoopDevice, scratch: Path) -> None:
    loop.detach(attached)
    other = scratch / "other"
    other.write_bytes(bytes(MIB))
    with loop.attach(other, autoclear=True) as second:
        stale = attrs.evolve(attached, number=second.number)
        with pytest.raises(LoopError, match=f"/dev/loop{second.number} has another file by now"):
            loop.detach(stale)
        assert loop.find(other) == second
        assert loop.detach(second)
    assert loop.list_loops() == []


def test_attaching_at_the_same_time(scratch: Path) -> None:
    """Everybody asks for a free device first and takes it afterwards: who comes second asks again."""
    images = [scratch / str(number) for number in range(24)]
    for image in images:
        image.write_bytes(bytes(4096))
    made: list[loop.LoopDevice] = []
    start = threading.Barrier(len(images))

    def work(image: Path) -> None:
        start.wait()
        made.append(loop.attach(image, autoclear=True))

    threads = [threading.Thread(target=work, args=[image]) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({device.number for device in made}) == len(images)
    assert files() == {(image.stat().st_dev, image.stat().st_ino) for image in images}
    for device in made:
        device.close()


def test_somebody_looks_into_the_free_device(image: Path) -> None:
    """The kernel keeps calling it free, and does not let it be attached, for as long as it is open exclusively."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    os.close(control)
    held = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_EXCL)
    with pytest.raises(LoopError, match="were taken by others"):
        loop.attach(image)
    threading.Timer(0.2, os.close, [held]).start()
    with loop.attach(image, autoclear=True) as device:
        assert device.number == number


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing", {}, "cannot attach .*missing: No such file or directory"),
        ("", {}, "cannot attach .*: Is a directory"),
        ("image", {"block_size": 1000}, "cannot attach .*image to /dev/loop[0-9]+: Invalid argument"),
        ("image", {"block_size": 256}, "cannot attach .*image to /dev/loop[0-9]+: Invalid argument"),
    ],
)
def test_what_cannot_be_attached(image: Path, scratch: Path, name: str, options: dict[str, int], message: str) -> None:
    assert image.exists()
    with pytest.raises(LoopError, match=message):
        loop.attach(scratch / name, block_size=options.get("block_size"))
    assert loop.list_loops() == []


def test_what_is_no_loop_device(image: Path, attached: loop.LoopDevice, scratch: Path) -> None:
    loop.detach(attached)
    for refused in (loop.detach, loop.refresh_size, loop.backing):
        with pytest.raises(LoopError, match=r"cannot .* /dev/loop[0-9]+: it has no file"):
            refused(attached.path)
        with pytest.raises(LoopError, match="image is no loop device"):
            refused(image)
        with pytest.raises(LoopError, match="missing: No such file or directory"):
            refused(scratch / "missing")
    with pytest.raises(LoopError, match=r"cannot look for the loop device of .*missing: No such file"):
        loop.find(scratch / "missing")


def test_without_any_node(image: Path, scratch: Path) -> None:
    folder = scratch / "dev"
    folder.mkdir()
    script = f"""
import os
from thinpool import loop
from thinpool.dm.device import block_device_size
assert not [name for name in os.listdir("/dev") if name.startswith("loop")]
with loop.attach({str(image)!r}, autoclear=True) as device:
    print(block_device_size(device.path), loop.find({str(image)!r}) == device)
"""
    assert run_without_udevd(script, dev=str(folder)) == f"{MIB} True\n"


def test_without_loop_devices_in_the_kernel(image: Path, scratch: Path) -> None:
    folder, misc = scratch / "dev", scratch / "misc"
    folder.mkdir()
    misc.write_text("236 device-mapper\n")
    script = f"""
from thinpool import loop
from thinpool.errors import LoopError
try:
    loop.attach({str(image)!r})
except LoopError as error:
    print(error.message, error.hint, sep="; ")
"""
    expected = "there are no loop devices here: /dev/loop-control: No such device; load the kernel's module loop\n"
    assert run_without_udevd(script, dev=str(folder), misc=str(misc)) == expected
