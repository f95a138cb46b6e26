"""openat2(2): open a path as if a directory were the root, whatever symbolic links are on the way."""

import ctypes
import errno
import os
import struct

_OPENAT2 = 437  # include/uapi/asm-generic/unistd.h, the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_TRIES = 64


class Resolver:
    """Opens directories and files by paths that cannot leave a root."""

    def __init__(self, root: int) -> None:
        """Take the root directory, which stays the caller's."""
        self._root = root
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open_directory(self, path: bytes) -> int:
        """Open a directory below the root for reading; raises as `open`."""
        return self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def open(self, path: bytes, flags: int) -> int:
        """Open what is below the root; links are followed, and lead out of the root nowhere.

        The path's `..` and absolute links stay within the root (RESOLVE_IN_ROOT), and links of /proc are refused.

        Raises:
            OSError: as openat2(2).
        """
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        for _ in range(_TRIES):
            fd: int = self._libc.syscall(_OPENAT2, self._root, path, how, ctypes.c_size_t(len(how)))
            if fd >= 0:
                return fd
            number = ctypes.get_errno()
            if number not in {errno.EAGAIN, errno.EINTR}:  # EAGAIN: somebody renames or mounts meanwhile
                break
        raise OSError(number, os.strerror(number), path)
