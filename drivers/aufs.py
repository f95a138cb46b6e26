"""Layers as directories, stacked by aufs.

Where layers are is told in `thinpool.drivers.branches`, how they are used in `thinpool.drivers.stacking`. No packaged
kernel has aufs; all up to the mount call is tested everywhere, and the rest where /proc/filesystems has it.

**Branches** (aufs(5)) are named relative to a working directory that a short-lived thread has for itself: the upper is
`rw`, all others are `ro+wh`, read-only with whiteouts that count. One mount(2) takes a page of text and, in aufs, a
page of options as it keeps them, some 80. The other branches are appended, so many at a time, before anybody sees the
mount, which is made in a mount namespace of the thread's own. A kernel is built for 127, 511 or more branches, and does
not say for how many; 126 lower ones are what every one takes.

**What is set.** `plink`: hard links are held together (`thinpool.drivers.pseudolinks`), as without it a file that was
written under one name cannot be written under another. `udba=none`: nobody changes directories behind a mount, so
nothing is looked up twice. `dirperm1`: a directory's permissions are those of the topmost layer that has it. `acl`:
access control lists count. `xino` is the file in which aufs keeps inode numbers; it must be where something can be
written, and not on the layers: in /dev/shm where that is, which costs no disk. aufs unlinks it at once.

**What aufs cannot do**, as seen with aufs 6.1, while it mounts a layer to be written:

- names have 242 bytes at most, and whoever asks for the holes of a file is told of none;
- a time that is set is cut to whole seconds (what is written, and what is copied up, keeps its fractions), and an
  attribute that is removed stays, empty: both are done right for an import, which notes them (`thinpool.layer.notes`);
- the time of a directory in which something is copied up, and the mode of what gets an access control list, are shown
  as they were until the layer is mounted again; an empty attribute is lost when its file is copied up.
"""

import errno
import os
import re
import secrets
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import attrs

from thinpool.drivers import pseudolinks
from thinpool.drivers.base import Storage
from thinpool.drivers.branches import CONTENTS, WORK, name_of
from thinpool.drivers.marks import AufsMarks
from thinpool.drivers.stacking import Stack, StackDriver, inside
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.drivers.uniontype import UnionType
from thinpool.errors import MountError
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.threads import apart, own_mounts
from thinpool.layer import notes

_NAME = "aufs"
_MOST_LOWERS = 126
_PAGE = 4096
_MOST_AT_ONCE = 48
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a file there gets a random name, and is made with O_EXCL
_BRANCHES = "si_*/br[0-9]*"
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@attrs.frozen
class Aufs:
    """aufs, as layers are stacked by it.

    Attributes:
        options: those of the store; it has none of its own.
        name: the driver's and the file system's.
        most: lower directories in one mount.
        marks: the notation.
        books: where the kernel lists the branches of all mounts, be they in a mount table or not.
    """

    options: UnionOptions = attrs.field(factory=UnionOptions)
    name: str = _NAME
    most: int = _MOST_LOWERS
    marks: AufsMarks = attrs.field(factory=AufsMarks)
    books: Path = Path("/sys/fs/aufs")

    def mount(self, directory: Path, stack: Stack) -> int:
        """Stack directories as a detached mount."""
        target = f"../{WORK}"
        first, *more = mount_data(stack, f"{_xino_place()}/thinpool-{secrets.token_hex(8)}.xino")

        def work() -> int:
            with own_mounts(), inside(directory, limited=stack.limited):
                sys.mount(stack.source, target, _NAME, sys.MS_NOATIME, first)
                for data in more:
                    sys.mount(stack.source, target, _NAME, sys.MS_NOATIME | sys.MS_REMOUNT, data)
                return sys.open_tree(sys.AT_FDCWD, target, clone=True)

        try:
            return apart(work, undo=os.close)
        except OSError as error:
            raise MountError(
                f"cannot stack {len(stack.lowers)} layers by aufs in {directory}: {os.strerror(error.errno or 0)}",
                hint="dmesg tells the kernel's reason",
            ) from error

    def is_writing(self, directory: Path, name: str) -> bool:
        """Look whether a mount has the directory as its writable branch.

        The kernel shows the branches' paths as far as there are mounts above them, and those that ours were made in are
        gone: then the path begins at the file system's mount point.
        """
        upper = os.fsencode(os.path.realpath(directory / CONTENTS / name))
        return any(permission.startswith(b"rw") and upper.endswith(path) for path, permission in self._branches())

    def _branches(self) -> Sequence[tuple[bytes, bytes]]:
        found = []
        for file in self.books.glob(_BRANCHES):
            try:
                path, _, permission = file.read_bytes().strip().rpartition(b"=")
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENODEV}:  # the mount is gone
                    raise
                continue
            found.append((_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path), permission))
        return found


def mount_data(stack: Stack, xino: str, page: int = _PAGE) -> Sequence[str]:
    """The options of the first mount(2), and those of each remount that appends what one call does not take."""
    names = [f"{name}=ro+wh" for name in stack.lowers]
    if stack.upper is not None:
        names.insert(0, f"{stack.upper}=rw")
    rest = f",xino={xino},plink,udba=none,dirperm1,acl"
    first = _first_few(names, page - len("br:") - len(rest))
    data = ["br:" + ":".join(first) + rest]
    more = [f"append:{name}" for name in names[len(first) :]]
    while more:
        portion = _first_few(more, page)
        data.append(",".join(portion))
        del more[: len(portion)]
    return data


def _first_few(words: Sequence[str], room: int) -> Sequence[str]:
    """As many words as one call takes, in so many bytes with one more for each."""
    ends = accumulate(len(word) + 1 for word in words[:_MOST_AT_ONCE])
    return words[: max(sum(end <= room for end in ends), 1)]


def _xino_place() -> str:
    return str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else "../t"


class AufsDriver(StackDriver):
    """Layers stacked by aufs, with all that an import brings, and hard links that outlive the mount."""

    def join(self, handle: int, mount: int | None) -> None:
        """Join hard links that only the mount holds together."""
        with self._branches.opened(name_of(handle)) as upper:
            numbers = pseudolinks.pending(upper)
        if not numbers:
            return
        fd = self._uses.clone(handle, self._options.attributes) if mount is None else os.dup(mount)
        if fd is None:
            return
        try:
            pseudolinks.join(fd, numbers)
        finally:
            os.close(fd)

    def flush(self, active: Storage) -> None:
        """Join hard links first, where the layer is in use."""
        if self._is_writing(active.handle):
            self.join(active.handle, None)
        super().flush(active)

    def _make_work(self, handle: int, *, limited: bool) -> None:
        self._forget_links(handle)
        super()._make_work(handle, limited=limited)

    def _forget_work(self, handle: int) -> None:
        self._forget_links(handle)
        super()._forget_work(handle)

    def _forget_links(self, handle: int) -> None:
        with self._branches.opened(name_of(handle)) as upper:
            pseudolinks.forget(upper)

    def carry_out_notes(self, handle: int) -> None:
        """Do in the layer's directory what an import could not do through the mount."""
        with self._branches.opened(name_of(handle)) as fd:
            notes.settle(fd)
            sys.syncfs(fd)


TYPE = UnionType(_NAME, Aufs, AufsDriver)
