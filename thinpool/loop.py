"""Loop devices by ioctl: a file as a block device (include/uapi/linux/loop.h)."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpool.errors import LoopError

_CONTROL = "/dev/loop-control"
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CLR_FD = 0x4C01
_SET_CAPACITY = 0x4C07
_GET_STATUS64 = 0x4C05
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16
_INFO = struct.Struct("=QQQQQIIII64s64s32s16s")  # struct loop_info64
_CONFIG_SIZE = 304


class LoopDevice:
    """A loop device, held open; with autoclear it goes when its last user lets go."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def refresh_size(self) -> None:
        """Take up the backing file's new size."""
        fcntl.ioctl(self._fd, _SET_CAPACITY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach(path: Path, *, read_only: bool = False, direct_io: bool = True, autoclear: bool = True) -> LoopDevice:
    """Attach a file to a free loop device."""
    backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, _GET_FREE)
            device = Path(f"/dev/loop{number}")
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            flags = (
                (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0) | (_AUTOCLEAR if autoclear else 0)
            )
            info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(path)[:63], b"", b"", b"")
            config = struct.pack("=II", backing, 0) + info
            try:
                fcntl.ioctl(fd, _CONFIGURE, config + bytes(_CONFIG_SIZE - len(config)))
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EBUSY:
                    continue
                raise LoopError(f"cannot attach {path} to {device}: {error.strerror}") from error
            return LoopDevice(device, fd)
    finally:
        os.close(control)
        os.close(backing)


def refresh_size(path: Path) -> None:
    """Take up the new size of a loop device's backing file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SET_CAPACITY)
    finally:
        os.close(fd)
