"""Where a store's directories are mounted, in every mount namespace, told by the source that the mounter named."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import attrs

from thinpool.errors import LayerInUse
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.holders import Holder, of_mounts
from thinpool.filesystem.mounts import MountEntry, parse_mountinfo
from thinpool.filesystem.threads import apart

_SELF = "self"
_FLAGS = sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC


@attrs.frozen
class Uses:
    """The mounts of one store.

    Attributes:
        prefix: what their sources begin with.
        fs_type: their file system's type.
    """

    prefix: str
    fs_type: str

    def source(self, handle: int) -> str:
        """The source by which a layer's mounts are known."""
        return f"{self.prefix}:{handle}"

    def handle_of(self, entry: MountEntry) -> int | None:
        """The layer that a line of a mount table shows."""
        start, colon, number = entry.source.partition(":")
        if entry.fs_type != self.fs_type or start != self.prefix or not colon or not number.isdecimal():
            return None
        return int(number)

    def is_mounted(self, handle: int) -> bool:
        """Whether a layer is mounted in any namespace that a process lives in."""
        return self._any(f" - {self.fs_type} {self.source(handle)} ")

    def is_mounted_here(self, handle: int) -> bool:
        """Whether it is in this thread's namespace."""
        return f" - {self.fs_type} {self.source(handle)} ".encode() in _own_table()

    def is_anything_mounted(self) -> bool:
        """Whether any layer is."""
        return self._any(f" - {self.fs_type} {self.prefix}:")

    def users(self, handle: int | None = None) -> Iterator[Holder]:
        """The mounts of one layer, or of all, and who works in them; looked for, so for an error only."""
        word = f" - {self.fs_type} {self.prefix if handle is None else self.source(handle)}".encode()
        lines = (line for _, table in _tables() for line in table.splitlines() if word in line)
        found: dict[tuple[int, int], list[MountEntry]] = {}
        for entry in map(parse_mountinfo, lines):
            if self.handle_of(entry) in ({handle} if handle is not None else {self.handle_of(entry)} - {None}):
                found.setdefault(entry.device, []).append(entry)
        for entries in found.values():
            yield from of_mounts(entries)

    def _any(self, text: str) -> bool:
        return any(text.encode() in table for _, table in _tables())

    def clone(self, handle: int, attributes: int) -> int | None:
        """A detached mount of the file system that is mounted somewhere already; None where it is nowhere.

        Args:
            handle: the layer.
            attributes: those of `MOUNT_ATTR_*` that it shall have.

        Raises:
            LayerInUse: it is mounted where it cannot be taken from.
        """
        sought = f" - {self.fs_type} {self.source(handle)} ".encode()
        found = False
        for process, table in _tables():
            for line in table.splitlines():
                if sought not in line:
                    continue
                entry = parse_mountinfo(line)
                found = True
                fd = _clone(process, entry) if entry.root == "/" else None
                if fd is not None:
                    return _with(fd, attributes)
        if found:
            raise LayerInUse("the layer is mounted where it cannot be reached", hint="unmount it there first")
        return None


def _with(fd: int, attributes: int) -> int:
    atime = sys.MOUNT_ATTR_NOATIME
    try:
        clear = _FLAGS & ~attributes | sys.MOUNT_ATTR__ATIME
        sys.mount_setattr(fd, set_attributes=attributes | atime, clear_attributes=clear)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EPERM:
            raise
        raise LayerInUse("the layer is mounted in a container that does not share it") from error
    return fd


def _clone(process: str, entry: MountEntry) -> int | None:
    """Clone one mount, in the namespace that it is in; None where something else is there by now, or above it."""

    def take() -> int:
        if process != _SELF:
            namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                sys.unshare(sys.CLONE_FS)
                sys.setns(namespace, sys.CLONE_NEWNS)
            finally:
                os.close(namespace)
        return sys.open_tree(sys.AT_FDCWD, str(entry.target), clone=True)

    try:
        fd = take() if process == _SELF else apart(take, undo=os.close)
    except OSError:
        return None
    device = os.fstat(fd).st_dev
    if (os.major(device), os.minor(device)) == entry.device and sys.is_mount_root(fd):
        return fd
    os.close(fd)
    return None


def _own_table() -> bytes:
    return Path("/proc/thread-self/mountinfo").read_bytes()


def _tables() -> Iterator[tuple[str, bytes]]:
    """The mount tables of all namespaces, ours first, each with a process that lives in it."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    yield _SELF, _own_table()
    for process in os.listdir("/proc"):
        if not process.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace not in seen:
                table = Path(f"/proc/{process}/mountinfo").read_bytes()
                seen.add(namespace)
                yield process, table
