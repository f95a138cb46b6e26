"""Subvolumes that somebody made inside another one: found in the tree of roots, and deleted by number.

Nothing here follows a path, so whatever links and mounts are on the way, only what the file system itself records as
being inside is touched.
"""

import ctypes
import errno
import os
import struct
from os import fsdecode

from thinpool.btrfs import ioctl
from thinpool.btrfs.tree import INODE_ITEM, Key, Tree, inode

_FILE_HANDLE = struct.Struct("=LlQQL")  # struct file_handle with a struct btrfs_fid (fs/btrfs/export.h) up to gen
_FID_SIZE = 20
_FILEID_BTRFS_WITHOUT_PARENT = 0x4D  # include/linux/exportfs.h
_libc = ctypes.CDLL(None, use_errno=True)


def first_path(fd: int) -> str | None:
    """Where a subvolume is inside the one that is open, absolute within that; None where there is none."""
    own = ioctl.subvolume_info(fd).tree
    for _, directory, name in Tree(fd).subvolumes(own):
        return f"/{fsdecode(ioctl.path_of(fd, own, directory) + name)}"
    return None


def destroy_below(fd: int) -> None:
    """Delete all subvolumes inside the one that is open, the innermost first; done again after a crash, it goes on."""
    tree = Tree(fd)
    own = ioctl.subvolume_info(fd).tree
    found = [(below, own) for below, _, _ in tree.subvolumes(own)]
    for number, _ in found:
        found += [(below, number) for below, _, _ in tree.subvolumes(number)]
    for number, above in reversed(found):
        try:
            ioctl.destroy_by_number(fd, number)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            _make_writable(fd, above)
            ioctl.destroy_by_number(fd, number)


def _make_writable(fd: int, number: int) -> None:
    """Clear the read-only flag of a subvolume that is to be deleted."""
    key = Key(ioctl.FIRST_INODE, INODE_ITEM, 0)
    root = next(Tree(fd).items(key, key, tree=number))
    generation = inode(root).generation & 0xFFFFFFFF
    handle = _FILE_HANDLE.pack(_FID_SIZE, _FILEID_BTRFS_WITHOUT_PARENT, ioctl.FIRST_INODE, number, generation)
    opened = _libc.open_by_handle_at(fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if opened < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "open_by_handle_at")
    try:
        ioctl.set_read_only(opened, read_only=False)
    finally:
        os.close(opened)
