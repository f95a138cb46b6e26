"""Names of devices in /dev: with udevd, without it, and where nobody makes nodes at all."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.dm.private_dev import paused_udevd, run_without_udevd
from thinpool import loop
from thinpool.dm import Control, Linear, TableEntry
from thinpool.dm.device import create_device, device_path, remove_device
from thinpool.units import MIB, SECTOR

pytestmark = pytest.mark.kernel

NAME = "names-probe"
LINK = Path("/dev/mapper", NAME)
SECTORS = 16 * MIB // SECTOR


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def properties(node: Path) -> dict[str, str]:
    run("udevadm", "settle")
    lines = run("udevadm", "info", "--query", "property", "--name", str(node)).splitlines()
    return dict(line.partition("=")[::2] for line in lines)


@pytest.fixture
def control() -> Iterator[Control]:
    with Control() as control:
        yield control


@pytest.fixture
def disk(scratch: Path) -> Iterator[Path]:
    """A device with an ext4 on it, which a scan would find."""
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(SECTORS * SECTOR)
    run("mkfs.ext4", "-q", "-F", str(image))
    with loop.attach(image, autoclear=True) as device:
        yield device.path


def test_udevd_names_a_device_and_leaves_it_alone(control: Control, disk: Path) -> None:
    info = create_device(control, NAME, [TableEntry(0, SECTORS, Linear(str(disk)))], uuid="NAMES-1")
    node = device_path(info)
    assert os.stat(node).st_rdev == os.makedev(info.major, info.minor)
    try:
        assert properties(node)["DM_NAME"] == NAME
        for action in ("change", "add", "change"):
            assert LINK.resolve() == node
            found = properties(node)
            assert not [key for key in found if key.startswith("ID_FS_")]
            assert found["DM_UDEV_DISABLE_OTHER_RULES_FLAG"] == "1"
            assert not (Path("/run/udev/watch") / f"b{info.major}:{info.minor}").is_symlink()
            run("udevadm", "trigger", "--settle", f"--action={action}", str(node))
        assert LINK.resolve() == node
    finally:
        remove_device(control, NAME)
    assert not node.exists()
    run("udevadm", "settle")
    assert not LINK.is_symlink()


def test_udevd_would_have_scanned_it(disk: Path) -> None:
    run("dmsetup", "create", NAME, "--table", f"0 {SECTORS} linear {disk} 0")
    try:
        assert properties(LINK)["ID_FS_TYPE"] == "ext4"
    finally:
        run("dmsetup", "remove", "--retry", NAME)


SCRIPT = """
import os, sys
from pathlib import Path
from thinpool.dm import Control, TableEntry, Zero, Linear
from thinpool.dm.device import create_device, device_path, remove_device, rename_device
from thinpool.errors import DeviceMapperError

name, link, other = "names-probe", Path("/dev/mapper/names-probe"), Path("/dev/mapper/names-other")
with Control() as control:
    info = create_device(control, name, [TableEntry(0, 8, Zero())])
    node = device_path(info)
    assert os.stat(node).st_rdev == os.makedev(info.major, info.minor)
    assert os.readlink(link) == f"../dm-{info.minor}"
    assert link.read_bytes() == bytes(4096)
    rename_device(control, name, other.name)
    assert other.resolve() == node and not link.is_symlink()
    second = create_device(control, name, [TableEntry(0, 8, Linear(str(other)))])
    assert control.deps(name) == [(info.major, info.minor)]
    try:
        remove_device(control, other.name)
    except DeviceMapperError:
        assert other.resolve() == node
    remove_device(control, name)
    remove_device(control, other.name)
    assert not node.exists() and not device_path(second).exists()
    assert not other.is_symlink() and not link.is_symlink()
    try:
        create_device(control, name, [TableEntry(0, 8, Linear("/dev/no-such-device"))])
    except DeviceMapperError as error:
        print(error.ioctl)
    assert sorted(os.listdir("/dev/mapper")) == ["control"], os.listdir("/dev/mapper")
    assert not [entry for entry in os.listdir("/dev") if entry.startswith("dm-")]
"""


def test_without_udevd_we_name_it() -> None:
    with paused_udevd():
        assert run_without_udevd(SCRIPT) == "DM_TABLE_LOAD\n"


def test_where_nobody_makes_nodes_we_do(scratch: Path) -> None:
    folder = scratch / "dev"
    folder.mkdir()
    assert run_without_udevd(SCRIPT, dev=str(folder)) == "DM_TABLE_LOAD\n"


def test_a_kernel_without_device_mapper(scratch: Path) -> None:
    folder, misc = scratch / "dev", scratch / "misc"
    folder.mkdir()
    misc.write_text("237 loop-control\n")
    script = """
from thinpool.dm import Control
from thinpool.errors import DriverUnsupported
try:
    Control()
except DriverUnsupported as error:
    print(error.message)
"""
    assert run_without_udevd(script, dev=str(folder), misc=str(misc)).startswith("this kernel has no device-mapper")


def test_without_root() -> None:
    script = """
import os
from thinpool.dm import Control
from thinpool.errors import NotPermitted
os.setgid(65534)
os.setuid(65534)
try:
    Control()
except NotPermitted as error:
    print(error.message)
"""
    assert run_without_udevd(script) == "device-mapper needs root\n"
