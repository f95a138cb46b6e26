"""Who holds a block device, a file system or a mount: the names that belong into "it is in use".

The kernel says only EBUSY. Who it is has to be looked for: devices on top of a device and swap, loop devices whose file
lies in it, mounts in every mount namespace, and what processes have of it (a working or root directory, an open file,
a mapped one, the device itself). That reads all of /proc, so it is done for an error only, never where nothing is in
the way. What changes meanwhile may be missed, and so is what only the kernel knows of: a file that is on its way
through a socket, the working directory of a thread that has left its process's.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from itertools import islice
from pathlib import Path

import attrs

from thinpool import loop
from thinpool.errors import LayerInUse, ThinPoolError
from thinpool.filesystem import namespaces
from thinpool.filesystem.mounts import MountEntry, mount_table
from thinpool.filesystem.namespaces import Namespace

__all__ = ["Holder", "Why", "above", "all_in_use", "in_use", "named", "of_device", "of_lock", "of_mount", "of_mounts"]

_SHOWN = 6
_MOST = 100
_UNKNOWN = "nobody is found in /proc that would explain it, so it may be over by now"


class Why(Enum):
    """How something is held; the value says it for people."""

    ABOVE = "held by"
    CWD = "working directory"
    DEVICE = "open device"
    FILE = "open file"
    LOCK = "at work with it"
    LOOP = "file of"
    MAPPED = "mapped file"
    MOUNT = "mounted on"
    PROGRAM = "program"
    ROOT = "root directory"
    SWAP = "swap on"


@attrs.frozen
class Holder:
    """One who holds something.

    Attributes:
        why: how.
        what: the path, or the device, by which it is held, as the holder sees it.
        pid: the process; of a mount, one that lives in its namespace; None where it is none, or any of ours.
        comm: the process's name.
    """

    why: Why
    what: str
    pid: int | None = None
    comm: str = ""

    def __str__(self) -> str:
        process = "" if self.pid is None else f"pid {self.pid} ({self.comm})"
        match self.why:
            case Why.MOUNT:
                return f"mounted on {self.what}{f' for {process}' if process else ''}"
            case Why.DEVICE:
                return f"open by {process}"
            case Why.LOCK:
                return f"{process}, {self.why.value}"
            case _:
                return f"{process}: {self.why.value} {self.what}" if process else f"{self.why.value} {self.what}"


def named(holders: Iterable[Holder]) -> str:
    """Holders in one line, as in `mounted on /mnt, open by pid 123 (qemu)`; "" where there are none."""
    found = [str(holder) for holder in islice(holders, _SHOWN + 1)]
    return ", ".join(found if len(found) <= _SHOWN else [*found[:_SHOWN], "and others"])


def in_use(what: str, holders: Iterable[Holder], *, hint: str | None = None) -> LayerInUse:
    """The error that says who holds something.

    Args:
        what: the beginning of the message, as in `/mnt is busy`.
        holders: who it is; looked for here, and no more than a hundred.
        hint: what can be done about it.
    """
    found = list(islice(holders, _MOST))
    return LayerInUse(f"{what}: {named(found) or _UNKNOWN}", hint=hint, holders=found)


def all_in_use(errors: Sequence[LayerInUse], *, hint: str | None = None) -> LayerInUse:
    """One error that says all that several say."""
    holders = [holder for error in errors for holder in error.holders]
    return LayerInUse("; ".join(error.message for error in errors), hint=hint or errors[0].hint, holders=holders)


def of_device(device: tuple[int, int]) -> Iterator[Holder]:
    """Who holds a block device, or the file system that is on it.

    Args:
        device: (major, minor).
    """
    number = os.makedev(*device)
    yield from (Holder(Why.ABOVE, name) for name in above(device))
    yield from _swaps(number)
    yield from _loops(number)
    yield from _mounted(device)
    yield from _processes(_Sought(file_system=number, device=number))


def above(device: tuple[int, int]) -> list[str]:
    """The block devices on top of a device (device-mapper, RAID): kernel name, and device-mapper name if it has one."""
    folder = Path(f"/sys/dev/block/{device[0]}:{device[1]}/holders")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [_device_name(name) for name in names]


def of_mount(target: Path) -> Iterator[Holder]:
    """Who keeps the topmost mount on a directory from being unmounted, in this mount namespace."""
    table = list(mount_table())
    entry = next((entry for entry in reversed(table) if entry.target == target), None)
    if entry is None:
        return
    yield from (
        Holder(Why.MOUNT, str(other.target))
        for other in table
        if other.target != target and other.target.is_relative_to(target)
    )
    with suppress(OSError):
        number = os.lstat(target).st_dev
        yield from _swaps(number)
        yield from _loops(number)
    yield from _processes(_Sought(mounts=frozenset({entry.mount_id}), mapped=entry.device))


def of_mounts(entries: Iterable[MountEntry]) -> Iterator[Holder]:
    """The given mounts, in whatever namespace they are, and the processes that have something of them.

    Args:
        entries: of one file system.
    """
    mine = {entry.mount_id for entry in mount_table()}
    found = list(entries)
    for entry in found:
        if entry.mount_id in mine:
            yield Holder(Why.MOUNT, str(entry.target))
    if found:
        theirs = frozenset(entry.mount_id for entry in found)
        yield from _mounted(found[0].device, theirs - mine)
        yield from _processes(_Sought(mounts=theirs, mapped=found[0].device))


def of_lock(path: Path, byte: int) -> Iterator[Holder]:
    """The processes that hold an open-file-description lock on one byte of a file.

    Only their open files say so (proc(5), /proc/PID/fdinfo): the kernel's table of locks has no process for these.
    """
    with suppress(OSError):
        status = os.stat(path)
        key = status.st_dev, status.st_ino
        for process in namespaces.processes():
            with suppress(OSError):
                if any(_is_locking(process, fd, key, byte) for fd in os.listdir(f"/proc/{process}/fd")):
                    yield Holder(Why.LOCK, str(path), process, _comm(process))


def _is_locking(process: int, fd: str, key: tuple[int, int], byte: int) -> bool:
    with suppress(OSError):
        found = os.stat(f"/proc/{process}/fd/{fd}")
        if (found.st_dev, found.st_ino) == key:
            for line in Path(f"/proc/{process}/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
                words = line.split()  # lock: 1: OFDLCK ADVISORY READ 123 00:1f:456 33554439 33554439
                if words[:1] == ["lock:"] and words[2] == "OFDLCK" and words[7:9] == [str(byte)] * 2:
                    return True
    return False


# -- the kernel's


def _device_name(kernel_name: str) -> str:
    with suppress(OSError):
        name = Path(f"/sys/class/block/{kernel_name}/dm/name").read_text(encoding="utf-8").strip()
        return f"{kernel_name} ({name})"
    return kernel_name


def _swaps(number: int) -> Iterator[Holder]:
    """Swap on a device, or in a file on a file system."""
    with suppress(OSError):
        for line in Path("/proc/swaps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]:
            path = line.split()[0].replace("\\040", " ")
            with suppress(OSError):
                found = os.stat(path)
                if number in {found.st_rdev, found.st_dev}:
                    yield Holder(Why.SWAP, path)


def _loops(number: int) -> Iterator[Holder]:
    """Loop devices on a file of a file system, or on a device itself."""
    with suppress(ThinPoolError):
        for device in loop.list_loops():
            with suppress(ThinPoolError, OSError):
                path = loop.backing(device).path
                if device.backing_device == number or os.stat(path).st_rdev == number:
                    yield Holder(Why.LOOP, f"{device.path}: {path}")


def _mounted(device: tuple[int, int], only: frozenset[int] | None = None) -> Iterator[Holder]:
    """The mounts of a file system, each once, whichever namespaces see it."""
    seen: set[int] = set()
    for namespace in namespaces.mount_namespaces():
        with suppress(OSError):
            for entry in namespaces.mounts_in(namespace, b" %d:%d " % device):
                if entry.device == device and entry.mount_id not in seen and (only is None or entry.mount_id in only):
                    seen.add(entry.mount_id)
                    yield _as_holder(entry, namespace)


def _as_holder(entry: MountEntry, namespace: Namespace) -> Holder:
    if namespace.is_own:
        return Holder(Why.MOUNT, str(entry.target))
    if namespace.pid is None:
        return Holder(Why.MOUNT, f"{entry.target} in {namespace}")
    return Holder(Why.MOUNT, str(entry.target), namespace.pid, _comm(namespace.pid))


# -- processes


@attrs.frozen
class _Sought:
    """What processes may have.

    Attributes:
        file_system: as `st_dev` of what is on it.
        device: as `st_rdev` of the device.
        mounts: numbers of mounts.
        mapped: (major, minor) of the mounts' file system, as mapped files tell it.
    """

    file_system: int | None = None
    device: int | None = None
    mounts: frozenset[int] = frozenset()
    mapped: tuple[int, int] | None = None

    def why(self, path: str, info: str | None) -> Why | None:
        """How a link of /proc holds what is sought; `info` has its mount's number, None where it must be opened."""
        if self.mounts:
            return Why.FILE if _mount_id(path, info) in self.mounts else None
        found = os.stat(path)
        if found.st_dev == self.file_system:
            return Why.FILE
        return Why.DEVICE if stat.S_ISBLK(found.st_mode) and found.st_rdev == self.device else None

    def maps_word(self) -> bytes:
        """What a line of a maps file has."""
        major, minor = self.mapped or (os.major(self.file_system or 0), os.minor(self.file_system or 0))
        return b" %02x:%02x " % (major, minor)


def _processes(sought: _Sought) -> Iterator[Holder]:
    """Each process that has something of what is sought, once for each kind of thing."""
    for process in namespaces.processes():
        seen: set[Why] = set()
        for why, what in _uses(process, sought):
            if why not in seen:
                seen.add(why)
                yield Holder(why, what, process, _comm(process))


def _uses(process: int, sought: _Sought) -> Iterator[tuple[Why, str]]:
    for link, why in (("cwd", Why.CWD), ("root", Why.ROOT), ("exe", Why.PROGRAM)):
        path = f"/proc/{process}/{link}"
        with suppress(OSError):
            if sought.why(path, None):
                yield why, os.readlink(path)
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{process}/fd"):
            path = f"/proc/{process}/fd/{fd}"
            with suppress(OSError):
                found = sought.why(path, f"/proc/{process}/fdinfo/{fd}")
                if found:
                    yield found, os.readlink(path)
    with suppress(OSError):
        yield from _mapped(process, sought)


def _mapped(process: int, sought: _Sought) -> Iterator[tuple[Why, str]]:
    word = sought.maps_word()
    with open(f"/proc/{process}/maps", "rb") as file:
        for line in file:
            if word in line:
                start, end = (int(address, 16) for address in line.split(b" ", 1)[0].split(b"-"))
                place = f"/proc/{process}/map_files/{start:x}-{end:x}"
                with suppress(OSError):
                    if sought.why(place, None):
                        yield Why.MAPPED, os.readlink(place)
                        return


def _mount_id(path: str, info: str | None) -> int:
    if info is not None:
        return _number_in(info)
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _number_in(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)


def _number_in(info: str) -> int:
    with open(info, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def _comm(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "ended since"
