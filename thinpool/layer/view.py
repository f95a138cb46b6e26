"""A tree as a comparison sees it: directories to move about in, and what is in them.

Whatever can show a tree this way can be compared: directories of a mounted file system, and file systems that are read
on their devices.
"""

import os
from collections.abc import Hashable, Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self

from thinpool.layer import xattrs
from thinpool.layer.tree import Descent

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Status(Protocol):
    """What a comparison uses of `os.stat_result`; the fields are stat(2)'s."""

    @property
    def st_mode(self) -> int:
        """Type and permissions."""

    @property
    def st_ino(self) -> int:
        """The inode's number."""

    @property
    def st_dev(self) -> int:
        """The number of the device that the inode's number belongs to."""

    @property
    def st_nlink(self) -> int:
        """How many names the inode has."""

    @property
    def st_uid(self) -> int:
        """Owner."""

    @property
    def st_gid(self) -> int:
        """Group."""

    @property
    def st_size(self) -> int:
        """Bytes."""

    @property
    def st_rdev(self) -> int:
        """Device number, of a device."""

    @property
    def st_mtime_ns(self) -> int:
        """Time of modification, nanoseconds since 1970."""

    @property
    def st_ctime_ns(self) -> int:
        """Time of the last change of status, nanoseconds since 1970."""


class Content(Protocol):
    """A regular file's content, to be read from its beginning towards its end."""

    def next_data(self, position: int) -> int:
        """The first position from here on that may hold anything but zeros; the file's size where none does."""

    def stored_at(self, position: int) -> tuple[Hashable, int] | None:
        """Where the byte at a position is stored, and for how many bytes the storage goes on in the same way.

        Bytes of two files at equal places are the same byte of storage, so equal. None where that is not known.
        """

    def read(self, position: int, length: int) -> bytes:
        """So many bytes from a position on, fewer at the file's end."""

    def close(self) -> None:
        """Let go of what the content holds."""


class View(Protocol):
    """A tree, and the directory in it that is looked at, which `enter` and `leave` change.

    Names are those of entries in that directory, as `os.fsdecode` makes them of their bytes. What is not there is a
    FileNotFoundError; any other trouble is an OSError, or whatever else the view is documented to raise.
    """

    def entries(self, names: Iterable[str] | None = None) -> Mapping[str, int]:
        """The entries, or those of the given names that there are: the inode number of a directory, 0 for all else."""

    def status(self, name: str) -> Status:
        """What stat(2) tells of an entry; of the directory itself by the name `.`."""

    def attributes(self, name: str) -> Mapping[str, bytes]:
        """The extended attributes of an entry that belong to a layer's content; `.` as in `status`."""

    def target(self, name: str) -> str:
        """What a symbolic link names."""

    def content(self, name: str, size: int) -> Content:
        """A regular file's content, to be closed; `size` is what `status` told."""

    def enter(self, name: str) -> None:
        """Go down into a directory."""

    def leave(self) -> None:
        """Go up again."""


class MountedView:
    """A directory of a mounted file system, read by file descriptors: nothing follows a symbolic link."""

    def __init__(self, root: int) -> None:
        """Start at the root, which may be an `O_PATH` descriptor and stays the caller's.

        Raises:
            OSError: it cannot be opened.
        """
        self._descent = Descent(root)
        self._fd = self._descent.fd

    def entries(self, names: Iterable[str] | None = None) -> Mapping[str, int]:
        """By readdir(3) and the types it tells; names that are given, by a stat(2) each."""
        found: dict[str, int] = {}
        if names is None:
            with os.scandir(self._fd) as entries:
                for entry in entries:
                    found[entry.name] = entry.inode() if entry.is_dir(follow_symlinks=False) else 0
            return found
        for name in names:
            try:
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            found[name] = status.st_ino if status.st_mode & 0o170000 == 0o040000 else 0
        return found

    def status(self, name: str) -> os.stat_result:
        """Never that of a link's target."""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def attributes(self, name: str) -> Mapping[str, bytes]:
        """Never those of a link's target."""
        return xattrs.read(xattrs.path_of(self._fd, name))

    def target(self, name: str) -> str:
        """By readlink(2)."""
        return os.readlink(name, dir_fd=self._fd)

    def content(self, name: str, size: int) -> "MountedContent":
        """Open the file."""
        return MountedContent(os.open(name, _READ, dir_fd=self._fd), size)

    def enter(self, name: str) -> None:
        """Open the directory."""
        self._descent.enter(name)
        self._fd = self._descent.fd

    def leave(self) -> None:
        """Go up.

        Raises:
            TreeError: the directory was moved meanwhile.
        """
        self._descent.leave()
        self._fd = self._descent.fd

    def close(self) -> None:
        """Close what is open."""
        self._descent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MountedContent:
    """An open file."""

    __slots__ = ("_fd", "_size")

    def __init__(self, fd: int, size: int) -> None:
        """Take over the descriptor of a file of so many bytes."""
        self._fd = fd
        self._size = size

    def next_data(self, position: int) -> int:
        """By SEEK_DATA."""
        try:
            return min(os.lseek(self._fd, position, os.SEEK_DATA), self._size)
        except OSError:  # ENXIO: only a hole is left; EINVAL: the file system knows no holes
            return self._end_of_hole(position)

    def _end_of_hole(self, position: int) -> int:
        try:
            return self._size if os.lseek(self._fd, position, os.SEEK_HOLE) == position else position
        except OSError:
            return position

    def stored_at(self, position: int) -> tuple[Hashable, int] | None:  # noqa: ARG002 - as the protocol has it
        """Not known."""
        return None

    def read(self, position: int, length: int) -> bytes:
        """By pread(2)."""
        return os.pread(self._fd, length, position)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
