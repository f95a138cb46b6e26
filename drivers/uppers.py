"""Copying an upper: onto nothing, which is a snapshot of it, or onto that of an older layer, which makes one of two.

Everything of an entry is carried over that a layer can hold: type, owner, mode, times, device number, content with its
holes, extended attributes, and which names share an inode. Blocks are shared where the file system can (FICLONE).
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Self

from thinpool.drivers.marks import Entry, Marks
from thinpool.layer import removal, xattrs
from thinpool.layer.tree import Descent

_FICLONE = 0x40049409  # include/uapi/linux/fs.h
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20
_TICK_SECONDS = 0.001
_COARSE = 5  # CLOCK_REALTIME_COARSE, include/uapi/linux/time.h
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})


class Moved(Exception):
    """What is copied changed meanwhile."""


def copy(source: int, target: int, links: int, marks: Marks) -> None:
    """Put an upper above what a target holds, so that the target alone shows what both in a stack would.

    In memory are the names of the directories on the way down. If the process dies, the target is some part of it.

    Args:
        source: the upper's root directory, which is not changed.
        target: an open directory, empty or the upper of an older layer.
        links: an open empty directory of the same file system; in it are names of what has several, for the meantime.
        marks: the notation of both.

    Raises:
        OSError: something cannot be read or made.
    """
    with Descent(source) as source_descent, Descent(target) as target_descent:
        _Copy(source_descent, target_descent, links, marks).run()
    removal.empty(links)


def prune(upper: int, below: int | None, marks: Marks) -> None:
    """Remove whiteouts of what is not there: in a directory that has nothing below it, they would show as entries.

    Args:
        upper: the root directory of an upper.
        below: that of what it will be stacked on, mounted; None where it is nothing.
        marks: the notation.
    """
    with Descent(upper) as descent, Shadow(below) as shadow:
        stack = [_prune_directory(descent.fd, shadow, marks)]
        while stack:
            name = next(stack[-1], None)
            if name is not None:
                descent.enter(name)
                shadow.enter(name)
                stack.append(_prune_directory(descent.fd, shadow, marks))
                continue
            stack.pop()
            if stack:
                descent.leave()
                shadow.leave()


def _prune_directory(fd: int, shadow: "Shadow", marks: Marks) -> Iterator[bytes]:
    if marks.is_opaque(fd):
        shadow.lose()
    status = os.fstat(fd)
    directories = []
    for entry in marks.entries(fd):
        if entry.is_directory:
            directories.append(entry.name)
        elif entry.status is None and shadow.status(entry.name) is None:
            marks.clear(fd, entry.name)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    return iter(directories)


class Shadow:
    """A tree that is followed while another is walked, as far as it has directories of the same names."""

    def __init__(self, root: int | None) -> None:
        self._descent = None if root is None else Descent(root)
        self._lost = 0 if root is not None else 1  # how many directories down it has none of that name

    def enter(self, name: bytes) -> None:
        """Go down where it has that directory too."""
        if self._descent is not None and not self._lost:
            try:
                self._descent.enter(name)
                return
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    raise
        self._lost += 1

    def lose(self) -> None:
        """Take the present directory for one that it does not have."""
        if self._descent is not None and not self._lost:
            if self._descent.depth:
                self._descent.leave()
            else:
                self.close()
            self._lost = 1

    def leave(self) -> None:
        """Go up again."""
        if self._lost:
            self._lost -= 1
        elif self._descent is not None:
            self._descent.leave()

    def status(self, name: bytes) -> os.stat_result | None:
        """What it has under a name in the present directory, links not followed; None where it has nothing."""
        if self._descent is None or self._lost:
            return None
        try:
            return os.stat(name, dir_fd=self._descent.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Close what is open."""
        if self._descent is not None:
            self._descent.close()
            self._descent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tick() -> int:
    """Wait until the clock that file systems stamp with has moved on: its time, in nanoseconds.

    Whatever was stamped before the call has an older stamp than that. It moves at least a hundred times a second.
    """
    before = time.clock_gettime_ns(_COARSE)
    while (now := time.clock_gettime_ns(_COARSE)) == before:
        time.sleep(_TICK_SECONDS)
    return now


def check_still(source: int, since_ns: int) -> None:
    """Raise Moved where an entry of an upper was changed at or after a time that `tick` gave."""
    with Descent(source) as descent:
        for status in statuses(descent):
            if status.st_ctime_ns >= since_ns:
                raise Moved


def statuses(descent: Descent) -> Iterator[os.stat_result]:
    """Of every entry of a tree, marks and all, beginning with its root."""
    yield os.fstat(descent.fd)
    stack = [_names(descent.fd)]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            if stack:
                descent.leave()
            continue
        status = os.stat(name, dir_fd=descent.fd, follow_symlinks=False)
        yield status
        if stat.S_ISDIR(status.st_mode):
            descent.enter(name)
            stack.append(_names(descent.fd))


def copy_attributes(source: int, target: int) -> None:
    """Give an open file or directory another's owner, mode, extended attributes and times."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    _copy_xattrs(source, target)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _names(fd: int) -> Iterator[str]:
    with os.scandir(fd) as entries:
        return iter([entry.name for entry in entries])


class _Copy:
    def __init__(self, source: Descent, target: Descent, links: int, marks: Marks) -> None:
        self._source = source
        self._target = target
        self._links = links
        self._marks = marks
        with os.scandir(target.fd) as entries:
            self._onto_nothing = next(entries, None) is None

    def run(self) -> None:
        stack = [self._directory()]
        while stack:
            name = next(stack[-1], None)
            if name is not None:
                self._source.enter(name)
                self._target.enter(name)
                stack.append(self._directory())
                continue
            copy_attributes(self._source.fd, self._target.fd)
            stack.pop()
            if stack:
                self._source.leave()
                self._target.leave()

    def _directory(self) -> Iterator[bytes]:
        """Copy what is in the present directory; the names of the directories in it, which are there but empty."""
        if self._marks.is_opaque(self._source.fd):
            removal.empty(self._target.fd)
            self._marks.seal(self._target.fd)
        directories = []
        for entry in self._marks.entries(self._source.fd):
            if entry.is_directory:
                self._make_directory(entry.name)
                directories.append(entry.name)
            else:
                self._replace(entry)
        return iter(directories)

    def _make_directory(self, name: bytes) -> None:
        target = self._target.fd
        replaced = not self._onto_nothing and self._marks.clear(target, name)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
        except FileExistsError:
            return
        if replaced:  # what that hid stays hidden
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
            try:
                self._marks.seal(fd)
            finally:
                os.close(fd)

    def _replace(self, entry: Entry) -> None:
        target = self._target.fd
        if not self._onto_nothing:
            self._marks.clear(target, entry.name)
            with suppress(FileNotFoundError):
                removal.remove(target, entry.name)
        if entry.status is None:
            self._marks.hide(target, entry.name)
        elif entry.status.st_nlink == 1:
            _make(self._source.fd, entry.name, entry.status, target, entry.name)
        else:
            number = b"%d" % entry.status.st_ino
            with suppress(FileExistsError):
                _make(self._source.fd, entry.name, entry.status, self._links, number)
            os.link(number, entry.name, src_dir_fd=self._links, dst_dir_fd=target, follow_symlinks=False)


def _make(source: int, name: bytes, status: os.stat_result, target: int, new: bytes) -> None:
    """Copy what is no directory; FileExistsError where the new name is taken."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        _make_file(source, name, target, new)
        return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), new, dir_fd=target)
    else:
        os.mknod(new, mode, status.st_rdev, dir_fd=target)
    os.chown(new, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    path = xattrs.path_of(target, new)
    _copy_xattrs(xattrs.path_of(source, name), path)
    if not stat.S_ISLNK(mode):
        os.chmod(path, stat.S_IMODE(mode))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _make_file(source: int, name: bytes, target: int, new: bytes) -> None:
    with ExitStack() as opened:
        ours = os.open(new, _CREATE, 0o600, dir_fd=target)
        opened.callback(os.close, ours)
        theirs = os.open(name, _READ, dir_fd=source)
        opened.callback(os.close, theirs)
        try:
            fcntl.ioctl(ours, _FICLONE, theirs)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            _copy_data(theirs, ours)
        copy_attributes(theirs, ours)


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # only a hole is left
        _copy_range(source, target, start, end)
    os.ftruncate(target, size)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(_PIECE, end - start), start)
        if not data:
            return  # it became shorter, which shows in its time
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, start)
            view = view[written:]
            start += written


def _copy_xattrs(source: int | str, target: int | str) -> None:
    wanted = xattrs.read(source)
    for name in xattrs.read(target):
        if name not in wanted:
            os.removexattr(target, name, follow_symlinks=isinstance(target, int))
    for name, value in wanted.items():
        os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
