"""What goes to and comes from the kernel by a device-mapper ioctl (include/uapi/linux/dm-ioctl.h), as bytes and values.

Every ioctl has one argument: `struct dm_ioctl`, and behind it, from `data_start` on, what belongs to that ioctl.
Text is what the kernel has as bytes, read as UTF-8; bytes that are none become surrogates, as with `os.fsdecode`.
"""

import enum
import struct
from collections.abc import Iterator, Sequence

import attrs

from thinpool.dm.targets import TableEntry, parse_target
from thinpool.errors import ConfigError

HEADER = struct.Struct("=IIIIIIiIIIQ128s129s7x")
"""struct dm_ioctl."""
SPEC = struct.Struct("=QQiI16s")
"""struct dm_target_spec."""

NAME_MAX = 127
UUID_MAX = 128
KIND_MAX = 15

UDEV_FLAGS = (0x02 | 0x04 | 0x08 | 0x40) << 16
"""What a resume that activates a device tells the rules of udev, by the upper half of a cookie whose lower half, a
semaphore to wait on, is none (libdevmapper.h, DM_UDEV_*): leave the device alone (DISABLE_SUBSYSTEM_RULES,
DISABLE_DISK_RULES, DISABLE_OTHER_RULES), name it in /dev/mapper all the same, and remember that for events that say
nothing (PRIMARY_SOURCE), as those after the device was written, or triggered again."""

_EVENT_NR_SINCE = 37  # minor version of the interface, Linux 4.13
_HAS_UUID = 1  # DM_NAME_LIST_FLAG_HAS_UUID, interface 4.45, Linux 5.13, where DM_UUID_FLAG asks for it
_HAS_NO_UUID = 2


class Ioctl(enum.IntEnum):
    """Numbers of the ioctls, named as in dm-ioctl.h; DM_REMOVE_ALL is there to be complete, and never sent."""

    DM_VERSION = 0
    DM_REMOVE_ALL = 1
    DM_LIST_DEVICES = 2
    DM_DEV_CREATE = 3
    DM_DEV_REMOVE = 4
    DM_DEV_RENAME = 5
    DM_DEV_SUSPEND = 6
    DM_DEV_STATUS = 7
    DM_DEV_WAIT = 8
    DM_TABLE_LOAD = 9
    DM_TABLE_CLEAR = 10
    DM_TABLE_DEPS = 11
    DM_TABLE_STATUS = 12
    DM_LIST_VERSIONS = 13
    DM_TARGET_MSG = 14
    DM_DEV_SET_GEOMETRY = 15
    DM_DEV_ARM_POLL = 16
    DM_GET_TARGET_VERSION = 17

    @property
    def request(self) -> int:
        """The request of ioctl(2): _IOWR(0xfd, number, struct dm_ioctl)."""
        return (3 << 30) | (HEADER.size << 16) | (0xFD << 8) | self


# plain integers: an operation costs a few microseconds, and a look-up in an enumeration is a good part of one
READONLY = 1 << 0
SUSPENDED = 1 << 1
STATUS_TABLE = 1 << 4
ACTIVE = 1 << 5
INACTIVE = 1 << 6
BUFFER_FULL = 1 << 8
SKIP_LOCKFS = 1 << 10
NOFLUSH = 1 << 11
QUERY_INACTIVE = 1 << 12
UEVENT_GENERATED = 1 << 13
UUID = 1 << 14
DATA_OUT = 1 << 16
DEFERRED_REMOVE = 1 << 17


@attrs.frozen
class DeviceEntry:
    """One device of the list.

    Attributes:
        name: its name.
        major: block device major number.
        minor: block device minor number.
        event_nr: number of its last event, or None where the kernel does not tell (before Linux 4.13).
        uuid: its uuid, "" where it has none, or None where the kernel does not tell (before Linux 5.13).
    """

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
        resumed: the very call that gave this ended a suspension (of `Control.resume` alone; do_resume in
            drivers/md/dm-ioctl.c tells by the uevent that it makes then).
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
    resumed: bool = attrs.field(default=False, eq=False)


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


def encode(text: str) -> bytes:
    """Text as the kernel has it."""
    return text.encode("utf-8", "surrogateescape")


def encode_limited(text: str, limit: int, what: str) -> bytes:
    """A name or uuid for its fixed field.

    Raises:
        ConfigError: it is longer than the field, which would cut it, or holds a NUL byte, which would end it.
    """
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > limit or b"\0" in raw:
        given = f"{len(raw)} bytes" if len(raw) > limit else "a NUL byte"
        raise ConfigError(f"device-mapper {what} {text!r} has {given}; accepted are {limit} bytes without NUL")
    return raw


def check_new_name(name: str) -> None:
    """Refuse a name that no device can have, or that would not be a file name in /dev/mapper.

    Raises:
        ConfigError: it is empty, `.`, `..` or `control`, or holds a slash.
    """
    if name in {"", ".", "..", "control"} or "/" in name:
        raise ConfigError(
            f"{name!r} is no name for a device-mapper device; accepted is a file name other than 'control'"
        )


def encode_device(major: int, minor: int) -> int:
    """A device number as struct dm_ioctl has it (huge_encode_dev in include/linux/kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_device(dev: int) -> tuple[int, int]:
    """Major and minor of a device number."""
    return (dev >> 8) & 0xFFF, (dev & 0xFF) | ((dev >> 12) & 0xFFF00)


def encode_table(table: Sequence[TableEntry]) -> bytes:
    """Lines of a table, as DM_TABLE_LOAD reads them.

    Raises:
        ConfigError: a target's name is too long.
    """
    parts = []
    for entry in table:
        params = encode(entry.target.params()) + b"\0"
        params += bytes(-len(params) % 8)
        kind = encode_limited(entry.target.kind, KIND_MAX, "target")
        parts += [SPEC.pack(entry.start_sectors, entry.length_sectors, 0, SPEC.size + len(params), kind), params]
    return b"".join(parts)


def decode_text(buffer: bytearray, start: int) -> str:
    """The text that begins at an offset, up to its NUL."""
    return buffer[start : buffer.index(0, start)].decode("utf-8", "surrogateescape")


def decode_info(buffer: bytearray) -> DeviceInfo:
    """The header, as the kernel fills it in for one device (__dev_status in drivers/md/dm-ioctl.c)."""
    _, _, _, _, _, targets, opened, flags, event, _, dev, name, uuid = HEADER.unpack_from(buffer)
    major, minor = decode_device(dev)
    return DeviceInfo(
        name[: name.index(0)].decode("utf-8", "surrogateescape"),
        uuid[: uuid.index(0)].decode("utf-8", "surrogateescape"),
        major, minor, opened, event, targets,
        flags & SUSPENDED != 0, flags & READONLY != 0, flags & ACTIVE != 0, flags & INACTIVE != 0,
        flags & DEFERRED_REMOVE != 0, flags & UEVENT_GENERATED != 0,
    )  # fmt: skip


def decode_status(buffer: bytearray) -> list[StatusEntry]:
    """The lines of a status."""
    return [StatusEntry(*line) for line in _lines(buffer)]


def decode_table(buffer: bytearray) -> list[TableEntry]:
    """The lines of a table."""
    return [TableEntry(start, length, parse_target(kind, text)) for start, length, kind, text in _lines(buffer)]


def _lines(buffer: bytearray) -> Iterator[tuple[int, int, str, str]]:
    start, count = struct.unpack_from("=II", buffer, 16)
    at = start
    for _ in range(count):
        begin, length, _, following, kind = SPEC.unpack_from(buffer, at)
        yield begin, length, kind.rstrip(b"\0").decode(), decode_text(buffer, at + SPEC.size)
        at = start + following


def decode_versions(buffer: bytearray) -> Iterator[TargetVersion]:
    """The targets of DM_LIST_VERSIONS and DM_GET_TARGET_VERSION."""
    at = struct.unpack_from("=I", buffer, 16)[0]
    end = struct.unpack_from("=I", buffer, 12)[0]
    while at + 16 < end:
        following, major, minor, patch = struct.unpack_from("=IIII", buffer, at)
        yield TargetVersion(decode_text(buffer, at + 16), (major, minor, patch))
        if not following:
            return
        at += following


def decode_devices(buffer: bytearray, interface_minor: int) -> Iterator[DeviceEntry]:
    """The devices of DM_LIST_DEVICES (list_devices in drivers/md/dm-ioctl.c), with what newer kernels add."""
    at = struct.unpack_from("=I", buffer, 16)[0]
    while True:
        dev, following = struct.unpack_from("=QI", buffer, at)
        if not dev:
            return
        end = buffer.index(0, at + 12)
        name = buffer[at + 12 : end].decode("utf-8", "surrogateescape")
        event: int | None = None
        uuid: str | None = None
        if interface_minor >= _EVENT_NR_SINCE:
            tail = (end + 8) & ~7
            event, flags = struct.unpack_from("=II", buffer, tail)
            if flags & _HAS_UUID:
                uuid = decode_text(buffer, tail + 8)
            elif flags & _HAS_NO_UUID:
                uuid = ""
        yield DeviceEntry(name, *decode_device(dev), event, uuid)
        if not following:
            return
        at += following


def decode_dependencies(buffer: bytearray) -> list[tuple[int, int]]:
    """Major and minor of each device of DM_TABLE_DEPS (struct dm_target_deps)."""
    start = struct.unpack_from("=I", buffer, 16)[0]
    (count,) = struct.unpack_from("=I", buffer, start)
    return [decode_device(dev) for dev in struct.unpack_from(f"={count}Q", buffer, start + 8)]
