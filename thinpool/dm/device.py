"""Whole devices: made with their table, suspended for a while, given another table, taken away."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.dm.control import UDEV_FLAGS, Control, DeviceInfo
from thinpool.dm.targets import TableEntry
from thinpool.errors import DeviceMapperError

_BLKGETSIZE64 = 0x80081272  # include/uapi/linux/fs.h
_RESUMES = 100


def create_device(
    control: Control, name: str, table: Sequence[TableEntry], *, uuid: str = "", read_only: bool = False
) -> DeviceInfo:
    """Make a device with its table in force; its node is there when the call returns.

    A call that fails leaves no device; a process that dies half-way leaves one without an active table.

    Raises:
        DeviceMapperError: the kernel refused it (EBUSY: there is a device of that name or uuid), or its node cannot be
            made.
    """
    point("device-make")
    made = control.create(name, uuid, read_only=read_only)
    point("device-made")
    try:
        control.load(name, table, read_only=read_only)
        point("device-loaded")
        info = control.resume(name, udev_flags=UDEV_FLAGS)
        point("device-resumed")
        if not control.nodes.by_others():
            _settle(control, name, (info.major, info.minor))
    except BaseException:
        with suppress(DeviceMapperError):
            control.remove(name)
            if not control.nodes.by_others():
                _settle(control, name, (made.major, made.minor))
        raise
    return info


class Suspension:
    """A device's suspension, which ends in any case: also where an exception strikes on the way to its end.

    Between any two lines a signal handler may raise, also between those that clean up. What `end` could then not do is
    done when the value goes, with the frames that the exception left.

    Attributes:
        lasted: nobody else resumed the device before it was resumed here; false until then.
    """

    _open = False  # of the class, as `__init__` may be interrupted too
    lasted = False

    def __init__(self, control: Control, name: str) -> None:
        self._control = control
        self._name = name

    def begin(self, *, flush: bool, lockfs: bool) -> None:
        """Suspend; arguments as of `Control.suspend`."""
        self._open = True
        try:
            self._control.suspend(self._name, flush=flush, lockfs=lockfs)
        except DeviceMapperError:  # the kernel undoes what it began
            self._open = False
            raise

    def end(self) -> None:
        """Resume, and only then let through what interrupted that; to resume a device twice is harmless."""
        interrupt: BaseException | None = None
        for _ in range(_RESUMES if self._open else 0):
            try:
                self.lasted = self._control.resume(self._name).resumed
            except DeviceMapperError:
                if self._control.info(self._name).suspended:  # else somebody was about to resume it, and has done so
                    raise
                self._open = False
                break
            except ValueError:  # the control device is closed
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below
                interrupt = error
            else:
                self._open = False
                break
        if interrupt is not None:
            raise interrupt

    def __del__(self) -> None:
        if not self._open:
            return
        try:
            self.end()
        except ValueError:
            with Control() as control:
                control.resume(self._name)


@contextmanager
def suspended(control: Control, name: str, *, flush: bool = True, lockfs: bool = True) -> Iterator[Suspension]:
    """Hold back a device's I/O for the block; it is resumed however the block ends.

    An exception out of a signal handler, wherever it strikes, puts the resuming off but does not prevent it. A process
    that is killed leaves the device suspended; `Control.resume` mends that.

    Args:
        control: the control device.
        name: the device.
        flush: as of `Control.suspend`.
        lockfs: likewise.

    Returns:
        The suspension, which tells after the block whether it lasted.

    Raises:
        DeviceMapperError: the kernel refused to suspend it (it is not suspended then), or to resume it.
    """
    suspension = Suspension(control, name)
    try:
        suspension.begin(flush=flush, lockfs=lockfs)
        yield suspension
    finally:
        suspension.end()


def swap_table(
    control: Control,
    name: str,
    table: Sequence[TableEntry],
    *,
    read_only: bool = False,
    flush: bool = True,
    lockfs: bool = True,
) -> DeviceInfo:
    """Put another table in force: load, suspend, resume.

    Where the kernel refuses it, the old table stays in force, or is put back, and the device goes on. A process that
    dies half-way leaves the old table in force, with the new one loaded or the device suspended.

    Args:
        control: the control device.
        name: the device.
        table: the new table.
        read_only: let nothing be written.
        flush: as of `Control.suspend`; a pool that is out of space has I/O that will not end until it is larger.
        lockfs: likewise.
    """
    old = control.info(name)
    before = control.table(name)
    point("table-load")
    control.load(name, table, read_only=read_only)
    point("table-loaded")
    try:
        control.suspend(name, flush=flush, lockfs=lockfs)
        point("table-suspended")
        info = control.resume(name)
        point("table-swapped")
        return info
    except BaseException:
        with suppress(DeviceMapperError):
            control.clear(name)
        with suppress(DeviceMapperError):
            if control.table(name) != before:
                control.load(name, before, read_only=old.read_only)
            control.resume(name)
        raise


def rename_device(control: Control, name: str, new_name: str) -> None:
    """Give a device another name; /dev/mapper/NAME follows at once where we make it, else when udevd has done it."""
    control.rename(name, new_name)
    if not control.nodes.by_others():
        info = control.info(new_name)
        for each in (name, new_name):
            _settle(control, each, (info.major, info.minor))


def remove_device(control: Control, name: str, *, deferred: bool = False) -> DeviceInfo:
    """Take a device away.

    Where we make its names ourselves they go too; those of a device that is removed later, by `deferred`, stay until
    its number is used again.

    Returns:
        What the kernel says of it: `deferred_remove` tells that it is in use and goes later.

    Raises:
        DeviceMapperError: the kernel refused (EBUSY: it is in use; ENXIO: there is none of that name).
    """
    point("device-remove")
    before = None if control.nodes.by_others() else control.info(name)
    removed = control.remove(name, deferred=deferred)
    point("device-removed")
    if before is not None and not removed.deferred_remove:
        _settle(control, name, (before.major, before.minor))
    return removed


def _settle(control: Control, name: str, device: tuple[int, int]) -> None:
    def find(name: str) -> tuple[int, int] | None:
        try:
            info = control.info(name)
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        return info.major, info.minor

    try:
        control.nodes.settle(name, device, find)
    except DeviceMapperError:
        raise
    except OSError as error:
        text = f"cannot make the node of device {name}, /dev/dm-{device[1]}: {error.strerror}"
        raise DeviceMapperError("DM_DEV_CREATE", name, error.errno or 0, text) from error


def device_path(info: DeviceInfo) -> Path:
    """The device's node, which is there from the moment that the device is."""
    return Path(f"/dev/dm-{info.minor}")


def block_device_size(path: Path) -> int:
    """Size of a block device in bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size: int = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    finally:
        os.close(fd)
    return size
