"""Hard links that aufs holds together while it is mounted.

Where a file of the layers below has several names, and one of them is written to, aufs copies it up under that name
alone. The others show the copy too: aufs remembers which they are in memory, by its own inode numbers, and keeps the
copy in a bookkeeping directory of the upper, as `NUMBER.INODE` ("pseudo-links", aufs(5)). With the mount that memory
ends, and the other names would show the old file again. So they are joined before: a name that is touched becomes a
link to the copy in the upper, which tells all from then on. Where the mount ends without us, they fall apart, as they
would with overlayfs.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from thinpool.layer.tree import DIRECTORY, go_over
from thinpool.layer.whiteouts import BOOKKEEPING

FOLDER = BOOKKEEPING + b"plnk"


def pending(upper: int) -> frozenset[int]:
    """The inode numbers, in the mount, of what has to be joined in an upper."""
    try:
        folder = _opened(upper)
    except FileNotFoundError:
        return frozenset()
    try:
        names = os.listdir(folder)
    finally:
        os.close(folder)
    return frozenset(int(number) for name in names if (number := name.partition(".")[0]).isdecimal())


def join(root: int, numbers: frozenset[int]) -> None:
    """Touch every name of some inodes, found by going over all names of the mount; nothing else of them changes."""
    go_over(root, lambda fd: _touch(fd, numbers))


def forget(upper: int) -> None:
    """Remove what is kept for a mount that is gone, whose numbers mean nothing any more."""
    with suppress(FileNotFoundError):
        folder = _opened(upper)
        try:
            for name in os.listdir(folder):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)


def _opened(upper: int) -> int:
    return os.open(FOLDER, DIRECTORY, dir_fd=upper)


def _touch(fd: int, numbers: frozenset[int]) -> Iterator[str]:
    """Touch what is meant in an open directory; the names of the directories in it."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            elif entry.inode() in numbers:
                mode = os.stat(entry.name, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    os.chown(entry.name, -1, -1, dir_fd=fd, follow_symlinks=False)
                else:
                    os.chmod(entry.name, stat.S_IMODE(mode), dir_fd=fd)
    return iter(directories)
