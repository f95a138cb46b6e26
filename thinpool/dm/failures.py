"""What it usually means when the kernel refuses a device-mapper ioctl."""

import errno
import os

from thinpool.dm.protocol import Ioctl
from thinpool.errors import DeviceMapperError

_DMESG = "dmesg says why"
_HOLDERS = (
    "a mount, a process, swap or another device holds it, perhaps in another mount namespace;"
    " `lsof`, `findmnt` and /sys/block/dm-N/holders name them"
)

_MEANING: dict[tuple[int, int], tuple[str, str | None]] = {
    (Ioctl.DM_DEV_CREATE, errno.EBUSY): ("a device of that name or uuid exists", None),
    (Ioctl.DM_DEV_CREATE, errno.EINVAL): ("the name is none that the kernel accepts", None),
    (Ioctl.DM_DEV_REMOVE, errno.EBUSY): ("the device is in use", _HOLDERS),
    (Ioctl.DM_DEV_RENAME, errno.EBUSY): ("another device has that name or uuid", None),
    (Ioctl.DM_DEV_RENAME, errno.EINVAL): ("the kernel does not accept it, or the device has a uuid already", _DMESG),
    (Ioctl.DM_DEV_SUSPEND, errno.EINVAL): ("the table cannot be put in force", _DMESG),
    (Ioctl.DM_DEV_SUSPEND, errno.EIO): ("a device below fails, or its metadata is damaged", _DMESG),
    (Ioctl.DM_TABLE_LOAD, errno.EINVAL): ("the kernel does not accept the table", _DMESG),
    (Ioctl.DM_TABLE_LOAD, errno.ENXIO): ("there is no such device, or one in the table is missing", _DMESG),
    (Ioctl.DM_TABLE_LOAD, errno.ENODEV): ("a device in the table is missing", _DMESG),
    (Ioctl.DM_TABLE_LOAD, errno.ENOENT): ("something that the target needs is missing", _DMESG),
    (Ioctl.DM_TABLE_LOAD, errno.EBUSY): ("a device in the table is in use", _HOLDERS),
    (Ioctl.DM_TABLE_LOAD, errno.EACCES): ("a device in the table is read-only", None),
    (Ioctl.DM_TABLE_LOAD, errno.EROFS): ("a device in the table is read-only", None),
    (Ioctl.DM_TABLE_LOAD, errno.ENODATA): ("there is no thin device of that number", None),
    (Ioctl.DM_TARGET_MSG, errno.EEXIST): ("a thin device of that number exists", None),
    (Ioctl.DM_TARGET_MSG, errno.ENODATA): ("there is no thin device of that number", None),
    (Ioctl.DM_TARGET_MSG, errno.EBUSY): ("the thin device is active, or a metadata snapshot exists already", None),
    (Ioctl.DM_TARGET_MSG, errno.ENOSPC): ("the pool's metadata is full", "grow the pool's metadata"),
    (Ioctl.DM_TARGET_MSG, errno.EOPNOTSUPP): ("the pool is read-only or has failed", _DMESG),
    (Ioctl.DM_TARGET_MSG, errno.EINVAL): ("the target does not accept the message", _DMESG),
}
_ALWAYS: dict[int, tuple[str, str | None]] = {
    errno.ENXIO: ("there is no such device", None),
    errno.ENOTTY: ("this kernel is too old for it", None),
    errno.EACCES: ("it takes root", "run as root"),
    errno.ENOBUFS: ("the answer is larger than any buffer", None),
}


def failure(ioctl: int, device: str, code: int) -> DeviceMapperError:
    """The error for an errno that an ioctl on a device gave."""
    meaning, hint = _MEANING.get((ioctl, code)) or _ALWAYS.get(code) or ("", None)
    name = Ioctl(ioctl).name
    text = f"{name} {device}".strip() + f": {os.strerror(code)}" + (f" ({meaning})" if meaning else "")
    return DeviceMapperError(name, device or None, code, text, hint=hint)
