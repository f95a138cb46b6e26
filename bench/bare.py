"""The least that Python can do: device-mapper ioctls and mount(2), with nothing around them.

This is the yardstick for what thinpool adds, so it checks nothing and forgets nothing on purpose: the number of
system calls is what the kernel needs for a snapshot that is mounted, unmounted and deleted again.
"""

import ctypes
import fcntl
import os
import struct

_HEADER = struct.Struct("<IIIIIIiIIIQ128s129s7s")  # struct dm_ioctl, include/uapi/linux/dm-ioctl.h
_TARGET = struct.Struct("<QQiI16s")  # struct dm_target_spec
_CREATE, _REMOVE, _SUSPEND, _LOAD, _MESSAGE = 3, 4, 6, 9, 14
_SUSPENDED = 1 << 1  # DM_SUSPEND_FLAG; without it the call resumes
_UDEV_FLAGS = (0x2 | 0x4 | 0x8) << 16
_libc = ctypes.CDLL(None, use_errno=True)


class Bare:
    """One pool, by name, and the cycle of one snapshot of it."""

    def __init__(self, pool: str, pool_device: str, sectors: int, target: str) -> None:
        self._control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
        self._pool = pool
        self._table = f"{pool_device} "
        self._sectors = sectors
        self._target = target.encode()

    def close(self) -> None:
        os.close(self._control)

    def _call(
        self, number: int, name: str, payload: bytes = b"", targets: int = 0, event: int = 0, flags: int = 0
    ) -> bytearray:
        size = max(_HEADER.size + len(payload), 512)
        buffer = bytearray(size)
        _HEADER.pack_into(
            buffer, 0, 4, 0, 0, size, _HEADER.size, targets, 0, flags, event, 0, 0, name.encode(), b"", b""
        )
        buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
        fcntl.ioctl(self._control, (3 << 30) | (_HEADER.size << 16) | (0xFD << 8) | number, buffer, True)
        return buffer

    def message(self, text: str) -> None:
        """Send the pool a message."""
        self._call(_MESSAGE, self._pool, struct.pack("<Q", 0) + text.encode() + b"\0")

    def snapshot(self, device: str, thin_id: int, origin: int) -> None:
        """Snapshot a device that is in use, suspended for the moment, which freezes its file system."""
        self._call(_SUSPEND, device, flags=_SUSPENDED)
        self.message(f"create_snap {thin_id} {origin}")
        self._call(_SUSPEND, device)

    def cycle(self, thin_id: int, origin: int) -> None:
        """Snapshot, activate, mount, unmount, deactivate, delete."""
        name = "bench-bare"
        self.message(f"create_snap {thin_id} {origin}")
        reply = self._call(_CREATE, name)
        params = f"{self._table}{thin_id}".encode() + b"\0"
        params += bytes(-len(params) % 8)
        self._call(_LOAD, name, _TARGET.pack(0, self._sectors, 0, _TARGET.size + len(params), b"thin") + params, 1)
        reply = self._call(_SUSPEND, name, event=_UDEV_FLAGS)
        device = struct.unpack_from("<Q", reply, 40)[0]
        path = f"/dev/dm-{(device & 0xFF) | ((device >> 12) & 0xFFF00)}".encode()
        if _libc.mount(path, self._target, b"ext4", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        if _libc.umount2(self._target, 0) != 0:
            raise OSError(ctypes.get_errno(), "umount2")
        self._call(_REMOVE, name, event=_UDEV_FLAGS)
        self.message(f"delete {thin_id}")
