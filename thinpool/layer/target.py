"""The directories of the layer that is being written: found so that no path leads out, kept open for speed."""

import errno
import os
import stat
from collections import OrderedDict
from types import TracebackType
from typing import Self

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer import removal, xattrs
from thinpool.layer.inodes import InodeSet
from thinpool.layer.notes import Writer
from thinpool.layer.openat2 import Resolver
from thinpool.layer.text import shown
from thinpool.layer.times import DirectoryTimes
from thinpool.layer.tree import DIRECTORY

_KEPT_OPEN = 64
_PATH_MAX = 4096
_IMPLIED_MODE = 0o755
_NOT_A_DIRECTORY = frozenset({errno.ENOTDIR, errno.ELOOP})
_MOST_ADOPTED = 500_000


@attrs.frozen(eq=False)
class Directory:
    """An open directory of the layer.

    Attributes:
        fd: its descriptor, good until the next directory is asked for.
        plain: new entries get the owner and mode they are made with: no set-group-id bit, no default access list.
        acl: it has a default access list, which new entries inherit.
    """

    fd: int
    plain: bool = True
    acl: bool = False


@attrs.frozen
class Owner:
    """What an entry is given when it is made.

    Attributes:
        mode: permission bits, set-id and sticky bits.
        uid: owner.
        gid: group.
        mtime_ns: time of modification in nanoseconds.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int


class Target:
    """The tree below a root.

    Directories are found from the root by openat2(2) with the root as `/`: symbolic links among the parents of an entry
    are followed as they would be in the mounted layer, be they of a parent layer or of the archive, and never lead out.
    In a path longer than PATH_MAX, which the kernel does not take whole, no link is followed. Missing parents are made.
    """

    def __init__(self, root: int, writer: Writer) -> None:
        """Open the root, which stays the caller's."""
        self.writer = writer
        self.times = DirectoryTimes()
        self.umask = _umask()
        self._root_fd = os.open(".", DIRECTORY, dir_fd=root)
        self._resolver = Resolver(self._root_fd)
        self._open: OrderedDict[bytes, Directory] = OrderedDict()
        self._adopted: set[int] = set()
        with os.scandir(self._root_fd) as entries:
            empty = next(entries, None) is None
        self._own = None if empty else InodeSet()
        self._inherits = True
        self.root = self._describe(self._root_fd)
        self._inherits = not (empty and self.root.plain)

    # -- directories

    def directory(self, path: bytes, mtime_ns: int | None = None) -> Directory:
        """The directory of that path; `mtime_ns` is the time of those that have to be made, None makes none.

        Raises:
            OSError: it is not there, or cannot be opened.
            ArchiveError: part of the path is no directory.
        """
        if not path:
            return self.root
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        try:
            return self._remember(path, self._find(path))
        except FileNotFoundError:
            if mtime_ns is None:
                raise
        except OSError as error:
            if error.errno in _NOT_A_DIRECTORY:
                raise ArchiveError(f"{shown(path)} is no directory, and entries of the archive lie in it") from error
            raise
        return self._make_all(path, mtime_ns)

    def make(self, path: bytes, owner: Owner) -> tuple[Directory, bool]:
        """Make a directory, or take the one that is there; anything else of that name is replaced.

        Returns:
            The directory, and whether it is new. Only a new one has the owner already.
        """
        above, _, name = path.rpartition(b"/")
        parent = self.directory(above, owner.mtime_ns)
        if self._mkdir(parent, name, owner):
            return self._take_new(path, parent, owner), True
        try:
            fd = os.open(name, DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            if error.errno not in _NOT_A_DIRECTORY:
                raise
        else:
            return self._note(path, self._describe(fd), owner), False
        self.clear(parent, name)
        self._mkdir(parent, name, owner)
        return self._take_new(path, parent, owner), True

    def changed(self, path: bytes, directory: Directory, *, setgid: bool, acl: bool) -> None:
        """Note what entries of a directory will inherit from now on."""
        if (setgid or acl) == (not directory.plain) and acl == directory.acl:
            return
        self._inherits = self._inherits or setgid or acl
        now = Directory(directory.fd, not (setgid or acl), acl)
        if path:
            self._open[path] = now
        else:
            self.root = now

    def set_times(self) -> None:
        """Give the directories their times; none must be changed afterwards."""
        for path, inode, time_ns in self.times:
            above, _, name = path.rpartition(b"/")
            try:
                fd = self.directory(above).fd
                status = os.stat(name or b".", dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, ArchiveError):
                continue  # replaced by a later entry
            if status.st_ino == inode and stat.S_ISDIR(status.st_mode):
                self.writer.set_time_at(fd, name or b".", time_ns)

    # -- what is there already

    def clear(self, parent: Directory, name: bytes) -> None:
        """Remove what is in the way of an entry, with all below it."""
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            os.unlink(name, dir_fd=parent.fd)
            return
        self._forget(parent)
        removal.remove(parent.fd, name)

    def hide(self, path: bytes) -> None:
        """Carry out a whiteout: remove what the parent layers have under a path; the archive's own stays."""
        if self._own is None:
            return
        above, _, name = path.rpartition(b"/")
        try:
            parent = self.directory(above)
            os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except (FileNotFoundError, ArchiveError):
            return
        self._forget(parent)
        removal.remove(parent.fd, name, self._is_own)

    def hide_all(self, path: bytes) -> None:
        """Carry out an opaque marker: remove what the parent layers have in a directory; the archive's own stays."""
        if self._own is None:
            return
        try:
            directory = self.directory(path)
        except (FileNotFoundError, ArchiveError):
            return
        self._forget(directory)
        removal.empty(directory.fd, self._is_own)

    def made(self, parent: Directory, name: bytes, fd: int | None = None) -> None:
        """Note that an entry comes from the archive, where whiteouts may have to tell it from the parent layers'."""
        if self._own is not None:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False) if fd is None else os.fstat(fd)
            self._own.add(status.st_ino)

    def linked(self, parent: Directory, name: bytes) -> None:
        """Note a new name, which may be one of a parent layer's file."""
        if self._own is None:
            return
        inode = os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_ino
        if inode in self._own:
            return
        if len(self._adopted) >= _MOST_ADOPTED:
            raise ArchiveError(f"more than {_MOST_ADOPTED} hard links to files of the parent layers")
        self._adopted.add(hash((os.fstat(parent.fd).st_ino, name)))

    def close(self) -> None:
        """Close what is open."""
        self._forget(None)
        os.close(self._root_fd)
        self.times.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- below

    def _is_own(self, dir_fd: int, name: bytes, status: os.stat_result) -> bool:
        assert self._own is not None
        if status.st_ino in self._own:
            return True
        return bool(self._adopted) and hash((os.fstat(dir_fd).st_ino, name)) in self._adopted

    def _find(self, path: bytes) -> int:
        above, _, name = path.rpartition(b"/")
        parent = self._open.get(above) if above else self.root
        if parent is not None:
            try:
                return os.open(name, DIRECTORY, dir_fd=parent.fd)
            except OSError as error:
                if error.errno not in _NOT_A_DIRECTORY:
                    raise
        if len(path) < _PATH_MAX:
            return self._resolver.open_directory(path)
        return self._step_down(path)

    def _step_down(self, path: bytes) -> int:
        fd = self._root_fd
        try:
            for part in path.split(b"/"):
                below = os.open(part, DIRECTORY, dir_fd=fd)
                if fd != self._root_fd:
                    os.close(fd)
                fd = below
        except BaseException:
            if fd != self._root_fd:
                os.close(fd)
            raise
        return fd

    def _make_all(self, path: bytes, mtime_ns: int) -> Directory:
        owner = Owner(_IMPLIED_MODE, 0, 0, mtime_ns)
        directory = self.root
        position = 0
        while position <= len(path):
            end = path.find(b"/", position)
            end = len(path) if end < 0 else end
            part = path[:end]
            try:
                directory = self.directory(part)
            except FileNotFoundError:
                directory = self._make_implied(part, owner)
            position = end + 1
        return directory

    def _make_implied(self, path: bytes, owner: Owner) -> Directory:
        above, _, name = path.rpartition(b"/")
        parent = self.directory(above)
        if not self._mkdir(parent, name, owner):
            raise ArchiveError(f"{shown(path)} is a link to nowhere, and entries of the archive lie in it")
        return self._take_new(path, parent, owner)

    def _take_new(self, path: bytes, parent: Directory, owner: Owner) -> Directory:
        fd = os.open(path.rpartition(b"/")[2], DIRECTORY, dir_fd=parent.fd)
        self._adjust(fd, parent, owner)
        return self._note(path, Directory(fd), owner)

    def _note(self, path: bytes, directory: Directory, owner: Owner) -> Directory:
        """Remember a directory that the archive has: that it is the archive's, what its time is to be, where it is."""
        inode = os.fstat(directory.fd).st_ino
        if self._own is not None:
            self._own.add(inode)
        self.times.add(path, inode, owner.mtime_ns)
        old = self._open.pop(path, None)
        if old is not None:
            os.close(old.fd)
        return self._keep(path, directory)

    def _mkdir(self, parent: Directory, name: bytes, owner: Owner) -> bool:
        try:
            os.mkdir(name, owner.mode & 0o777, dir_fd=parent.fd)
        except FileExistsError:
            return False
        return True

    def _adjust(self, fd: int, parent: Directory, owner: Owner) -> None:
        """Give a new directory what mkdir(2) did not."""
        if owner.uid or owner.gid or not parent.plain:
            os.fchown(fd, owner.uid, owner.gid)
        if parent.acl:
            xattrs.drop_acls(fd)
        if owner.mode & (0o7000 | self.umask) or not parent.plain:
            os.fchmod(fd, owner.mode)

    def _describe(self, fd: int) -> Directory:
        if not self._inherits:
            return Directory(fd)
        acl = xattrs.has_default_acl(fd)
        setgid = bool(os.fstat(fd).st_mode & stat.S_ISGID)
        return Directory(fd, not (acl or setgid), acl)

    def _remember(self, path: bytes, fd: int) -> Directory:
        return self._keep(path, self._describe(fd))

    def _keep(self, path: bytes, directory: Directory) -> Directory:
        self._open[path] = directory
        if len(self._open) > _KEPT_OPEN:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.fd)
        return directory

    def _forget(self, but: Directory | None) -> None:
        """Close the directories, as paths may lead elsewhere now, but the one that is in use."""
        kept = OrderedDict[bytes, Directory]()
        for path, directory in self._open.items():
            if directory is but:
                kept[path] = directory
            else:
                os.close(directory.fd)
        self._open = kept


def _umask() -> int:
    """This process's mask, read without changing it (umask(2) can only do both; proc(5), Linux 4.7)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777
