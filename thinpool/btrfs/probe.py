"""Whether a store of btrfs subvolumes can be at a root: found out by making one."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from thinpool.btrfs import ioctl
from thinpool.btrfs.tree import ANY, ROOT_TREE, Key, Tree
from thinpool.errors import PoolFailed, PoolFull
from thinpool.filesystem import mounts

_NAME = ".thinpool-probe-"
_CANNOT = {errno.EROFS, errno.EPERM, errno.EACCES, errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}


def reason_against(root: Path, *, proven: bool) -> str | None:
    """Why a store cannot be there, in words for people; None where it can.

    A root that does not exist yet is judged by the directory that it would be made in. The kernel needs no module for
    it: where a btrfs is mounted, it is there.

    Args:
        root: the store's root.
        proven: a store is there already, so that only the file system and the privileges are looked at.

    Raises:
        PoolFull, PoolFailed: the file system could carry one, but is full or broken.
    """
    if os.geteuid() != 0:
        return "needs root, to mount layers and to read the file system's trees"
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return f"{place} cannot be opened: {error.strerror}"
    try:
        if not ioctl.is_btrfs(fd):
            entry = mounts.mount_of(fd)
            kind = "of another type" if entry is None else entry.fs_type
            return f"the file system at {place} is {kind}, btrfs is needed"
        return _try(fd, place, proven=proven)
    finally:
        os.close(fd)


def _try(fd: int, place: Path, *, proven: bool) -> str | None:
    doing = "read its trees"
    try:
        _read_root_tree(fd)
        if not proven:
            doing = "make and delete a subvolume"
            _remove_leftovers(fd)
            name = f"{_NAME}{os.getpid()}"
            ioctl.create_subvolume(fd, name)
            ioctl.destroy_subvolume(fd, name)
    except OSError as error:
        said = f"btrfs at {place} does not let us {doing}: {error.strerror} ({error.filename})"
        if error.errno in _CANNOT:
            return said
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PoolFull(f"the file system at {place} is full", hint="free space on it") from error
        raise PoolFailed(said) from error
    return None


def _read_root_tree(fd: int) -> None:
    next(Tree(fd).items(Key(0, 0, 0), Key(ANY, 255, ANY), tree=ROOT_TREE))


def _remove_leftovers(fd: int) -> None:
    """Delete what a process that died while it tried has left."""
    for name in os.listdir(fd):
        owner = name.removeprefix(_NAME)
        if owner != name and owner.isdecimal() and not Path("/proc", owner).exists():
            with suppress(OSError):  # whatever else it is, it stays
                ioctl.destroy_subvolume(fd, name)
