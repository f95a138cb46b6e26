"""How the drivers of union file systems are found and opened."""

import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import attrs

from thinpool.crashpoints import point
from thinpool.drivers.base import Context
from thinpool.drivers.branches import CONTENTS, WORK, Branches
from thinpool.drivers.stacking import Stack, StackDriver, Union
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.errors import MountError
from thinpool.filesystem.mounts import mount_table
from thinpool.layer import removal
from thinpool.nodes import load_module


@attrs.frozen
class UnionType:
    """One of them.

    Attributes:
        name: the driver's name, and the file system's.
        union: makes one with some options.
        driver: makes the driver of a store.
    """

    name: str
    union: Callable[[UnionOptions], Union]
    driver: Callable[[Union, Context, UnionOptions], StackDriver] = StackDriver

    def probe(self, root: Path) -> str | None:
        """Stack two directories on the root's file system, and see whether a whiteout hides what it should.

        Where the root holds layers already, that was seen when it was made. A process that dies meanwhile leaves a
        directory `.thinpool-probe-...`.
        """
        if os.geteuid() != 0:
            return "needs root, to mount"
        if not _is_known(self.name):
            reason = load_module(self.name)
            if not _is_known(self.name):
                return f"the kernel has no {self.name} file system ({reason or 'its module does not bring it'})"
        if (root / self.name / CONTENTS).is_dir():
            return None
        place = root
        while not place.is_dir():
            place = place.parent
        try:
            with tempfile.TemporaryDirectory(prefix=".thinpool-probe-", dir=place) as folder:
                return _try_out(self.union(UnionOptions()), Path(folder), place)
        except OSError as error:
            return f"{place} cannot be written: {error.strerror}"

    def check(self, given: Mapping[str, str]) -> None:
        """Read the options."""
        UnionOptions.parse(given, self.name)

    def create(self, context: Context) -> StackDriver:
        """Make the directories."""
        options = UnionOptions.parse(context.given, self.name)
        with ExitStack() as undo:
            undo.callback(_discard, context.directory)
            Branches.make(context.directory)
            point("branches-made")
            driver = self._opened(context, options)
            undo.pop_all()
        return driver

    def open(self, context: Context) -> StackDriver:
        """Take the directories up."""
        recorded = UnionOptions.parse(context.recorded, self.name)
        return self._opened(context, recorded.replaced_by(context.given, self.name))

    def _opened(self, context: Context, options: UnionOptions) -> StackDriver:
        driver = self.driver(self.union(options), context, options)
        try:
            driver.require_size()
        except BaseException:
            driver.close()
            raise
        return driver


def _discard(directory: Path) -> None:
    fd = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            removal.remove(fd, os.fsencode(directory.name))
    finally:
        os.close(fd)


def _is_known(name: str) -> bool:
    return f"\t{name}\n" in Path("/proc/filesystems").read_text(encoding="ascii")


def _try_out(union: Union, folder: Path, place: Path) -> str | None:
    """Why layers cannot be stacked in an empty folder; None where they can."""
    where = f"the file system at {place} ({_type_of(place)})"
    Branches.make(folder)
    lower, upper = folder / CONTENTS / "1", folder / CONTENTS / "2"
    work = folder / WORK / "2" / "w"
    for directory in (lower, upper, work):
        directory.mkdir(parents=True)
    (lower / "hidden").touch()
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        union.marks.hide(fd, b"hidden")
        os.setxattr(fd, "trusted.overlay.thinpool", b"y")
        os.removexattr(fd, "trusted.overlay.thinpool")
    except OSError as error:
        return f"{where} takes no whiteouts or trusted attributes: {error.strerror}"
    finally:
        os.close(fd)
    try:
        mounted = union.mount(folder, Stack("thinpool-probe", ["1"], "2"))
    except MountError as error:
        return f"{where} is refused by {union.name} as a place for layers: {error.message.rpartition(': ')[2]}"
    try:
        return _look_in(mounted, upper, where)
    finally:
        os.close(mounted)


def _look_in(mounted: int, upper: Path, where: str) -> str | None:
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    try:
        if os.listdir(root):
            return f"{where} does not tell types in directories (d_type), without which whiteouts show (xfs: ftype=1)"
        os.close(os.open("made", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=root))
    except OSError as error:
        return f"{where} cannot be written through the stack: {error.strerror}"
    finally:
        os.close(root)
    return None if stat.S_ISREG(os.lstat(upper / "made").st_mode) else f"{where} does not keep what is written"


def _type_of(place: Path) -> str:
    """The type of the file system that a directory is on."""
    real = Path(os.path.realpath(place))
    found = [entry for entry in mount_table() if real.is_relative_to(entry.target)]
    return max(found, key=lambda entry: (len(entry.target.parts), entry.mount_id)).fs_type if found else "unknown"
