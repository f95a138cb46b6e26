"""Whether one path is the same in two trees."""

import os
import stat
from os import stat_result

from thinpool.errors import TreeError
from thinpool.layer import xattrs
from thinpool.layer.text import shown

_CHUNK = 1 << 18
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def attributes_differ(older: stat_result, newer: stat_result) -> bool:
    """Compare what stat(2) tells: type and permissions, owner, device number, size, time of modification.

    Of a directory, neither size nor time count: they follow from its entries.
    """
    mode = newer.st_mode
    if older.st_mode != mode or older.st_uid != newer.st_uid or older.st_gid != newer.st_gid:
        return True
    if stat.S_ISDIR(mode):
        return False
    if older.st_mtime_ns != newer.st_mtime_ns:
        return True
    if stat.S_ISREG(mode):
        return older.st_size != newer.st_size
    return (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and older.st_rdev != newer.st_rdev


def contents_differ(older_fd: int, newer_fd: int, name: str, newer: stat_result) -> bool:
    """Compare what stat(2) does not tell of two entries that otherwise agree: attributes, link target, content.

    Args:
        older_fd: the directory in the older tree.
        newer_fd: the directory in the newer tree.
        name: the entry's name in both; `.` for the directories themselves.
        newer: the status of the newer entry.
    """
    if xattrs.read(xattrs.path_of(older_fd, name)) != xattrs.read(xattrs.path_of(newer_fd, name)):
        return True
    if stat.S_ISLNK(newer.st_mode):
        return os.readlink(name, dir_fd=older_fd) != os.readlink(name, dir_fd=newer_fd)
    if not stat.S_ISREG(newer.st_mode) or not newer.st_size:
        return False
    older = os.open(name, _READ, dir_fd=older_fd)
    try:
        other = os.open(name, _READ, dir_fd=newer_fd)
        try:
            return _data_differs(older, other, newer.st_size, name)
        finally:
            os.close(other)
    finally:
        os.close(older)


def _data_differs(older: int, newer: int, size: int, name: str) -> bool:
    """Compare two files of one size, going over what is a hole in both."""
    ours, theirs = bytearray(min(size, _CHUNK)), bytearray(min(size, _CHUNK))
    position = 0
    while position < size:
        if size > _CHUNK:
            position = min(_next_data(older, position, size), _next_data(newer, position, size))
            if position == size:
                break
        count = os.preadv(older, [ours], position)
        if count != os.preadv(newer, [theirs], position) or not count:
            raise TreeError(f"{shown(name)} changed while it was read")
        if memoryview(ours)[:count] != memoryview(theirs)[:count]:
            return True
        position += count
    return False


def _next_data(fd: int, position: int, size: int) -> int:
    try:
        return min(os.lseek(fd, position, os.SEEK_DATA), size)
    except OSError:  # ENXIO: only a hole is left; EINVAL: the file system knows no holes
        return _end_of_hole(fd, position, size)


def _end_of_hole(fd: int, position: int, size: int) -> int:
    try:
        return size if os.lseek(fd, position, os.SEEK_HOLE) == position else position
    except OSError:
        return position
