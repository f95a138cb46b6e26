"""The ioctls of btrfs, one typed function each.

Numbers, structures and names are those of include/uapi/linux/btrfs.h. Descriptors must be open for reading (`O_PATH`
takes no ioctl). Every function raises `OSError` with the ioctl's name as its file name.
"""

import errno
import os
import struct
import sys
from fcntl import ioctl

import attrs

FIRST_INODE = 256
"""BTRFS_FIRST_FREE_OBJECTID: the inode number of every subvolume's root directory."""

_READ, _WRITE = 2, 1  # _IOC_READ, _IOC_WRITE of include/uapi/asm-generic/ioctl.h
_NAME_AT = 56  # name in struct btrfs_ioctl_vol_args_v2
_ARGS_SIZE = 4096  # struct btrfs_ioctl_vol_args, btrfs_ioctl_vol_args_v2
_FS_INFO_SIZE = 1024  # struct btrfs_ioctl_fs_info_args
_INFO_SIZE = 504  # struct btrfs_ioctl_get_subvol_info_args
_INFO = struct.Struct("=Q256sQQQQ16s16s16sQQ")  # its members up to otransid
_SUBVOL_RDONLY = 1 << 1
_SUBVOL_SPEC_BY_ID = 1 << 4
_ROOT_SUBVOL_RDONLY = 1 << 0  # include/uapi/linux/btrfs_tree.h


def number(direction: int, command: int, size: int) -> int:
    """The number of a btrfs ioctl (include/uapi/asm-generic/ioctl.h), BTRFS_IOCTL_MAGIC included."""
    return direction << 30 | size << 16 | 0x94 << 8 | command


TREE_SEARCH_V2 = number(_READ | _WRITE, 17, 112)
_SNAP_DESTROY = number(_WRITE, 15, _ARGS_SIZE)
_INO_LOOKUP = number(_READ | _WRITE, 18, _ARGS_SIZE)
_WAIT_SYNC = number(_WRITE, 22, 8)
_SNAP_CREATE_V2 = number(_WRITE, 23, _ARGS_SIZE)
_START_SYNC = number(_READ, 24, 8)
_SUBVOL_CREATE_V2 = number(_WRITE, 24, _ARGS_SIZE)
_SUBVOL_GETFLAGS = number(_READ, 25, 8)
_SUBVOL_SETFLAGS = number(_WRITE, 26, 8)
_FS_INFO = number(_READ, 31, _FS_INFO_SIZE)
_GET_SUBVOL_INFO = number(_READ, 60, _INFO_SIZE)
_SNAP_DESTROY_V2 = number(_WRITE, 63, _ARGS_SIZE)


@attrs.frozen
class SubvolumeInfo:
    """One subvolume, as its root item has it.

    Attributes:
        tree: its number, that of its tree.
        parent: number of the subvolume whose directory it is in; 0 for the top one, and for one that is deleted.
        read_only: its read-only flag.
        uuid: unique to it; a snapshot gets its own.
        changed: the last transaction that changed an inode in it (ctransid); a snapshot takes it over.
        made: the transaction that made it (otransid).
    """

    tree: int
    parent: int
    read_only: bool
    uuid: bytes
    changed: int
    made: int


def call(fd: int, request: int, name: str, argument: bytearray) -> None:
    """Carry out an ioctl on a buffer that the kernel may change."""
    try:
        ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def is_btrfs(fd: int) -> bool:
    """Whether an open file is on btrfs (BTRFS_IOC_FS_INFO answers)."""
    try:
        call(fd, _FS_INFO, "BTRFS_IOC_FS_INFO", bytearray(_FS_INFO_SIZE))
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
            return False
        raise
    return True


def create_subvolume(dir_fd: int, name: str) -> None:
    """Make an empty subvolume; durable when it returns. The mode of its root is 0777 less the process's umask."""
    call(dir_fd, _SUBVOL_CREATE_V2, "BTRFS_IOC_SUBVOL_CREATE_V2", _arguments(name=name))


def create_snapshot(dir_fd: int, name: str, source: int, *, read_only: bool) -> None:
    """Make a snapshot of the subvolume that `source` is in, atomically, and durable when it returns.

    What was written to the source before the call is written out first and is in it; subvolumes below the source are
    not, an empty directory stands in their place.
    """
    arguments = _arguments(fd=source, flags=_SUBVOL_RDONLY if read_only else 0, name=name)
    call(dir_fd, _SNAP_CREATE_V2, "BTRFS_IOC_SNAP_CREATE_V2", arguments)


def destroy_subvolume(dir_fd: int, name: str) -> None:
    """Delete a subvolume that has no others below it; after a crash soon afterwards it may be there again.

    The kernel gives its space back later, and not before the last user of a mount of it has let go.
    """
    arguments = bytearray(_ARGS_SIZE)
    arguments[8 : 8 + len(os.fsencode(name))] = os.fsencode(name)  # name in struct btrfs_ioctl_vol_args
    call(dir_fd, _SNAP_DESTROY, "BTRFS_IOC_SNAP_DESTROY", arguments)


def destroy_by_number(fd: int, tree: int) -> None:
    """Delete a subvolume of the same file system by its number, wherever it is (Linux 5.7)."""
    arguments = _arguments(flags=_SUBVOL_SPEC_BY_ID)
    struct.pack_into("=Q", arguments, _NAME_AT, tree)
    call(fd, _SNAP_DESTROY_V2, "BTRFS_IOC_SNAP_DESTROY_V2", arguments)


def set_read_only(fd: int, *, read_only: bool) -> None:
    """Set or clear the read-only flag of the subvolume whose root is open; durable when it returns."""
    flags = bytearray(8)
    call(fd, _SUBVOL_GETFLAGS, "BTRFS_IOC_SUBVOL_GETFLAGS", flags)
    now = int.from_bytes(flags, sys.byteorder)
    wanted = now | _SUBVOL_RDONLY if read_only else now & ~_SUBVOL_RDONLY
    if wanted != now:
        call(fd, _SUBVOL_SETFLAGS, "BTRFS_IOC_SUBVOL_SETFLAGS", bytearray(struct.pack("=Q", wanted)))


def subvolume_info(fd: int) -> SubvolumeInfo:
    """What the kernel says of the subvolume that an open file is in (Linux 4.18)."""
    buffer = bytearray(_INFO_SIZE)
    call(fd, _GET_SUBVOL_INFO, "BTRFS_IOC_GET_SUBVOL_INFO", buffer)
    tree, _, parent, _, _, flags, uuid, _, _, changed, made = _INFO.unpack_from(buffer)
    return SubvolumeInfo(tree, parent, bool(flags & _ROOT_SUBVOL_RDONLY), uuid, changed, made)


def path_of(fd: int, tree: int, directory: int) -> bytes:
    """The path of a directory in a subvolume of that number, relative to its root, with a slash at its end if any."""
    arguments = bytearray(_ARGS_SIZE)
    struct.pack_into("=QQ", arguments, 0, tree, directory)
    call(fd, _INO_LOOKUP, "BTRFS_IOC_INO_LOOKUP", arguments)
    return bytes(arguments[16:].partition(b"\0")[0])


def commit(fd: int) -> None:
    """Make durable what was changed in the file system's trees before the call, deletions of subvolumes included."""
    transaction = bytearray(8)
    call(fd, _START_SYNC, "BTRFS_IOC_START_SYNC", transaction)
    call(fd, _WAIT_SYNC, "BTRFS_IOC_WAIT_SYNC", transaction)


def _arguments(*, name: str = "", fd: int = 0, flags: int = 0) -> bytearray:
    """A struct btrfs_ioctl_vol_args_v2."""
    arguments = bytearray(_ARGS_SIZE)
    struct.pack_into("=qQQ", arguments, 0, fd, 0, flags)
    raw = os.fsencode(name)
    arguments[_NAME_AT : _NAME_AT + len(raw)] = raw
    return arguments
