"""How a directory of changes says that something of the layers below is gone: the two notations.

An *upper* is the directory that a union file system writes a layer's changes to. It holds what is new or changed, and
marks: a whiteout hides one name of the layers below, an opaque directory shows nothing of theirs.

overlayfs (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"): a whiteout is a character
device 0:0 of that name, an opaque directory has the attribute `trusted.overlay.opaque`, or `user.overlay.opaque` where
it is mounted with `userxattr`. aufs (aufs(5)): a whiteout is an empty file `.wh.NAME`, an opaque directory holds
`.wh..wh..opq`; whatever else begins with `.wh..wh.` is bookkeeping.
"""

import errno
import os
import stat
from collections.abc import Iterator
from os import stat_result
from typing import Protocol

import attrs

from thinpool.layer.whiteouts import BOOKKEEPING, OPAQUE, PREFIX

_HIDE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_AUFS_WHITEOUT_MODE = 0o444
_BASE, _LINKS, _ORPHANS = (BOOKKEEPING + name for name in (b"aufs", b"plnk", b"orph"))


@attrs.frozen
class Entry:
    """One name that an upper says something about.

    Attributes:
        name: the name in the layer.
        status: what is there, links not followed; None for a whiteout.
    """

    name: bytes
    status: stat_result | None

    @property
    def is_directory(self) -> bool:
        """Whether there is a directory of that name."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


class Marks(Protocol):
    """One notation."""

    def entries(self, fd: int) -> Iterator[Entry]:
        """What an open directory of an upper says, marks understood, bookkeeping left out."""

    def is_opaque(self, fd: int) -> bool:
        """Whether nothing of the layers below shows in an open directory."""

    def clear(self, fd: int, name: bytes) -> bool:
        """Remove what is no directory, be it a whiteout, under a name; whether there was anything."""

    def hide(self, fd: int, name: bytes) -> None:
        """Write a whiteout for a name under which there is nothing."""

    def seal(self, fd: int) -> None:
        """Make an open directory opaque."""

    def prepare(self, fd: int) -> None:
        """Make in a new upper what the file system makes in it itself when it is first mounted, if it does."""


@attrs.frozen
class OverlayMarks:
    """The notation of overlayfs.

    Attributes:
        space: where its own attributes are: `trusted` or `user`.
    """

    space: str = "trusted"

    @property
    def _opaque(self) -> str:
        return f"{self.space}.overlay.opaque"

    def entries(self, fd: int) -> Iterator[Entry]:
        """All entries; a whiteout is one itself."""
        with os.scandir(fd) as found:
            names = [os.fsencode(entry.name) for entry in found]
        for name in names:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield Entry(name, None if _is_whiteout(status) else status)

    def is_opaque(self, fd: int) -> bool:
        """Ask for the attribute."""
        try:
            return os.getxattr(fd, self._opaque) == b"y"
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                raise
            return False

    def clear(self, fd: int, name: bytes) -> bool:
        """Unlink it."""
        return _unlink(fd, name)

    def hide(self, fd: int, name: bytes) -> None:
        """Make the device; mknod(2) allows it everywhere, as it can be opened by nobody."""
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)

    def seal(self, fd: int) -> None:
        """Set the attribute."""
        os.setxattr(fd, self._opaque, b"y")

    def prepare(self, fd: int) -> None:
        """It makes nothing."""


@attrs.frozen
class AufsMarks:
    """The notation of aufs."""

    def entries(self, fd: int) -> Iterator[Entry]:
        """All entries but bookkeeping; a whiteout stands for what it hides, unless that is there again."""
        with os.scandir(fd) as found:
            names = {os.fsencode(entry.name) for entry in found}
        for name in names:
            if name.startswith(BOOKKEEPING):
                continue
            if not name.startswith(PREFIX):
                yield Entry(name, os.stat(name, dir_fd=fd, follow_symlinks=False))
            elif name.removeprefix(PREFIX) not in names:
                yield Entry(name.removeprefix(PREFIX), None)

    def is_opaque(self, fd: int) -> bool:
        """Look for the file."""
        try:
            os.stat(OPAQUE, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def clear(self, fd: int, name: bytes) -> bool:
        """Unlink it and its whiteout."""
        hidden = _unlink(fd, PREFIX + name)
        return _unlink(fd, name) or hidden

    def hide(self, fd: int, name: bytes) -> None:
        """Make the file."""
        os.close(os.open(PREFIX + name, _HIDE, _AUFS_WHITEOUT_MODE, dir_fd=fd))

    def seal(self, fd: int) -> None:
        """Make the file."""
        os.close(os.open(OPAQUE, _HIDE, _AUFS_WHITEOUT_MODE, dir_fd=fd))

    def prepare(self, fd: int) -> None:
        """Make the file that whiteouts are links to, and the directories of hard links and of what is deleted in use.

        Else the first mount would change the time of the root directory.
        """
        os.close(os.open(_BASE, _HIDE, _AUFS_WHITEOUT_MODE, dir_fd=fd))
        for name in (_LINKS, _ORPHANS):
            os.mkdir(name, 0o700, dir_fd=fd)


def _is_whiteout(status: stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _unlink(fd: int, name: bytes) -> bool:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in {errno.EISDIR, errno.EPERM} and _is_directory(fd, name):
            return False
        raise
    return True


def _is_directory(fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
