"""The names of given inodes in a tree."""

import os
from collections.abc import Iterator

from thinpool.layer.tree import Descent

_Id = tuple[int, int]


def names_of(root: int, wanted: set[_Id], *, by_status: bool) -> Iterator[tuple[bytes, _Id]]:
    """Look through a whole tree for the names of inodes that are no directories.

    Args:
        root: the tree's root directory.
        wanted: device and inode numbers.
        by_status: ask for the status of each entry. Otherwise only of those whose number in the directory is wanted,
            which spares a system call a file, and misses some on overlayfs, where the two numbers can differ.

    Yields:
        Paths relative to the root, sorted by their bytes, and their inodes.
    """
    numbers = {number for _, number in wanted}
    with Descent(root) as descent:
        stack = [(b"", _keys(descent.fd, numbers, by_status=by_status))]
        while stack:
            prefix, keys = stack[-1]
            for key in keys:
                if key.endswith(b"/"):
                    descent.enter(key[:-1])
                    stack.append((prefix + key, _keys(descent.fd, numbers, by_status=by_status)))
                    break
                status = os.stat(key, dir_fd=descent.fd, follow_symlinks=False)
                identity = (status.st_dev, status.st_ino)
                if identity in wanted:
                    yield prefix + key, identity
            else:
                stack.pop()
                if stack:
                    descent.leave()


def _keys(fd: int, numbers: set[int], *, by_status: bool) -> Iterator[bytes]:
    keys = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                keys.append(os.fsencode(entry.name) + b"/")
            elif by_status or entry.inode() in numbers:
                keys.append(os.fsencode(entry.name))
    keys.sort()
    return iter(keys)
