"""A pool that somebody else made, LVM as a rule: found by whatever name people know it by, and only looked at."""

import os
import re
import stat

from thinpool.dm import Control, DeviceInfo, Linear, ThinPool
from thinpool.errors import ConfigError
from thinpool.pool.devices import find_device, find_number

_KERNEL_NAME = re.compile(r"dm-([0-9]{1,7})", re.ASCII)
_VOLUME = re.compile("/dev/([^/]+)/([^/]+)")
_LAYERS = 4  # LVM puts one linear device over a pool that it has volumes in; nobody puts many


def resolve(control: Control, given: str) -> str:
    """The device-mapper name of a pool that is active.

    Args:
        control: the control device.
        given: its name, the path of its node or of a link to it (`/dev/mapper/NAME`, `/dev/VG/LV`), or `dm-N`. A
            linear device that covers a pool, as LVM has them, stands for that pool.

    Raises:
        ConfigError: there is no such device, or it is no thin pool.
    """
    info = _look_up(control, given)
    for _ in range(_LAYERS):
        if info is None or not info.active:
            break
        table = control.table(info.name)
        target = table[0].target
        if len(table) == 1 and isinstance(target, ThinPool):
            return info.name
        if len(table) != 1 or not isinstance(target, Linear) or target.start_sectors:
            kinds = ", ".join(sorted({entry.target.kind for entry in table}))
            raise ConfigError(f"dm.thinpooldev={given}: {info.name} is no thin pool; its table has {kinds}")
        info = _by_number(control, target.device)
    raise ConfigError(
        f"dm.thinpooldev={given}: there is no such active device-mapper device",
        hint="activate the pool first, e.g. lvchange -ay VG/POOL; dmsetup ls shows what there is",
    )


def _look_up(control: Control, given: str) -> DeviceInfo | None:
    given = given.removeprefix("/dev/mapper/")  # by name, as udevd may not have made the node yet
    if given.startswith("/"):
        try:
            found = os.stat(given)
        except OSError:
            return _look_up_volume(control, given)
        if not stat.S_ISBLK(found.st_mode):
            raise ConfigError(f"dm.thinpooldev={given} is not a block device")
        return find_number(control, (os.major(found.st_rdev), os.minor(found.st_rdev)))
    info = find_device(control, given)
    if info is None and _KERNEL_NAME.fullmatch(given):
        try:
            with open(f"/sys/class/block/{given}/dev", encoding="ascii") as file:
                return _by_number(control, file.read().strip())
        except FileNotFoundError:
            return None
    return info


def _look_up_volume(control: Control, given: str) -> DeviceInfo | None:
    """The device of `/dev/VG/LV` by the name that LVM gives it; it makes no link for a pool with active volumes."""
    volume = _VOLUME.fullmatch(given)
    if volume is None:
        return None
    group, name = (part.replace("-", "--") for part in volume.groups())
    return find_device(control, f"{group}-{name}")


def _by_number(control: Control, device: str) -> DeviceInfo | None:
    major, _, minor = device.partition(":")
    return find_number(control, (int(major), int(minor)))
