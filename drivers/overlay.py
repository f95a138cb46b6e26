"""Layers as directories, stacked by the kernel's overlayfs.

Where layers are is told in `thinpool.drivers.branches`, how they are used in `thinpool.drivers.stacking`.

**Mounting.** Directories are named relative to a working directory that a short-lived thread has for itself, so that
their names are short. Up to 255 bytes of them are one string for fsconfig(2), and the mount is a detached one from the
beginning. More go in one by one (`lowerdir+`, since Linux 6.8). Where the kernel does not know that, up to 500 of them
(OVL_MAX_STACK, fs/overlayfs/params.h) fit the page of options that mount(2) takes: the mount is made in a mount
namespace of the thread's own, and taken out as a detached one by open_tree(2). Whenever the process dies, nothing is
left.

**What is set.** `redirect_dir=nofollow`: a renamed directory is copied, so that each upper tells all that is in it, and
nothing that an upper might say leads elsewhere. `metacopy=off`: data is where its name is. `index=off`: hard links are
broken by copy-up, which an upper shows. All directories are on one file system, so inode numbers are those of the files
without `xino`. A layer in use has the mark of its work directory, by which the kernel knows a directory that is being
written to: `is_writing` asks for that mark, and so knows of every mount that is alive, in any namespace or in none.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import attrs

from thinpool.drivers.branches import WORK
from thinpool.drivers.marks import OverlayMarks
from thinpool.drivers.stacking import Stack, inside
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.drivers.uniontype import UnionType
from thinpool.errors import MountError
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.mounts import mount_context
from thinpool.filesystem.threads import apart, own_mounts
from thinpool.layer import removal

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
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # it was free, and what is made next found no room
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
        with inside(directory, limited=stack.limited):
            context = sys.fsopen(_NAME)
            try:
                return mount_context(context, stack.source, options, sys.MOUNT_ATTR_NOATIME)
            finally:
                os.close(context)

    return apart(work, undo=os.close)


def _by_page(directory: Path, options: str, stack: Stack) -> int:
    """A detached mount with these options, by mount(2)."""
    if len(options) >= _PAGE:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    target = f"../{WORK}"

    def work() -> int:
        with own_mounts(), inside(directory, limited=stack.limited):
            sys.mount(stack.source, target, _NAME, sys.MS_NOATIME, options)
            return sys.open_tree(sys.AT_FDCWD, target, clone=True)

    return apart(work, undo=os.close)


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


TYPE = UnionType(_NAME, Overlay)
