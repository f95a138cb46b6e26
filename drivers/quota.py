"""How much one directory tree may hold: a project quota, where the file system keeps such quotas (ext4, xfs, f2fs).

The directory gets a project of its own, which all that is made in it inherits, and the project gets a limit. Project
numbers are 2**28 and more, with the handle in the lower bits: an administrator's own are small, as a rule.

Source: quotactl(2) with quotactl_fd (Linux 5.14), ioctl_fsgetxattr in include/uapi/linux/fs.h, struct if_dqblk in
include/uapi/linux/quota.h.
"""

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress

from thinpool.errors import ConfigError
from thinpool.units import format_size

_QUOTACTL_FD = 443  # include/uapi/asm-generic/unistd.h, the same on every architecture
_GET = 0x800007 << 8 | 2  # QCMD(Q_GETQUOTA, PRJQUOTA)
_SET = 0x800008 << 8 | 2  # QCMD(Q_SETQUOTA, PRJQUOTA)
_LIMITS = struct.Struct("=QQQQQQQQII")
_BLOCK = 1024  # QIF_DQBLKSIZE
_BLOCK_LIMITS = 1  # QIF_BLIMITS
_FSGETXATTR = 0x801C581F
_FSSETXATTR = 0x401C5820
_FSXATTR = struct.Struct("=IIIII8x")
_PROJECT_INHERIT = 0x200
_FIRST = 1 << 28


class Quota:
    """The project quotas of the file system that a directory is on."""

    def __init__(self, directory: int) -> None:
        """Take an open directory, which stays the caller's."""
        self._directory = directory
        self._libc = ctypes.CDLL(None, use_errno=True)

    def require(self, size: int) -> None:
        """Raise ConfigError where the file system keeps no project quotas."""
        try:
            self._call(_GET, _FIRST, bytearray(_LIMITS.size))
        except OSError as error:
            if error.errno == errno.ENOENT:  # no quota for that project yet (xfs)
                return
            raise ConfigError(
                f"a size of {format_size(size)} needs project quotas, which the store's file system does not keep"
                f" ({error.strerror})",
                hint="mount it with prjquota (ext4: tune2fs -O project,quota first; xfs: pquota), or give no size",
            ) from error

    def limit(self, handle: int, fd: int, size: int) -> None:
        """Limit what an open, empty directory can hold to so many bytes."""
        self.join(handle, fd)
        self._set(handle, size)

    def join(self, handle: int, fd: int) -> None:
        """Count what an open, empty directory holds as that of the layer, as moves between projects are refused."""
        now = bytearray(_FSXATTR.size)
        fcntl.ioctl(fd, _FSGETXATTR, now, True)  # noqa: FBT003 - fcntl.ioctl takes it by position
        flags, extent_size, extents, _, cow_size = _FSXATTR.unpack(now)
        wanted = _FSXATTR.pack(flags | _PROJECT_INHERIT, extent_size, extents, _FIRST + handle, cow_size)
        fcntl.ioctl(fd, _FSSETXATTR, wanted)

    def forget(self, handle: int) -> None:
        """Take the limit away, where there are quotas."""
        with suppress(OSError):
            self._set(handle, 0)

    def _set(self, handle: int, size: int) -> None:
        blocks = -(-size // _BLOCK)
        self._call(_SET, _FIRST + handle, bytearray(_LIMITS.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _BLOCK_LIMITS, 0)))

    def _call(self, command: int, project: int, limits: bytearray) -> None:
        buffer = (ctypes.c_char * len(limits)).from_buffer(limits)
        if self._libc.syscall(_QUOTACTL_FD, self._directory, ctypes.c_uint(command), project, buffer) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "quotactl_fd")
