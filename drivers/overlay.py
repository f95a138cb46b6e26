"""Layers as directories, stacked by the kernel's overlayfs.

Where layers are is told in `thinpool.drivers.branches`, how they are used in `thinpool.drivers.stacking`.

**Mounting.** Directories are named relative to a working directory that a short-lived thread has for itself, so that
their names are short. Up to 255 bytes of them are one string for fsconfig(2), and the mount is a detached one from the
beginning. More go in one by one (`lowerdir+`, since Linux 6.8). Where the kernel does not know that, up to 500 of them
(OVL_MAX_STACK, fs/overlayfs/params.h) fit the page of options that mount(2) takes: the mount is made in a mount
namespace of the thread's own, and taken out as a detached one by open_tree(2). Whenever the process dies, nothing is
left. The way by `lowerdir+` was never seen working, as the kernels that thinpool was tested with are older.

**What is set.** `redirect_dir=nofollow`: a renamed directory is copied, so that each upper tells all that is in it, and
nothing that an upper might say leads elsewhere. `metacopy=off`: data is where its name is. `index=off`: hard links are
broken by copy-up, which an upper shows. All directories are on one file system, so inode numbers are those of the files
without `xino`. A layer in use has the mark of its work directory, by which the kernel knows a directory that is being
written to: `is_writing` asks for that mark, and so knows of every mount that is alive, in any namespace or in none.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from thinpool.drivers.base import Context
from thinpool.drivers.branches import CONTENTS, WORK, Branches
from thinpool.drivers.marks import OverlayMarks
from thinpool.drivers.stacking import Stack, StackDriver
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.errors import LayerInUse, MountError
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.mounts import mount_table
from thinpool.filesystem.threads import apart, own_mounts
from thinpool.layer import removal
from thinpool.nodes import load_module

_NAME = "overlay"
_MOST_LOWERS = 500
_PAGE = 4096
_STRING_MAX = 255  # fsconfig(2), strndup_user in fs/fsopen.c
_SET = ("redirect_dir=nofollow", "metacopy=off", "index=off")
_NOTHING = "0"
_NO_OPTION = "thinpool-asks-for-no-such-option"


@attrs.frozen
class Overlay:
    """overlayfs, as layers are stacked by it.

    Attributes:
        options: those of the store.
        name: the driver's and the file system's.
        most: lower directories in one mount.
    """

    options: UnionOptions = attrs.field(factory=UnionOptions)
    name: str = _NAME
    most: int = _MOST_LOWERS

    @property
    def marks(self) -> OverlayMarks:
        """The notation, in the attributes that the options choose."""
        return OverlayMarks("user" if self.options.userxattr else "trusted")

    def mount(self, directory: Path, stack: Stack) -> int:
        """Stack directories as a detached mount."""
        try:
            return self._mount(directory, stack)
        except OSError as error:
            raise MountError(
                f"cannot stack {len(stack.lowers)} layers by overlay in {directory}: {os.strerror(error.errno or 0)}",
                hint="dmesg tells the kernel's reason",
            ) from error

    def _mount(self, directory: Path, stack: Stack) -> int:
        lowers = self.lowers(stack)
        joined = ":".join(lowers)
        rest = self.mount_options(stack)
        if len(joined) <= _STRING_MAX:
            return _in_context(directory, [f"lowerdir={joined}", *rest], stack)
        if _takes_them_singly():
            try:
                return _in_context(directory, [*(f"lowerdir+={name}" for name in lowers), *rest], stack)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return _by_page(directory, ",".join([f"lowerdir={joined}", *rest]), stack)

    def mount_options(self, stack: Stack) -> list[str]:
        """All options but the lower directories."""
        words = list(_SET)
        if stack.upper is not None:
            words += [f"upperdir={stack.upper}", f"workdir=../{WORK}/{stack.upper}/w"]
            words += self.options.super_options
        else:
            words += [word for word in self.options.super_options if word != "volatile"]
        return words

    def lowers(self, stack: Stack) -> list[str]:
        """The lower directories, one or two of them at least, which overlayfs insists on."""
        least = 2 if stack.upper is None else 1
        return [*stack.lowers, *[_NOTHING] * (least - len(stack.lowers))]

    def is_writing(self, directory: Path, name: str) -> bool:
        """Stack an empty directory with the layer's work directory: the kernel refuses that where a mount has it.

        `index=on` makes it refuse; `volatile` spares it the writing out at the end.
        """
        work = f"../{WORK}/{name}"
        options = [f"lowerdir={_NOTHING}", f"upperdir={work}/u", f"workdir={work}/w", "index=on", "volatile"]
        try:
            os.close(_in_context(directory, options, Stack("none", [])))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:  # half made
                return False
            if error.errno == errno.EINVAL:  # free, and left by a volatile mount
                _clean(directory, name)
                return False
            raise MountError(f"cannot find out whether a layer is in use: {error.strerror}") from error
        _clean(directory, name)
        return False


def _in_context(directory: Path, options: Sequence[str], stack: Stack) -> int:
    """A detached mount with these options, by fsconfig(2)."""

    def work() -> int:
        sys.unshare(sys.CLONE_FS)
        with _inside(directory, limited=stack.limited):
            context = sys.fsopen(_NAME)
            try:
                sys.fsconfig(context, sys.FSCONFIG_SET_STRING, "source", stack.source)
                for option in options:
                    key, equals, value = option.partition("=")
                    if equals:
                        sys.fsconfig(context, sys.FSCONFIG_SET_STRING, key, value)
                    else:
                        sys.fsconfig(context, sys.FSCONFIG_SET_FLAG, key)
                sys.fsconfig(context, sys.FSCONFIG_CMD_CREATE)
                return sys.fsmount(context, sys.MOUNT_ATTR_NOATIME)
            finally:
                os.close(context)

    return apart(work, undo=os.close)


def _by_page(directory: Path, options: str, stack: Stack) -> int:
    """A detached mount with these options, by mount(2)."""
    if len(options) >= _PAGE:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    target = f"../{WORK}"

    def work() -> int:
        with own_mounts(), _inside(directory, limited=stack.limited):
            sys.mount(stack.source, target, _NAME, sys.MS_NOATIME, options)
            return sys.open_tree(sys.AT_FDCWD, target, clone=True)

    return apart(work, undo=os.close)


@contextmanager
def _inside(directory: Path, *, limited: bool) -> Iterator[None]:
    """Work where the layers' contents are, in a thread with a working directory of its own.

    Args:
        directory: the driver's.
        limited: do without the capability that would let this thread, and so its mount, go beyond a quota (ext4).
    """
    try:
        os.chdir(directory / CONTENTS)
        if limited:
            sys.drop_resource_capability()
        yield
    finally:
        os.chdir("/")


def _takes_them_singly() -> bool:
    """Whether the kernel looks at each option when it is given, as it has done since before it knew `lowerdir+`."""
    context = sys.fsopen(_NAME)
    try:
        sys.fsconfig(context, sys.FSCONFIG_SET_FLAG, _NO_OPTION)
    except OSError:
        return True
    finally:
        os.close(context)
    return False


def _clean(directory: Path, name: str) -> None:
    """Remove what the question left in the work directory, as `volatile` leaves a note that it must not be used."""
    fd = os.open(directory / WORK / name / "w", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        removal.empty(fd)
    finally:
        os.close(fd)


class OverlayType:
    """How the driver is found and opened."""

    name = _NAME

    def probe(self, root: Path) -> str | None:
        """Stack two directories on the root's file system, and see whether a whiteout hides what it should."""
        if os.geteuid() != 0:
            return "needs root, to mount"
        if not _is_known():
            reason = load_module(_NAME)
            if not _is_known():
                return f"the kernel has no overlay file system ({reason or 'its module did not bring it'})"
        place = root
        while not place.is_dir():
            place = place.parent
        try:
            with tempfile.TemporaryDirectory(prefix=".thinpool-probe-", dir=place) as folder:
                return _try_out(Path(folder), place)
        except OSError as error:
            return f"{place} cannot be written: {error.strerror}"

    def check(self, given: Mapping[str, str]) -> None:
        """Read the options."""
        UnionOptions.parse(given, _NAME)

    def create(self, context: Context) -> StackDriver:
        """Make the directories."""
        options = UnionOptions.parse(context.given, _NAME)
        with ExitStack() as undo:
            undo.callback(_discard, context.directory)
            Branches.make(context.directory)
            driver = StackDriver(Overlay(options), context, options)
            undo.callback(driver.close)
            driver.require_size()
            undo.pop_all()
        return driver

    def open(self, context: Context) -> StackDriver:
        """Take the directories up."""
        options = UnionOptions.parse(context.recorded, _NAME).replaced_by(context.given, _NAME)
        driver = StackDriver(Overlay(options), context, options)
        try:
            driver.require_size()
        except BaseException:
            driver.close()
            raise
        return driver


TYPE = OverlayType()


def _discard(directory: Path) -> None:
    fd = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            removal.remove(fd, os.fsencode(directory.name))
    finally:
        os.close(fd)


def _is_known() -> bool:
    return f"\t{_NAME}\n" in Path("/proc/filesystems").read_text(encoding="ascii")


def _try_out(folder: Path, place: Path) -> str | None:
    """Why layers cannot be stacked in an empty folder; None where they can."""
    where = f"the file system at {place} ({_type_of(place)})"
    Branches.make(folder)
    lower, upper = folder / CONTENTS / "1", folder / CONTENTS / "2"
    work = folder / WORK / "2" / "w"
    for directory in (lower, upper, work):
        directory.mkdir(parents=True)
    (lower / "hidden").touch()
    marks = OverlayMarks()
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        marks.hide(fd, b"hidden")
        marks.seal(fd)
    except OSError as error:
        return f"{where} takes no whiteouts or trusted attributes: {error.strerror}"
    finally:
        os.close(fd)
    os.removexattr(upper, "trusted.overlay.opaque")
    try:
        mounted = Overlay().mount(folder, Stack("thinpool-probe", ["1"], "2"))
    except (MountError, LayerInUse) as error:
        return f"{where} is refused by overlay as a place for layers: {error.message.rpartition(': ')[2]}"
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
        return f"{where} cannot be written through overlay: {error.strerror}"
    finally:
        os.close(root)
    return None if stat.S_ISREG(os.lstat(upper / "made").st_mode) else f"{where} does not keep what is written"


def _type_of(place: Path) -> str:
    """The type of the file system that a directory is on."""
    real = Path(os.path.realpath(place))
    found = [entry for entry in mount_table() if real.is_relative_to(entry.target)]
    return max(found, key=lambda entry: (len(entry.target.parts), entry.mount_id)).fs_type if found else "unknown"
