"""Look at block devices before the first write to them: what carries something, or is used by somebody, is refused.

Nothing is written here, and whatever is in doubt counts as a reason. Three sources have to agree that a device is
free: the kernel (an exclusive open, sysfs, mounts, swap), udev's database where udevd runs, and a low-level probe of
the device's contents, which the database may not have.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pyudev

from thinpool import loop
from thinpool.errors import ConfigError, DeviceUnsafe, PoolFailed, ToolError
from thinpool.filesystem.holders import above
from thinpool.filesystem.mounts import mount_table
from thinpool.filesystem.tools import tool
from thinpool.metadata.superblock import Superblock, read_superblock

_PROBED = ("PTTYPE", "TYPE", "USAGE", "LABEL", "UUID")


@attrs.frozen
class _Device:
    key: str
    path: Path
    number: int
    node: pyudev.Device

    def __str__(self) -> str:
        return f"{self.key}={self.path}"


def vet(devices: Mapping[str, Path]) -> None:
    """Refuse devices that are not free to be overwritten.

    Args:
        devices: block devices by the option that names them.

    Raises:
        DeviceUnsafe: naming the device and what is on it, or who uses it.
        ConfigError: two options name one device, or parts of one.
    """
    context = pyudev.Context()
    found = []
    for key, path in devices.items():
        number = os.stat(path).st_rdev
        found.append(_Device(key, path, number, pyudev.Devices.from_device_number(context, "block", number)))
    _refuse_overlap(found)
    for device in found:
        for reason in _reasons(device):
            raise DeviceUnsafe(
                f"{device} {reason}",
                hint="name an empty device; if nothing on this one is needed, wipefs and blkdiscard clear it",
            )


def _refuse_overlap(devices: list[_Device]) -> None:
    seen: dict[str, _Device] = {}
    for device in devices:
        for place in _places(device.node):
            other = seen.setdefault(place, device)
            if other is not device:
                same = other.number == device.number
                raise ConfigError(f"{other} and {device} are {'the same device' if same else 'parts of each other'}")


def _places(node: pyudev.Device) -> Iterator[str]:
    """What a device occupies: itself, its partitions, and the file below it if it is a loop device."""
    yield node.sys_path
    for child in _partitions(node):
        yield child.sys_path
    file = Path(node.sys_path) / "loop/backing_file"
    if file.exists():
        yield f"{file.read_text().strip()}@{(file.parent / 'offset').read_text().strip()}"


def _partitions(node: pyudev.Device) -> list[pyudev.Device]:
    return [
        child
        for child in node.children
        if child.subsystem == "block" and child.properties.get("DEVTYPE") == "partition"
    ]


def _reasons(device: _Device) -> Iterator[str]:
    yield from _users(device)
    yield from _contents(device)


def _users(device: _Device) -> Iterator[str]:
    partitions = [child.sys_name for child in _partitions(device.node)]
    if partitions:
        yield f"has partitions: {', '.join(sorted(partitions))}"
    held_by = above((os.major(device.number), os.minor(device.number)))
    if held_by:
        yield f"is held by {', '.join(held_by)}"
    for other in _other_loops(device):
        yield f"is below {other} too"
    numbers = os.major(device.number), os.minor(device.number)
    for entry in mount_table():
        if entry.device == numbers:
            yield f"is mounted on {entry.target}"
    if device.number in _swaps():
        yield "is in use as swap"
    if (Path(device.node.sys_path) / "ro").read_text(encoding="ascii").strip() != "0":
        yield "cannot be written: it is read-only"
    try:
        os.close(os.open(device.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        yield "is in use" if error.errno == errno.EBUSY else f"cannot be written: {error.strerror}"


def _other_loops(device: _Device) -> Iterator[Path]:
    """Other loop devices on the file of a loop device, or on the device itself: an exclusive open sees none of them."""
    mine = loop.list_loops()
    file = next(((one.backing_device, one.backing_inode) for one in mine if _number(one.path) == device.number), None)
    for one in mine:
        if _number(one.path) == device.number:
            continue
        if (one.backing_device, one.backing_inode) == file or _number(loop.backing(one).path) == device.number:
            yield one.path


def _number(path: Path) -> int | None:
    """The number of a block device's node; None for anything else."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def _swaps() -> set[int]:
    with open("/proc/swaps", "rb") as file:
        paths = [line.split(b" ", 1)[0] for line in file.read().splitlines()[1:]]
    return {os.stat(path).st_rdev for path in paths if os.path.exists(path)}


def _contents(device: _Device) -> Iterator[str]:
    try:
        superblock: Superblock | None = read_superblock(device.path)
    except PoolFailed:
        superblock = None
    if superblock is not None:
        yield "carries thin-pool metadata"
    is_partition = device.node.properties.get("DEVTYPE") == "partition"  # which has its disk's table type
    for key, what in (("ID_PART_TABLE_TYPE", "a partition table"), ("ID_FS_TYPE", "a signature")):
        if (value := device.node.properties.get(key)) and not (is_partition and key == "ID_PART_TABLE_TYPE"):
            yield f"carries {what} ({value})"
    yield from _probe(device)


def _probe(device: _Device) -> Iterator[str]:
    """blkid(8) low-level probing; its status is 2 where it finds nothing, 8 where it finds too much."""
    try:
        said = tool("blkid").run("--probe", "--output", "export", str(device.path), accept=(0, 2))
    except ToolError as error:
        yield f"could not be probed: {error.message}"
        return
    fields = dict(line.partition("=")[::2] for line in said.splitlines() if "=" in line)
    shown = [f"{key}={fields[key]}" for key in _PROBED if key in fields]
    if shown:
        yield f"carries a signature: {' '.join(shown)}"
