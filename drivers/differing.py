"""Where two layers may differ, told by their uppers: all that either of them has above what both have in common.

Every entry of such an upper may differ, and so may all below a directory that hides the layers below it, or that was
put in the place of something else. One thing does not show there. Of a file with several names, one may be replaced,
removed and made again, or written to, which breaks it off (copy-up keeps no hard links): then the others share their
inode with fewer names than before, which is a change, and no upper names them. So whatever has an entry there is looked
up in the common layer; the names of a file that has several are found by going through the one directory of changes
that they are all in, by the inode numbers that reading a directory gives. Nothing else costs more than what changed.
"""

import os
import stat
from collections.abc import Iterable, Iterator

import attrs

from thinpool.drivers.base import Unsure
from thinpool.drivers.branches import Branches, Opened
from thinpool.drivers.marks import Marks
from thinpool.drivers.uppers import Shadow
from thinpool.layer.scope import Place, Scope
from thinpool.layer.tree import Descent

_LONGEST_PATH = 4000  # PATH_MAX is 4096


@attrs.define(eq=False)
class _Shared:
    """A file of the common layer with several names.

    Attributes:
        links: how many.
        example: one of them, relative to the root.
        met: those of them that are in the scope.
    """

    links: int
    example: bytes
    met: set[bytes] = attrs.field(factory=set)


def scope(uppers: Iterable[Opened], common: int, branches: Branches, stack: Iterable[str], marks: Marks) -> Scope:
    """Where two trees may differ.

    Args:
        uppers: those of all layers that are above the common one, on either side; each is closed.
        common: the root directory of the common layer, mounted.
        branches: where the common layer's own uppers are.
        stack: their names.
        marks: the notation.

    Raises:
        Unsure: the names of a file cannot be found.
    """
    found = Scope(same_inodes=False)
    shared: dict[int, _Shared] = {}
    for upper in uppers:
        with upper as root, Descent(root) as descent, Shadow(common) as shadow:
            _Survey(descent, shadow, marks).run(found.root, shared)
    wanted = {inode: file for inode, file in shared.items() if len(file.met) < file.links}
    for name in stack:
        if not wanted:
            break
        with branches.opened(name) as root:
            at = {inode: _inode_at(root, file) for inode, file in wanted.items()}
            here = {inode: place for inode, place in at.items() if place is not None}
            if here:
                _find_names(root, {place: wanted[inode] for inode, place in here.items()}, found)
                for inode in here:
                    del wanted[inode]
    if wanted:
        raise Unsure("a file with several names is not where it was")
    return found


class _Survey:
    """A walk over one upper, side by side with the common layer as far as that has the same directories."""

    def __init__(self, upper: Descent, common: Shadow, marks: Marks) -> None:
        self._upper = upper
        self._common = common
        self._marks = marks
        self._path = b""

    def run(self, top: Place, shared: dict[int, _Shared]) -> None:
        stack = [self._entries(top, shared)]
        while stack:
            below = next(stack[-1], None)
            if below is not None:
                name, place = below
                self._enter(name)
                stack.append(self._entries(place, shared))
                continue
            stack.pop()
            if stack:
                self._leave()

    def _entries(self, place: Place, shared: dict[int, _Shared]) -> Iterator[tuple[bytes, Place]]:
        """Take in what is in the present directory; the directories in it, each with its place."""
        if self._marks.is_opaque(self._upper.fd):
            place.whole = True
        directories = []
        for entry in self._marks.entries(self._upper.fd):
            below = place.children.setdefault(os.fsdecode(entry.name), Place())
            self._meet(entry.name, shared)
            if entry.is_directory:
                directories.append((entry.name, below))
            else:
                below.whole = True  # a directory there now, or on the other side, is another one than before
        return iter(directories)

    def _meet(self, name: bytes, shared: dict[int, _Shared]) -> None:
        status = self._common.status(name)
        if status is not None and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            path = self._path + name
            shared.setdefault(status.st_ino, _Shared(status.st_nlink, path)).met.add(path)

    def _enter(self, name: bytes) -> None:
        self._upper.enter(name)
        self._common.enter(name)
        self._path += name + b"/"

    def _leave(self) -> None:
        self._upper.leave()
        self._common.leave()
        self._path = self._path[: self._path.rfind(b"/", 0, -1) + 1]


def _inode_at(root: int, file: _Shared) -> int | None:
    """The inode that a file has in an upper, if it is in that one; a mount may show another number."""
    if len(file.example) > _LONGEST_PATH:
        raise Unsure("a file with several names lies very deep")
    try:
        status = os.stat(file.example, dir_fd=root, follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino if status.st_nlink == file.links else None


def _find_names(root: int, files: dict[int, _Shared], found: Scope) -> None:
    """Take in all names of some files, which are in one directory tree."""
    left = {inode: file.links for inode, file in files.items()}
    path: list[str] = []
    with Descent(root) as descent:
        stack = [_listed(descent.fd)]
        while stack and left:
            name, inode, is_directory = next(stack[-1], ("", 0, False))
            if not name:
                stack.pop()
                if stack:
                    descent.leave()
                    path.pop()
            elif is_directory:
                descent.enter(name)
                path.append(name)
                stack.append(_listed(descent.fd))
            elif inode in left:
                found.add([*path, name], whole=True)
                left[inode] -= 1
                if not left[inode]:
                    del left[inode]
    if left:
        raise Unsure("not all names of a file with several names were found")


def _listed(fd: int) -> Iterator[tuple[str, int, bool]]:
    with os.scandir(fd) as entries:
        return iter([(entry.name, entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries])
