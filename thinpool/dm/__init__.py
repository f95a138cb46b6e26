"""Device-mapper control by ioctl: tables and targets, messages, status, devices."""

from thinpool.dm.control import Control, DeviceEntry, DeviceInfo, StatusEntry, TargetVersion
from thinpool.dm.targets import (
    Delay,
    Delayed,
    Error,
    Flakey,
    Linear,
    LogWrites,
    SnapshotOrigin,
    Stripe,
    Striped,
    TableEntry,
    Target,
    Thin,
    ThinPool,
    Unknown,
    Zero,
    parse_target,
)

__all__ = [
    "Control", "Delay", "Delayed", "DeviceEntry", "DeviceInfo", "Error", "Flakey", "Linear", "LogWrites",
    "SnapshotOrigin", "StatusEntry", "Stripe", "Striped", "TableEntry", "Target", "TargetVersion", "Thin", "ThinPool",
    "Unknown", "Zero", "parse_target",
]  # fmt: skip
