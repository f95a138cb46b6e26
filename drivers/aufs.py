"""Layers as directories, stacked by aufs.

Where layers are is told in `thinpool.drivers.branches`, how they are used in `thinpool.drivers.stacking`. No packaged
kernel has aufs; all up to the mount call is tested everywhere, and the rest where /proc/filesystems has it.

**Branches** (aufs(5)) are named relative to a working directory that a short-lived thread has for itself: the upper is
`rw`, all others are `ro+wh`, read-only with whiteouts that count. mount(2) takes one page of options; what does not fit
is appended, one branch at a time, before anybody sees the mount, which is made in a mount namespace of the thread's
own. A kernel is built for 127, 511 or more branches, and does not say for how many; 126 lower ones are what every one
takes.

**What is set.** `noplink`: aufs would otherwise keep hard links that copy-up breaks for as long as it is mounted, in
memory and in bookkeeping files, and they would fall apart with the next mount; so they are broken at once, as overlayfs
does it, and the upper tells all. `udba=none`: nobody changes directories behind a mount, so nothing is looked up twice.
`dirperm1`: a directory's permissions are those of the topmost layer that has it. `xino` is the file in which aufs keeps
inode numbers; it must be where something can be written, and not on the layers: in /dev/shm where that is, which costs
no disk. aufs unlinks it at once.
"""

import errno
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import attrs

from thinpool.drivers.branches import CONTENTS, WORK
from thinpool.drivers.marks import AufsMarks
from thinpool.drivers.stacking import Stack, inside
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.drivers.uniontype import UnionType
from thinpool.errors import MountError
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.threads import apart, own_mounts

_NAME = "aufs"
_MOST_LOWERS = 126
_PAGE = 4096
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
        """Look whether a mount has the directory as its writable branch."""
        upper = os.fsencode(os.path.realpath(directory / CONTENTS / name))
        return any(path == upper and permission.startswith(b"rw") for path, permission in self._branches())

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
    """The options of the first mount(2), and those of each remount that appends what does not fit a page."""
    names = [f"{name}=ro+wh" for name in stack.lowers]
    if stack.upper is not None:
        names.insert(0, f"{stack.upper}=rw")
    rest = f",xino={xino},noplink,udba=none,dirperm1"
    first = f"br:{names[0]}"
    taken = 1
    for name in names[1:]:
        if len(first) + len(name) + len(rest) + 2 > page:
            break
        first += f":{name}"
        taken += 1
    return [first + rest, *(f"append:{name}" for name in names[taken:])]


def _xino_place() -> str:
    return str(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else "../t"


TYPE = UnionType(_NAME, Aufs)
