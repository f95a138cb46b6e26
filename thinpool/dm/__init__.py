"""Device-mapper control by ioctl: tables and targets, messages, status, devices."""

from thinpool.dm.control import Control, DeviceEntry, DeviceInfo, StatusEntry, TargetVersion
from thinpool.dm.targets import TableEntry, Target, Thin, ThinPool, Unknown, parse_target

__all__ = [
    "Control", "DeviceEntry", "DeviceInfo", "StatusEntry", "TableEntry", "Target", "TargetVersion", "Thin", "ThinPool",
    "Unknown", "parse_target",
]  # fmt: skip
