"""Loop devices by ioctl: a file as a block device (include/uapi/linux/loop.h, drivers/block/loop.c, loop(4)).

How a device goes again is the question with loop devices, as most that are leaked are of a process that died. With
*autoclear* the kernel detaches the file when the last user of the device lets go. A pool on top is a user: it holds its
loop devices through device-mapper. So an autoclear device lives as long as the pool, is gone with it, and neither a
crash nor a kill leaves anything to clean. Only between `attach` and the activation of the pool somebody else has to be
the user: the value that `attach` gives holds the device open until it is closed, so keep it in a `with` block around
the activation. Without autoclear a device stays until `detach`, or the next boot: for people, who attach by hand.

A device is found again by the file's device and inode number, which the kernel keeps. A path says nothing: the file may
have been renamed or replaced, and the kernel's copy is cut after 63 bytes.

*Direct I/O* lets the device pass by the page cache: what is written is on the disk once, is not held in memory twice,
and a flush waits for this file only. Where the file system has no direct I/O (a tmpfs before Linux 6.6) the kernel goes
on without; `LoopDevice.direct_io` tells what it does.

The *logical block size* is what the kernel derives, that of the disk below the file: 512 bytes as a rule, and 4096 on a
disk whose sectors are that, where direct I/O needs it. To ask for 4096 elsewhere gives nothing: ext4, xfs and a
pool's metadata are read and written in 4 KiB anyway, and a discard is as coarse as the file system's block in both.
"""

import errno
import fcntl
import io
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from thinpool.errors import LoopError, NotPermitted
from thinpool.nodes import ensure_block_node, open_misc

__all__ = ["BackingFile", "LoopDevice", "attach", "backing", "detach", "find", "list_loops", "refresh_size"]

_CONTROL = "/dev/loop-control"
_SYS_BLOCK = "/sys/block"
_MAJOR = 7
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CLR_FD = 0x4C01
_SET_CAPACITY = 0x4C07
_GET_STATUS64 = 0x4C05
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16
_INFO = struct.Struct("=QQQQQIIII64s64s32s16x")  # struct loop_info64
_CONFIG = struct.Struct("=II232s64x")  # struct loop_config
_NAME_BYTES = 63
_TRIES = 64
_PAUSE_SECONDS = 0.001


@attrs.frozen
class BackingFile:
    """The file behind a loop device.

    Attributes:
        device: device number of its file system, as `st_dev` of stat(2).
        inode: its inode number there.
        path: where the kernel last saw it, for people.
        deleted: no file with these numbers is at that path (any more).
    """

    device: int
    inode: int
    path: Path
    deleted: bool


@attrs.frozen
class LoopDevice:
    """A loop device with a file; sizes in bytes.

    From `attach` with autoclear it holds the device open until it is closed, or left as a context manager; closing
    detaches nothing by itself, but lets the kernel do so where nobody else uses the device.

    Attributes:
        number: N of `/dev/loopN`.
        backing_device: device number of the file's file system.
        backing_inode: the file's inode number.
        read_only: nothing can be written.
        direct_io: the kernel reads and writes the file past the page cache.
        autoclear: it goes when its last user lets go.
        offset: where in the file it begins.
        size_limit: how much of the file it shows; 0 for all.
    """

    number: int
    backing_device: int
    backing_inode: int
    read_only: bool
    direct_io: bool
    autoclear: bool
    offset: int
    size_limit: int
    _held: io.FileIO | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def path(self) -> Path:
        """Its node."""
        return Path(f"/dev/loop{self.number}")

    def close(self) -> None:
        """Let go of it."""
        if self._held is not None:
            self._held.close()

    def refresh_size(self) -> None:
        """As the function `refresh_size`."""
        refresh_size(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach(
    file: str | Path | int,
    *,
    read_only: bool = False,
    direct_io: bool = True,
    block_size: int | None = None,
    autoclear: bool = False,
    offset: int = 0,
    size_limit: int = 0,
) -> LoopDevice:
    """Attach a file to a free loop device.

    One ioctl attaches it with all its settings: a process that dies half-way leaves no device, or a whole one, which
    with autoclear goes by itself.

    Args:
        file: path of the file, or a file descriptor of it, which stays the caller's. Direct I/O on a disk whose sectors
            are larger than 512 bytes needs one with O_DIRECT, or `block_size`.
        read_only: let nothing be written.
        direct_io: pass by the page cache, where the file system can.
        block_size: logical block size in bytes, 512 to 4096; None for what suits the disk below.
        autoclear: detach it when its last user lets go; the first one is the value that is given back.
        offset: where in the file the device begins, in bytes.
        size_limit: how many bytes of the file it shows; 0 for all.

    Raises:
        LoopError: the file cannot be opened, there is no free device, or the kernel refuses.
        NotPermitted: not root.
    """
    with _backing(file, read_only=read_only, direct_io=direct_io) as (fd, name), _loop_control() as control:
        flags = _READ_ONLY * read_only | _AUTOCLEAR * autoclear | _DIRECT_IO * direct_io
        info = _INFO.pack(0, 0, 0, offset, size_limit, 0, 0, 0, flags, os.fsencode(name)[:_NAME_BYTES], b"", b"")
        config = _CONFIG.pack(fd, block_size or 0, info)
        for attempt in range(_TRIES):
            time.sleep(_PAUSE_SECONDS * attempt)  # nothing tells when whoever is in the way has gone
            number = _free_number(control)
            device = _open(number, write=not read_only)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
                made = _status(number, device)
            except OSError as error:
                device.close()
                if error.errno == errno.EBUSY:  # somebody else was faster, or has opened it to look with O_EXCL
                    continue
                raise _refused(name, number, error) from error
            except BaseException:
                device.close()
                raise
            if autoclear:
                return attrs.evolve(made, held=device)
            device.close()
            return made
    raise LoopError(f"cannot attach {name}: {_TRIES} loop devices were taken by others just before", hint="try again")


def detach(device: LoopDevice | Path) -> bool:
    """Detach a loop device from its file.

    Args:
        device: the device; as a value, it must still have the file that the value names.

    Returns:
        True where it is done, False where the kernel will do it when the last user lets go.

    Raises:
        LoopError: it has no file, or another one; or it is no loop device.
    """
    if isinstance(device, LoopDevice):
        device.close()
    number = _number(device)
    with _open(number) as opened:
        try:
            found = _status(number, opened)
            if isinstance(device, LoopDevice) and _file_of(found) != _file_of(device):
                raise LoopError(f"/dev/loop{number} has another file by now")
            fcntl.ioctl(opened, _CLR_FD)
        except OSError as error:
            if isinstance(device, LoopDevice) and device.autoclear and error.errno == errno.ENXIO:
                return True  # by letting go of it above
            raise _failed(number, "detach", error) from error
    return not os.path.exists(_backing_path(number))


def list_loops() -> list[LoopDevice]:
    """The loop devices that have a file, by number; one that goes away meanwhile is left out.

    Raises:
        LoopError: sysfs is not mounted.
    """
    try:
        names = os.listdir(_SYS_BLOCK)
    except OSError as error:
        raise LoopError(f"cannot list the loop devices: {_SYS_BLOCK}: {error.strerror}") from error
    return list(_with_file(sorted(int(name[4:]) for name in names if name.startswith("loop") and name[4:].isdigit())))


def find(file: str | Path | int) -> LoopDevice | None:
    """The first loop device of a file, by the file's device and inode number; None where there is none.

    Raises:
        LoopError: there is no such file.
    """
    try:
        status = os.stat(file)
    except OSError as error:
        raise LoopError(f"cannot look for the loop device of {file}: {error.strerror}") from error
    for device in list_loops():
        if _file_of(device) == (status.st_dev, status.st_ino):
            return device
    return None


def backing(device: LoopDevice | Path) -> BackingFile:
    """The file behind a loop device, by what the kernel holds.

    Raises:
        LoopError: it has no file, or is no loop device.
    """
    number = _number(device)
    with _open(number) as opened:
        try:
            found = _status(number, opened)
            with open(_backing_path(number), "rb") as line:
                path = Path(os.fsdecode(line.read().rstrip(b"\n")))
        except OSError as error:
            raise _failed(number, "read the file of", error) from error
    if not _is_at(path, found) and path.name.endswith(" (deleted)"):  # the kernel's mark, or a part of the name
        path = path.with_name(path.name.removesuffix(" (deleted)"))
        return BackingFile(found.backing_device, found.backing_inode, path, deleted=True)
    return BackingFile(found.backing_device, found.backing_inode, path, deleted=not _is_at(path, found))


def refresh_size(device: LoopDevice | Path) -> None:
    """Take up the new size of the file, while the device is in use; devices on top keep theirs until their next table.

    Raises:
        LoopError: it has no file, or is no loop device.
    """
    number = _number(device)
    with _open(number) as opened:
        try:
            fcntl.ioctl(opened, _SET_CAPACITY)
        except OSError as error:
            raise _failed(number, "resize", error) from error


@contextmanager
def _backing(file: str | Path | int, *, read_only: bool, direct_io: bool) -> Iterator[tuple[int, str]]:
    """The file's descriptor and name. With O_DIRECT on it the kernel derives the block size from the disk."""
    if isinstance(file, int):
        yield file, os.readlink(f"/proc/self/fd/{file}")
        return
    name = os.fspath(file)
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        try:
            fd = os.open(name, flags | (os.O_DIRECT if direct_io else 0))
        except OSError as error:
            if not direct_io or error.errno != errno.EINVAL:  # what open(2) says where there is no O_DIRECT
                raise
            fd = os.open(name, flags)
    except OSError as error:
        raise LoopError(f"cannot attach {name}: {error.strerror}") from error
    try:
        yield fd, name
    finally:
        os.close(fd)


@contextmanager
def _loop_control() -> Iterator[int]:
    try:
        fd = open_misc(_CONTROL, "loop-control", "loop")
    except PermissionError as error:
        raise NotPermitted("loop devices need root", hint="run as root") from error
    except OSError as error:
        raise LoopError(
            f"there are no loop devices here: {_CONTROL}: {error.strerror}", hint="load the kernel's module loop"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _free_number(control: int) -> int:
    try:
        return fcntl.ioctl(control, _GET_FREE)
    except OSError as error:
        raise LoopError(
            f"no free loop device: {error.strerror}", hint="losetup --list shows them; losetup --detach frees one"
        ) from error


def _open(number: int, *, write: bool = False) -> io.FileIO:
    path = Path(f"/dev/loop{number}")

    def opener(name: str, flags: int) -> int:
        try:
            return os.open(name, flags)
        except FileNotFoundError:
            ensure_block_node(path, _MAJOR, number)
            return os.open(name, flags)

    try:
        return io.FileIO(os.fspath(path), "r+" if write else "r", opener=opener)
    except PermissionError as error:
        raise NotPermitted(f"{path}: {error.strerror}", hint="run as root; a container needs the device too") from error
    except OSError as error:
        raise _failed(number, "open", error) from error


def _with_file(numbers: list[int]) -> Iterator[LoopDevice]:
    for number in numbers:
        if not os.path.exists(_backing_path(number)):
            continue
        try:
            with _open(number) as device:
                yield _status(number, device)
        except (OSError, LoopError):  # detached, or gone, since
            continue


def _status(number: int, device: io.FileIO) -> LoopDevice:
    raw = fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size))
    found, inode, _, offset, limit, _, _, _, flags, *_ = _INFO.unpack(raw)
    return LoopDevice(
        number, _st_dev(found), inode, bool(flags & _READ_ONLY), bool(flags & _DIRECT_IO), bool(flags & _AUTOCLEAR),
        offset, limit,
    )  # fmt: skip


def _st_dev(number: int) -> int:
    """The kernel's huge_encode_dev (include/linux/kdev_t.h) as the C library's dev_t."""
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFFFF00))


def _file_of(device: LoopDevice) -> tuple[int, int]:
    return device.backing_device, device.backing_inode


def _is_at(path: Path, device: LoopDevice) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == _file_of(device)


def _backing_path(number: int) -> str:
    return f"{_SYS_BLOCK}/loop{number}/loop/backing_file"


def _number(device: LoopDevice | Path) -> int:
    if isinstance(device, LoopDevice):
        return device.number
    try:
        status = os.stat(device)
    except OSError as error:
        raise LoopError(f"{device}: {error.strerror}") from error
    if not stat.S_ISBLK(status.st_mode) or os.major(status.st_rdev) != _MAJOR:
        raise LoopError(f"{device} is no loop device")
    return os.minor(status.st_rdev)


def _failed(number: int, what: str, error: OSError) -> LoopError:
    if error.errno == errno.ENXIO:
        return LoopError(f"cannot {what} /dev/loop{number}: it has no file")
    return LoopError(f"cannot {what} /dev/loop{number}: {error.strerror}")


def _refused(name: str, number: int, error: OSError) -> LoopError:
    if error.errno in {errno.ENOTTY, errno.EINVAL}:
        hint = "a regular file or a block device can be attached, on Linux 5.8 or newer"
        return LoopError(f"cannot attach {name} to /dev/loop{number}: {error.strerror}", hint=hint)
    return LoopError(f"cannot attach {name} to /dev/loop{number}: {error.strerror}")
