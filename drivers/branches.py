"""Layers as directories of changes: where they are, what lies below which, and how they are made and removed.

Below the driver's directory:

| path | is |
|---|---|
| `d/NAME` | the changes of a layer, its *upper*; NAME is its handle in base 36: a mount names up to 500, in a page |
| `d/NAME+` | the changes of that layer and of many below it in one upper, for the layers above it |
| `d/0` | an empty directory, for a mount that would have nothing below |
| `p/NAME` | a symbolic link to the parent's NAME, or to `0` |
| `p/NAME+` | a symbolic link to the NAME of the layer that follows below `d/NAME+`, or to `0` |
| `w/NAME` | what a mount for writing needs; there from `attach` to `release` |
| `t/NAME` | half-made uppers and other things of the moment |

A symbolic link is there whole or not at all, and costs no block. One that is there says that the directory of its name
is whole, except while a layer is made, when no record names it, and while it is deleted. Everything of a handle can be
deleted at any point of its making or deletion, again and again.

**Depth has no limit.** A mount takes so many lower directories and no more. Where a layer would have more below it, the
topmost nine tenths of those are copied into one upper first, whiteouts and all (`thinpool.drivers.uppers`): it belongs
to the parent, is made once for all its children, and costs space and time for what those layers changed, but not for
the images at the bottom of the stack. `p` still tells every layer's parent.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs

from thinpool.crashpoints import point
from thinpool.drivers import uppers
from thinpool.drivers.marks import Marks
from thinpool.errors import LayerInUse, MountError
from thinpool.filesystem.directories import names
from thinpool.filesystem.syscalls import syncfs
from thinpool.layer import removal
from thinpool.layer.tree import DIRECTORY, Descent

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TRIES = 4
_NOTHING = "0"
CONTENTS, WORK, _PARENTS, _MOMENT = "d", "w", "p", "t"


def name_of(handle: int) -> str:
    """A handle in base 36."""
    text = ""
    while handle:
        handle, digit = divmod(handle, 36)
        text = _DIGITS[digit] + text
    return text or _NOTHING


@attrs.frozen
class Space:
    """What uppers occupy.

    Attributes:
        size: bytes, in whole blocks.
        inodes: how many there are.
    """

    size: int
    inodes: int


class Branches:
    """The directories of one store.

    Args:
        directory: the driver's directory, in which `make` was called.
        marks: the notation of the uppers.
        most: how many lower directories a mount may have.
        look: gives a detached mount of a stack of names, for reading.
    """

    def __init__(self, directory: Path, marks: Marks, most: int, look: Callable[[Sequence[str]], int]) -> None:
        self.directory = directory
        self._look = look
        self._marks = marks
        self._most = most
        with ExitStack() as undo:
            fds = []
            for part in (CONTENTS, WORK, _PARENTS, _MOMENT):
                fds.append(os.open(directory / part, DIRECTORY))
                undo.callback(os.close, fds[-1])
            self._opened = undo.pop_all()
        self.contents, self.work, self._parents, self._moment = fds

    def close(self) -> None:
        """Close what is open."""
        self._opened.close()

    @staticmethod
    def make(directory: Path) -> None:
        """Make what is missing of the directories of a new store, durably."""
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for part in (CONTENTS, WORK, _PARENTS, _MOMENT):
            os.makedirs(directory / part, mode=0o700, exist_ok=True)
        nothing = directory / CONTENTS / _NOTHING
        with suppress(FileExistsError):
            nothing.mkdir()
        nothing.chmod(0o755)
        for path in (directory / CONTENTS, directory, directory.parent):
            fd = os.open(path, DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    # -- what lies below what

    def parent(self, name: str) -> str | None:
        """The name of the parent of a layer; None where it has none.

        Raises:
            MountError: the storage is not there.
        """
        return self._link(name)

    def descent(self, handle: int) -> Iterator[str]:
        """The names of a layer and its ancestors, upwards."""
        name: str | None = name_of(handle)
        while name is not None:
            yield name
            name = self._link(name)

    def stack(self, handle: int) -> list[str]:
        """The directories in `d` that show a layer when they are stacked, the topmost first."""
        name = name_of(handle)
        return [name, *(directory for directory, _ in self._below(self._link(name)))]

    def below(self, handle: int) -> list[str]:
        """The same without its own."""
        return self.stack(handle)[1:]

    def _below(self, name: str | None) -> Iterator[tuple[str, str | None]]:
        """What a child of a layer is stacked on: directories, each with the name of the layer that comes after it."""
        while name is not None:
            directory = f"{name}+"
            try:
                following = os.readlink(directory, dir_fd=self._parents)
            except FileNotFoundError:
                directory, following = name, os.readlink(name, dir_fd=self._parents)
            name = None if following == _NOTHING else following
            yield directory, name

    def _link(self, name: str) -> str | None:
        try:
            found = os.readlink(name, dir_fd=self._parents)
        except FileNotFoundError as error:
            where = self.directory / _PARENTS / name
            raise MountError(f"the storage of the layer is damaged: {where} is missing") from error
        return None if found == _NOTHING else found

    # -- making and removing

    def create(self, handle: int, parent: int | None) -> None:
        """Make an empty upper, whose root directory is like the parent's; durable when it returns."""
        self.delete(handle)
        point("branch-make")
        above = None if parent is None else name_of(parent)
        if above is not None:
            self._press(above)
        self._begin(handle, above)
        with self.opened(name_of(handle)) as fd:
            self._marks.prepare(fd)
            if above is None:
                os.fchmod(fd, 0o755)
            else:
                with self.opened(above) as root:
                    uppers.copy_attributes(root, fd)
        self._keep()

    def snapshot(self, handle: int, active: int) -> None:
        """Copy an upper that others may be writing to; durable when it returns.

        Raises:
            LayerInUse: it changed while it was copied, each time it was tried.
        """
        self.delete(handle)
        name, origin = name_of(handle), name_of(active)
        parent = self._link(origin)
        for _ in range(_TRIES):
            self._begin(handle, parent)
            syncfs(self.contents)  # what is written through a memory mapping then leaves a stamp again
            since = uppers.tick()
            try:
                with self.opened(name) as target:
                    self._copy([origin], target, name)
                os.rmdir(name, dir_fd=self._moment)
                point("branch-copied")
                with self.opened(origin) as source:
                    uppers.check_still(source, since)
            except (uppers.Moved, FileNotFoundError, NotADirectoryError):
                self.delete(handle)
                continue
            syncfs(self.contents)
            self._keep()
            return
        raise LayerInUse(
            "the layer was written to all the time while it was copied",
            hint="stop what writes to it, or unmount it, for a moment",
        )

    def delete(self, handle: int) -> bool:
        """Remove all that there is of a handle; False where there is nothing."""
        name = name_of(handle)
        there = False
        for fd, entry in (
            (self.work, name),
            (self._moment, name),
            (self.contents, f"{name}+"),
            (self.contents, name),
        ):
            there = _remove(fd, entry) or there
            point("branch-part-removed")
        if there:
            os.fsync(self.contents)
        point("branch-removed")
        for link in (f"{name}+", name):
            with suppress(FileNotFoundError):
                os.unlink(link, dir_fd=self._parents)
                point("branch-unlinked")
                there = True
        return there

    def stored(self) -> Iterator[int]:
        """The handles that have an upper."""
        for name in names(self.contents):
            if name != _NOTHING and set(name) <= set(_DIGITS):
                yield int(name, len(_DIGITS))

    def half_made(self) -> list[str]:
        """What a process left half-made that died, or is making."""
        return sorted(names(self._moment))

    def clear_moment(self) -> None:
        """Remove what a process left half-made that died; nobody else may be making anything."""
        for name in names(self._moment):
            _remove(self._moment, name)
            point("moment-cleared")

    def _begin(self, handle: int, parent: str | None) -> None:
        name = name_of(handle)
        os.symlink(parent or _NOTHING, name, dir_fd=self._parents)
        point("branch-linked")
        os.mkdir(name, 0o700, dir_fd=self.contents)
        point("branch-made")

    def _keep(self) -> None:
        point("branch-keep")
        os.fsync(self._parents)
        os.fsync(self.contents)
        point("branch-kept")

    def _press(self, name: str) -> None:
        """See to it that a child of a layer has no more below it than a mount can take."""
        below = list(self._below(name))
        if len(below) < self._most:  # one less, as a read-only mount has the child's own among its lower ones
            return
        together = below[: self._most * 9 // 10]
        directory, after = f"{name}+", together[-1][1]
        _remove(self._moment, name)
        _remove(self.contents, directory)
        os.mkdir(name, 0o700, dir_fd=self._moment)
        os.mkdir(f"{name}/u", 0o700, dir_fd=self._moment)
        with Opened(f"{name}/u", self._moment) as target:
            self._copy([source for source, _ in reversed(together)], target, name)
            self._prune(target, [lower for lower, _ in below[len(together) :]])
        syncfs(self.contents)
        point("press-synced")
        os.rename(f"{name}/u", directory, src_dir_fd=self._moment, dst_dir_fd=self.contents)
        point("press-placed")
        os.symlink(after or _NOTHING, directory, dir_fd=self._parents)
        point("press-linked")
        _remove(self._moment, name)

    def _prune(self, upper: int, below: Sequence[str]) -> None:
        if not below:
            uppers.prune(upper, None, self._marks)
            return
        fd = self._look(below)
        try:
            uppers.prune(upper, fd, self._marks)
        finally:
            os.close(fd)

    def _copy(self, sources: Sequence[str], target: int, name: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._moment)
        os.mkdir(f"{name}/l", 0o700, dir_fd=self._moment)
        with Opened(f"{name}/l", self._moment) as links:
            for source in sources:
                with self.opened(source) as fd:
                    uppers.copy(fd, target, links, self._marks)
        os.rmdir(f"{name}/l", dir_fd=self._moment)

    # -- looking

    def opened(self, name: str) -> "Opened":
        """The root directory of an upper.

        Raises:
            MountError: it is not there.
        """
        return Opened(name, self.contents, self.directory / CONTENTS / name)

    def space(self, handle: int) -> Space:
        """What the uppers of a layer occupy, found by looking at all that is in them."""
        name = name_of(handle)
        found = self._space(name)
        try:
            more = self._space(f"{name}+")
        except MountError:
            return found
        return Space(found.size + more.size, found.inodes + more.inodes)

    def _space(self, name: str) -> Space:
        size = inodes = 0
        seen: set[int] = set()
        with self.opened(name) as fd, Descent(fd) as descent:
            for status in uppers.statuses(descent):
                if status.st_nlink > 1:
                    if status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                size += status.st_blocks * 512
                inodes += 1
        return Space(size, inodes)


class Opened:
    """An open directory, for a `with` block."""

    def __init__(self, name: str, dir_fd: int, path: Path | None = None) -> None:
        try:
            self._fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
        except OSError as error:
            if path is None or not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            raise MountError(f"the storage of the layer is damaged: {path} is missing") from error

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _remove(dir_fd: int, name: str) -> bool:
    try:
        removal.remove(dir_fd, os.fsencode(name))
    except FileNotFoundError:
        return False
    return True
