"""The kernel's mount interface, one typed function a system call.

Numbers are those of include/uapi/asm-generic/unistd.h, the same on every architecture since 424; names and flags are
those of include/uapi/linux/mount.h. Every function raises `OSError` with the call's name as its file name.
"""

import ctypes
import os
import signal
import struct

_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_MOUNT_SETATTR = 442

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

FSOPEN_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_REMOUNT = 1 << 5
MS_NOATIME = 1 << 10
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000

_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, include/uapi/linux/capability.h
_CAP_SYS_RESOURCE = 24
_STATX_SIZE = 256
_STATX_ATTR_MOUNT_ROOT = 0x2000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(call: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result


def fsopen(fs_type: str, flags: int = FSOPEN_CLOEXEC) -> int:
    """A file-system context of that type, as a file descriptor."""
    return _checked("fsopen", _libc.syscall(_FSOPEN, fs_type.encode(), flags))


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set a parameter of a file-system context, or carry out a command."""
    text = (None if key is None else os.fsencode(key), None if value is None else os.fsencode(value))
    _checked("fsconfig", _libc.syscall(_FSCONFIG, fd, command, text[0], text[1], 0))


def fsmount(fd: int, attributes: int = 0) -> int:
    """A detached mount of a created file-system context, as an O_PATH file descriptor."""
    return _checked("fsmount", _libc.syscall(_FSMOUNT, fd, FSMOUNT_CLOEXEC, attributes))


def move_mount(from_fd: int, to_fd: int) -> None:
    """Attach a detached mount onto an open directory."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked("move_mount", _libc.syscall(_MOVE_MOUNT, from_fd, b"", to_fd, b"", flags))


def open_tree(dir_fd: int, path: str, *, clone: bool, recursive: bool = False) -> int:
    """Open a mount or directory; with `clone` as a detached copy of its mount (a bind mount to be)."""
    flags = OPEN_TREE_CLOEXEC | (OPEN_TREE_CLONE if clone else 0) | (AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= AT_EMPTY_PATH
    return _checked("open_tree", _libc.syscall(_OPEN_TREE, dir_fd, os.fsencode(path), ctypes.c_uint(flags)))


def mount_setattr(
    fd: int, *, set_attributes: int = 0, clear_attributes: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of an open mount (struct mount_attr: set, clear, propagation, user namespace)."""
    attr = struct.pack("=QQQQ", set_attributes, clear_attributes, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked("mount_setattr", _libc.syscall(_MOUNT_SETATTR, fd, b"", ctypes.c_uint(flags), attr, len(attr)))


def mount(source: str, target: str, fs_type: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2), for what has no use for a file descriptor."""
    arguments = (os.fsencode(source), os.fsencode(target), None if fs_type is None else fs_type.encode())
    _checked("mount", _libc.mount(*arguments, ctypes.c_ulong(flags), None if data is None else data.encode()))


def umount(target: str | bytes, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2)."""
    _checked("umount2", _libc.umount2(os.fsencode(target), flags))


def is_mount_root(fd: int) -> bool:
    """Whether an open directory is the root of a mount (statx(2), STATX_ATTR_MOUNT_ROOT)."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _checked("statx", _libc.statx(fd, b"", AT_EMPTY_PATH, 0, buffer))
    attributes: int = struct.unpack_from("=Q", buffer, 8)[0]
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def syncfs(fd: int) -> None:
    """syncfs(2): write out the whole file system that a file descriptor is open on."""
    _checked("syncfs", _libc.syncfs(fd))


def unshare(flags: int) -> None:
    """unshare(2): give this process namespaces of its own."""
    _checked("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2): enter a namespace that a file descriptor is open on."""
    _checked("setns", _libc.setns(fd, flags))


def drop_resource_capability() -> None:
    """capset(2): do without CAP_SYS_RESOURCE in this thread, which is what lets root go beyond quotas."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    _checked("capget", _libc.capget(header, data))
    words = list(struct.unpack("=6I", data.raw))
    words[0] &= ~(1 << _CAP_SYS_RESOURCE)
    _checked("capset", _libc.capset(header, struct.pack("=6I", *words)))


def die_with_parent() -> None:
    """prctl(2), PR_SET_PDEATHSIG: be killed when the parent dies."""
    _checked("prctl", _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _checked("pivot_root", _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)))
