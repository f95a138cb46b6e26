"""Removing trees by descriptors, at any depth, sparing some inodes."""

import errno
import os
import stat
from collections.abc import Callable, Iterator

from thinpool.layer.tree import Descent

Spare = Callable[[int, bytes, os.stat_result], bool]
"""Whether to spare the entry of that name in an open directory."""


def remove(dir_fd: int, name: bytes, spare: Spare | None = None) -> None:
    """Remove an entry and all below it.

    Args:
        dir_fd: its directory.
        name: its name; a link is removed, not followed.
        spare: what stays, with the directories that lead to it.
    """
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        if spare is None or not spare(dir_fd, name, status):
            os.unlink(name, dir_fd=dir_fd)
        return
    with Descent(dir_fd) as descent:
        descent.enter(name)
        _empty(descent, spare)
    if spare is None or not spare(dir_fd, name, status):
        _remove_directory(dir_fd, name, spare)


def empty(dir_fd: int, spare: Spare | None = None) -> None:
    """Remove all that is in a directory, but what is to be spared."""
    with Descent(dir_fd) as descent:
        _empty(descent, spare)


def _empty(descent: Descent, spare: Spare | None) -> None:
    stack = [(b"", _files_first(descent.fd, spare))]
    while stack:
        name, directories = stack[-1]
        below = next(directories, None)
        if below is not None:
            descent.enter(below)
            stack.append((below, _files_first(descent.fd, spare)))
            continue
        stack.pop()
        if stack:
            descent.leave()
            if spare is None or not spare(descent.fd, name, os.stat(name, dir_fd=descent.fd, follow_symlinks=False)):
                _remove_directory(descent.fd, name, spare)


def _files_first(fd: int, spare: Spare | None) -> Iterator[bytes]:
    """Remove what is no directory; the names of the directories."""
    directories: list[bytes] = []
    others: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            (directories if entry.is_dir(follow_symlinks=False) else others).append(os.fsencode(entry.name))
    for name in others:
        if spare is None or not spare(fd, name, os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=fd)
    return iter(directories)


def _remove_directory(dir_fd: int, name: bytes, spare: Spare | None) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if spare is None or error.errno != errno.ENOTEMPTY:
            raise


def is_full(error: OSError) -> bool:
    """True when there was no room."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}
