"""What an import cannot have done by the file system that it writes to, noted for when that is out of the way.

A union file system may cut a time that is set to whole seconds, or leave an attribute that is removed there, empty,
while the file system below it does both right. So they are noted in attributes of the entry itself, and done there
afterwards, when the notes go too.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

from thinpool.layer import xattrs
from thinpool.layer.tarformat import NANOSECONDS
from thinpool.layer.tree import go_over

_TIME = f"{xattrs.OWN}mtime"
_REMOVED = f"{xattrs.OWN}removed"
_SEPARATOR = b"\0"


class Writer:
    """Sets times and removes attributes of entries.

    Args:
        noting: leave notes for `settle`.
    """

    def __init__(self, *, noting: bool = False) -> None:
        self._noting = noting

    def set_time(self, fd: int, time_ns: int) -> None:
        """Set the times of access and modification of an open file."""
        os.utime(fd, ns=(time_ns, time_ns))
        if self._noting and time_ns % NANOSECONDS:
            os.setxattr(fd, _TIME, b"%d" % time_ns)

    def set_time_at(self, dir_fd: int, name: bytes, time_ns: int) -> None:
        """Set those of an entry of a directory, of itself if it is a symbolic link."""
        os.utime(name, ns=(time_ns, time_ns), dir_fd=dir_fd, follow_symlinks=False)
        if self._noting and time_ns % NANOSECONDS:
            os.setxattr(xattrs.path_of(dir_fd, name), _TIME, b"%d" % time_ns, follow_symlinks=False)

    def remove_attribute(self, fd: int, name: str) -> None:
        """Remove an extended attribute of an open file."""
        os.removexattr(fd, name)
        if self._noting and name in os.listxattr(fd):
            os.setxattr(fd, _REMOVED, _read(fd, _REMOVED) + os.fsencode(name) + _SEPARATOR)


def settle(root: int) -> None:
    """Do what is noted in a tree, and remove the notes; it can be called again where it was cut short."""
    _settle(root, b".")
    go_over(root, _settle_entries)


def _settle_entries(fd: int) -> Iterator[bytes]:
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            _settle(fd, name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
    return iter(directories)


def _settle(dir_fd: int, name: bytes) -> None:
    path = xattrs.path_of(dir_fd, name)
    if removed := _read(path, _REMOVED):
        for attribute in filter(None, removed.split(_SEPARATOR)):
            if not _read(path, os.fsdecode(attribute)):  # else it was set again
                with suppress(OSError):
                    os.removexattr(path, attribute, follow_symlinks=False)
        os.removexattr(path, _REMOVED, follow_symlinks=False)
    if noted := _read(path, _TIME):
        time_ns = int(noted)
        os.utime(name, ns=(time_ns, time_ns), dir_fd=dir_fd, follow_symlinks=False)
        os.removexattr(path, _TIME, follow_symlinks=False)


def _read(file: int | str, name: str) -> bytes:
    """The value of an attribute; empty where there is none, or none that can be read."""
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        if error.errno not in {errno.ENODATA, errno.EINVAL}:
            raise
        return b""
