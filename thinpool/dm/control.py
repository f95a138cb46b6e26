"""The device-mapper control device: one method an ioctl (include/uapi/linux/dm-ioctl.h), no fork, no state."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import attrs

from thinpool.dm.targets import TableEntry, parse_target
from thinpool.errors import DeviceMapperError, DriverUnsupported, NotPermitted

CONTROL = "/dev/mapper/control"
_HEADER = struct.Struct("=IIIIIIiIIIQ128s129s7x")  # struct dm_ioctl
_SPEC = struct.Struct("=QQiI16s")  # struct dm_target_spec
_TYPE = 0xFD
_FIRST_SIZE = 4096
_LAST_SIZE = 64 << 20

_NAMES = (
    "DM_VERSION", "DM_REMOVE_ALL", "DM_LIST_DEVICES", "DM_DEV_CREATE", "DM_DEV_REMOVE", "DM_DEV_RENAME",
    "DM_DEV_SUSPEND", "DM_DEV_STATUS", "DM_DEV_WAIT", "DM_TABLE_LOAD", "DM_TABLE_CLEAR", "DM_TABLE_DEPS",
    "DM_TABLE_STATUS", "DM_LIST_VERSIONS", "DM_TARGET_MSG", "DM_DEV_SET_GEOMETRY", "DM_DEV_ARM_POLL",
    "DM_GET_TARGET_VERSION",
)  # fmt: skip
(
    _VERSION, _, _LIST_DEVICES, _CREATE, _REMOVE, _RENAME, _SUSPEND, _STATUS, _WAIT, _LOAD, _CLEAR, _DEPS,
    _TABLE_STATUS, _LIST_VERSIONS, _MESSAGE, _GEOMETRY, _ARM_POLL, _TARGET_VERSION,
) = range(18)  # fmt: skip

_READONLY = 1 << 0
_SUSPENDED = 1 << 1
_STATUS_TABLE = 1 << 4
_ACTIVE = 1 << 5
_INACTIVE = 1 << 6
_BUFFER_FULL = 1 << 8
_SKIP_LOCKFS = 1 << 10
_NOFLUSH = 1 << 11
_QUERY_INACTIVE = 1 << 12
_UUID = 1 << 14
_DATA_OUT = 1 << 16
_DEFERRED = 1 << 17

UDEV_FLAGS = (0x2 | 0x4 | 0x8) << 16
"""Bits of the udev cookie's upper half (libdevmapper's DM_UDEV_DISABLE_*: subsystem, disk and other rules): the rules of
udev leave the device alone, make /dev/mapper/NAME all the same, and no semaphore is waited for."""

_USUAL = {
    (_CREATE, errno.EBUSY): "a device of that name or uuid exists",
    (_REMOVE, errno.EBUSY): "the device is in use",
    (_LOAD, errno.EINVAL): "the kernel does not accept the table; dmesg says why",
    (_MESSAGE, errno.EEXIST): "a thin device of that number exists",
    (_MESSAGE, errno.ENODATA): "there is no thin device of that number",
    (_MESSAGE, errno.ENOSPC): "the pool's metadata is full",
    (_MESSAGE, errno.EOPNOTSUPP): "the pool is read-only or has failed",
}


@attrs.frozen
class DeviceEntry:
    """One device of the list."""

    name: str
    major: int
    minor: int
    event_nr: int | None
    uuid: str | None


@attrs.frozen
class DeviceInfo:
    """The state of one device.

    Attributes:
        name: its name.
        uuid: its uuid, or "".
        major: block device major number.
        minor: block device minor number.
        open_count: how many hold it open, mounts included.
        event_nr: number of its last event.
        target_count: lines of its active table.
        suspended: its I/O is held back.
        read_only: it cannot be written.
        active: it has a table in force.
        inactive: it has a table that is loaded, not in force.
        deferred_remove: it goes when its last user lets go.
    """

    name: str
    uuid: str
    major: int
    minor: int
    open_count: int
    event_nr: int
    target_count: int
    suspended: bool
    read_only: bool
    active: bool
    inactive: bool
    deferred_remove: bool


@attrs.frozen
class StatusEntry:
    """One line of a status; start and length in 512-byte sectors, the text as the target prints it."""

    start_sectors: int
    length_sectors: int
    kind: str
    text: str


@attrs.frozen
class TargetVersion:
    """A target that the kernel has."""

    name: str
    version: tuple[int, int, int]


class Control:
    """The control device, open; a context manager, safe to use from threads.

    Raises:
        NotPermitted: not root.
        DriverUnsupported: the kernel has no device-mapper.
    """

    def __init__(self, path: str = CONTROL) -> None:
        self._fd = _open(path)

    def close(self) -> None:
        """Close the control device; devices stay as they are."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """For poll(2): readable after `arm_poll` when any device has had an event."""
        return self._fd

    def _call(
        self,
        number: int,
        name: str = "",
        *,
        uuid: str = "",
        flags: int = 0,
        payload: bytes = b"",
        targets: int = 0,
        event: int = 0,
        dev: int = 0,
    ) -> bytearray:
        size = max(_HEADER.size + len(payload), 512 if number not in _LISTS else _FIRST_SIZE)
        while True:
            buffer = bytearray(size)
            _HEADER.pack_into(
                buffer, 0, 4, 0, 0, size, _HEADER.size, targets, 0, flags, event, 0, dev, name.encode(), uuid.encode()
            )  # fmt: skip
            buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
            try:
                fcntl.ioctl(self._fd, (3 << 30) | (_HEADER.size << 16) | (_TYPE << 8) | number, buffer, True)  # noqa: FBT003
            except OSError as error:
                raise _failed(number, name or uuid or None, error) from error
            if not struct.unpack_from("=I", buffer, 28)[0] & _BUFFER_FULL or size >= _LAST_SIZE:
                return buffer
            size *= 4

    # -- the interface

    def version(self) -> tuple[int, int, int]:
        """Version of the interface."""
        return struct.unpack_from("=III", self._call(_VERSION))

    def devices(self) -> list[DeviceEntry]:
        """All devices."""
        buffer = self._call(_LIST_DEVICES)
        return list(_device_list(buffer))

    def target_versions(self) -> list[TargetVersion]:
        """The targets that the kernel has loaded."""
        buffer = self._call(_LIST_VERSIONS)
        return [TargetVersion(name, version) for name, version in _version_list(buffer)]

    # -- devices

    def create(self, name: str, uuid: str = "", *, read_only: bool = False) -> DeviceInfo:
        """Make a device without a table."""
        return _info(self._call(_CREATE, name, uuid=uuid, flags=_READONLY if read_only else 0))

    def remove(self, name: str, *, deferred: bool = False) -> DeviceInfo:
        """Remove a device; deferred: if it is in use, when its last user lets go."""
        return _info(self._call(_REMOVE, name, flags=_DEFERRED if deferred else 0, event=UDEV_FLAGS))

    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name."""
        self._call(_RENAME, name, payload=new_name.encode() + b"\0", event=UDEV_FLAGS)

    def load(self, name: str, table: Sequence[TableEntry], *, read_only: bool = False) -> None:
        """Load an inactive table; `resume` puts it in force."""
        parts = []
        for entry in table:
            params = entry.target.params().encode() + b"\0"
            params += bytes(-len(params) % 8)
            kind = entry.target.kind.encode()
            parts.append(
                _SPEC.pack(entry.start_sectors, entry.length_sectors, 0, _SPEC.size + len(params), kind) + params
            )
        flags = _READONLY if read_only else 0
        self._call(_LOAD, name, flags=flags, payload=b"".join(parts), targets=len(table))

    def clear(self, name: str) -> None:
        """Drop the inactive table."""
        self._call(_CLEAR, name)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold back I/O; lockfs freezes the file system first, flush waits for what is under way."""
        flags = _SUSPENDED | (0 if flush else _NOFLUSH) | (0 if lockfs else _SKIP_LOCKFS)
        self._call(_SUSPEND, name, flags=flags)

    def resume(self, name: str) -> DeviceInfo:
        """Let I/O go, with the inactive table if one is loaded."""
        return _info(self._call(_SUSPEND, name, event=UDEV_FLAGS))

    def info(self, name: str = "", *, uuid: str = "", dev: tuple[int, int] | None = None) -> DeviceInfo:
        """The state of a device, by name, uuid or (major, minor)."""
        number = 0 if dev is None else (dev[1] & 0xFF) | (dev[0] << 8) | ((dev[1] & ~0xFF) << 12)
        return _info(self._call(_STATUS, name, uuid=uuid, dev=number))

    def status(self, name: str, *, noflush: bool = False) -> list[StatusEntry]:
        """What each target says of its state; noflush: as it is, without a commit first."""
        buffer = self._call(_TABLE_STATUS, name, flags=_NOFLUSH if noflush else 0)
        return [StatusEntry(*line) for line in _lines(buffer)]

    def table(self, name: str, *, inactive: bool = False) -> list[TableEntry]:
        """The table in force, or the one that is loaded."""
        flags = _STATUS_TABLE | (_QUERY_INACTIVE if inactive else 0)
        lines = _lines(self._call(_TABLE_STATUS, name, flags=flags))
        return [TableEntry(start, length, parse_target(kind, text)) for start, length, kind, text in lines]

    def deps(self, name: str) -> list[tuple[int, int]]:
        """The (major, minor) of the devices below."""
        buffer = self._call(_DEPS, name)
        start = struct.unpack_from("=I", buffer, 16)[0]
        (count,) = struct.unpack_from("=I", buffer, start)
        return [_numbers(dev) for dev in struct.unpack_from(f"={count}Q", buffer, start + 8)]

    def message(self, name: str, text: str, sector: int = 0) -> str | None:
        """Send a target a message: its reply, if it gives one."""
        buffer = self._call(_MESSAGE, name, payload=struct.pack("=Q", sector) + text.encode() + b"\0")
        start, flags = struct.unpack_from("=I8xI", buffer, 16)
        return _text(buffer, start) if flags & _DATA_OUT else None

    def arm_poll(self) -> None:
        """Forget the events until now, for poll(2)."""
        self._call(_ARM_POLL)


_LISTS = frozenset({_LIST_DEVICES, _LIST_VERSIONS, _TABLE_STATUS, _DEPS, _MESSAGE})


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise NotPermitted("device-mapper needs root", hint="run as root") from error
    except OSError as error:
        raise DriverUnsupported("this kernel has no device-mapper") from error
    return fd


def _failed(number: int, device: str | None, error: OSError) -> DeviceMapperError:
    code = error.errno or 0
    usual = _USUAL.get((number, code))
    text = f"{_NAMES[number]} {device or ''}".strip() + f": {os.strerror(code)}" + (f" ({usual})" if usual else "")
    return DeviceMapperError(_NAMES[number], device, code, text)


def _numbers(dev: int) -> tuple[int, int]:
    return (dev >> 8) & 0xFFF, (dev & 0xFF) | ((dev >> 12) & 0xFFF00)


def _text(buffer: bytearray, start: int) -> str:
    return buffer[start : buffer.index(0, start)].decode()


def _info(buffer: bytearray) -> DeviceInfo:
    targets, opened, flags, event, _, dev = struct.unpack_from("=IiIIIQ", buffer, 20)
    major, minor = _numbers(dev)
    return DeviceInfo(
        _text(buffer, 48), _text(buffer, 176), major, minor, opened, event, targets,
        bool(flags & _SUSPENDED), bool(flags & _READONLY), bool(flags & _ACTIVE), bool(flags & _INACTIVE),
        bool(flags & _DEFERRED),
    )  # fmt: skip


def _lines(buffer: bytearray) -> Iterator[tuple[int, int, str, str]]:
    (start, count) = struct.unpack_from("=II", buffer, 16)
    at = start
    for _ in range(count):
        begin, length, _, following, kind = _SPEC.unpack_from(buffer, at)
        yield begin, length, kind.rstrip(b"\0").decode(), _text(buffer, at + _SPEC.size)
        at = start + following


def _version_list(buffer: bytearray) -> Iterator[tuple[str, tuple[int, int, int]]]:
    at, size = struct.unpack_from("=I", buffer, 16)[0], len(buffer)
    while at + 16 < size:
        following, *version = struct.unpack_from("=IIII", buffer, at)
        yield _text(buffer, at + 16), (version[0], version[1], version[2])
        if not following:
            return
        at += following


def _device_list(buffer: bytearray) -> Iterator[DeviceEntry]:
    at = struct.unpack_from("=I", buffer, 16)[0]
    while True:
        dev, following = struct.unpack_from("=QI", buffer, at)
        if not dev:
            return
        major, minor = _numbers(dev)
        name = _text(buffer, at + 12)
        tail = at + 12 + (len(name.encode()) + 1 + 7) // 8 * 8
        yield DeviceEntry(name, major, minor, None, None)
        if not following:
            return
        at += following
