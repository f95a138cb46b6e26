"""The device-mapper control device: one method an ioctl (include/uapi/linux/dm-ioctl.h), no fork, no state.

DM_REMOVE_ALL is left out on purpose: it takes down every device of the machine, other people's too.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from thinpool.dm.failures import failure
from thinpool.dm.nodes import Nodes
from thinpool.dm.protocol import (
    BUFFER_FULL,
    DATA_OUT,
    DEFERRED_REMOVE,
    HEADER,
    KIND_MAX,
    NAME_MAX,
    NOFLUSH,
    QUERY_INACTIVE,
    READONLY,
    SKIP_LOCKFS,
    STATUS_TABLE,
    SUSPENDED,
    UDEV_FLAGS,
    UUID,
    UUID_MAX,
    DeviceEntry,
    DeviceInfo,
    Ioctl,
    StatusEntry,
    TargetVersion,
    check_new_name,
    decode_dependencies,
    decode_devices,
    decode_info,
    decode_status,
    decode_table,
    decode_text,
    decode_versions,
    encode,
    encode_device,
    encode_limited,
    encode_table,
)  # fmt: skip
from thinpool.dm.targets import TableEntry
from thinpool.errors import DriverUnsupported, NotPermitted
from thinpool.nodes import load_module, open_misc

__all__ = ["UDEV_FLAGS", "Control", "DeviceEntry", "DeviceInfo", "StatusEntry", "TargetVersion"]

CONTROL = "/dev/mapper/control"

_REQUESTS = tuple(number.request for number in Ioctl)
_INTERFACE = (4, 0, 0)  # the kernel accepts any minor up to its own
# fcntl.ioctl gives the interpreter's lock away only for buffers of at most 1024 bytes: what may have to wait for a
# disk or an event must fit in one
_PLAIN_SIZE = 512
_ANSWER_SIZE = 1024
_LIST_SIZE = 16 << 10
_SIZE_MAX = 64 << 20
_GROWTH = 8


class Control:
    """The control device, open; a context manager, safe to use from threads.

    All methods raise `DeviceMapperError`, which carries ioctl, device and errno, and `ConfigError` for a name or uuid
    that the kernel could not hold. Each is one ioctl, and the kernel carries that out whole or not at all.

    Attributes:
        interface: version of the kernel's interface.
        nodes: the device nodes in /dev, and who makes them.

    Raises:
        NotPermitted: not root.
        DriverUnsupported: the kernel has no device-mapper, or one whose interface is not 4.x.
    """

    def __init__(self, path: str = CONTROL) -> None:
        self.nodes = Nodes()
        self._fd = _open(path)
        try:
            self.interface = self._negotiate()
        except BaseException:
            self.close()
            raise

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

    # -- the call

    def _call(
        self, ioctl: int, name: str = "", uuid: str = "", *, flags: int = 0, event: int = 0, dev: int = 0
    ) -> bytearray:
        """An ioctl without data of its own, either way."""
        buffer = _plain(name, uuid, flags=flags, event=event, dev=dev)
        self._ioctl(ioctl, buffer, name or uuid)
        return buffer

    def _send(
        self, ioctl: int, name: str, payload: bytes = b"", *, flags: int = 0, targets: int = 0, event: int = 0,
        size: int = 0,
    ) -> bytearray:  # fmt: skip
        """An ioctl with data; it is done again with a larger buffer while the kernel says that the answer is cut."""
        size = max(size, HEADER.size + len(payload))
        raw_name = encode_limited(name, NAME_MAX, "name")
        while True:
            buffer = bytearray(size)
            HEADER.pack_into(
                buffer, 0, *_INTERFACE, size, HEADER.size, targets, 0, flags, event, 0, 0, raw_name, b""
            )  # fmt: skip
            buffer[HEADER.size : HEADER.size + len(payload)] = payload
            self._ioctl(ioctl, buffer, name)
            if not struct.unpack_from("=I", buffer, 28)[0] & BUFFER_FULL:
                return buffer
            size *= _GROWTH
            if size > _SIZE_MAX:
                raise failure(ioctl, name, errno.ENOBUFS)

    def _ioctl(self, ioctl: int, buffer: bytearray, device: str) -> None:
        while True:
            try:
                fcntl.ioctl(self._fd, _REQUESTS[ioctl], buffer)
            except InterruptedError:
                continue  # by a signal whose handler has run by now, and did not raise
            except OSError as error:
                raise failure(ioctl, device, error.errno or 0) from error
            return

    # -- the interface

    def _negotiate(self) -> tuple[int, int, int]:
        buffer = bytearray(_PLAIN_SIZE)
        HEADER.pack_into(buffer, 0, *_INTERFACE, _PLAIN_SIZE, HEADER.size, 0, 0, 0, 0, 0, 0, b"", b"")
        try:
            fcntl.ioctl(self._fd, _REQUESTS[Ioctl.DM_VERSION], buffer)
        except PermissionError as error:
            raise NotPermitted("device-mapper needs root", hint="run as root, with CAP_SYS_ADMIN") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise DriverUnsupported(f"the control device does not speak device-mapper: {error.strerror}") from error
            found = ".".join(map(str, struct.unpack_from("=III", buffer)))
            raise DriverUnsupported(
                f"the kernel has version {found} of the device-mapper interface; accepted is {_INTERFACE[0]}.x"
            ) from error
        major, minor, patch = struct.unpack_from("=III", buffer)
        return major, minor, patch

    def version(self) -> tuple[int, int, int]:
        """Version of the interface, asked for again."""
        major, minor, patch = struct.unpack_from("=III", self._call(Ioctl.DM_VERSION))
        return major, minor, patch

    def devices(self) -> list[DeviceEntry]:
        """All devices."""
        buffer = self._send(Ioctl.DM_LIST_DEVICES, "", flags=UUID, size=_LIST_SIZE)
        return list(decode_devices(buffer, self.interface[1]))

    def target_versions(self) -> list[TargetVersion]:
        """The targets that the kernel has loaded."""
        return list(decode_versions(self._send(Ioctl.DM_LIST_VERSIONS, "", size=_ANSWER_SIZE)))

    def target_version(self, kind: str) -> TargetVersion | None:
        """A target of the kernel, which tries to load it; None where it cannot."""
        encode_limited(kind, KIND_MAX, "target")
        try:
            buffer = self._send(Ioctl.DM_GET_TARGET_VERSION, kind, size=_ANSWER_SIZE)
        except OSError as error:
            if error.errno == errno.ENOTTY:  # before Linux 5.4
                return next((target for target in self.target_versions() if target.name == kind), None)
            if error.errno == errno.EINVAL:
                return None
            raise
        return next(decode_versions(buffer))

    def require_target(self, kind: str) -> TargetVersion:
        """A target of the kernel; where the kernel could not load it, modprobe(8) is tried once.

        Raises:
            DriverUnsupported: there is none; the message says what modprobe said.
        """
        found = self.target_version(kind)
        if found is None:
            reason = load_module(f"dm-{kind}")
            found = self.target_version(kind)
            if found is None:
                module = f"dm_{kind.replace('-', '_')}"
                raise DriverUnsupported(f"this kernel has no {kind} target (module {module}: {reason or 'not it'})")
        return found

    # -- devices

    def create(self, name: str, uuid: str = "", *, read_only: bool = False) -> DeviceInfo:
        """Make a device without a table; it is of no use until it has one."""
        check_new_name(name)
        return decode_info(self._call(Ioctl.DM_DEV_CREATE, name, uuid, flags=READONLY if read_only else 0))

    def remove(self, name: str, *, deferred: bool = False) -> DeviceInfo:
        """Remove a device; deferred: if it is in use, when its last user lets go.

        Returns:
            What the kernel says of it: only name, uuid and `deferred_remove` (it is in use and goes later) are told.
        """
        return decode_info(self._call(Ioctl.DM_DEV_REMOVE, name, flags=DEFERRED_REMOVE if deferred else 0))

    def rename(self, name: str, new_name: str) -> None:
        """Give a device another name."""
        check_new_name(new_name)
        self._send(Ioctl.DM_DEV_RENAME, name, encode_limited(new_name, NAME_MAX, "name") + b"\0", size=_PLAIN_SIZE)

    def set_uuid(self, name: str, uuid: str) -> None:
        """Give a device that has no uuid one, for good."""
        payload = encode_limited(uuid, UUID_MAX, "uuid") + b"\0"
        self._send(Ioctl.DM_DEV_RENAME, name, payload, flags=UUID, size=_PLAIN_SIZE)

    def set_geometry(self, name: str, *, cylinders: int, heads: int, sectors: int, start_sector: int = 0) -> None:
        """Set the geometry that HDIO_GETGEO tells, for old boot loaders; it is forgotten with the table."""
        payload = encode(f"{cylinders} {heads} {sectors} {start_sector}") + b"\0"
        self._send(Ioctl.DM_DEV_SET_GEOMETRY, name, payload, size=_PLAIN_SIZE)

    def load(self, name: str, table: Sequence[TableEntry], *, read_only: bool = False) -> None:
        """Load an inactive table; `resume` puts it in force."""
        flags = READONLY if read_only else 0
        self._send(Ioctl.DM_TABLE_LOAD, name, encode_table(table), flags=flags, targets=len(table))

    def clear(self, name: str) -> None:
        """Drop the inactive table."""
        self._call(Ioctl.DM_TABLE_CLEAR, name)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Hold back I/O, until `resume`.

        Args:
            name: the device.
            flush: wait for the I/O that is under way; it would not end where it is queued below, as on a full pool.
            lockfs: freeze the file system on it first, so that what is on the device is consistent.
        """
        flags = SUSPENDED | (0 if flush else NOFLUSH) | (0 if lockfs else SKIP_LOCKFS)
        self._call(Ioctl.DM_DEV_SUSPEND, name, flags=flags)

    def resume(self, name: str, *, udev_flags: int = 0, flush: bool = True, lockfs: bool = True) -> DeviceInfo:
        """Let I/O go, with the inactive table if one is loaded.

        Args:
            name: the device.
            udev_flags: what to tell the rules of udev, as `UDEV_FLAGS`; 0 leaves the device to them as it was.
            flush: as of `suspend`, where the device is not suspended and another table is to be put in force.
            lockfs: likewise.
        """
        flags = (0 if flush else NOFLUSH) | (0 if lockfs else SKIP_LOCKFS)
        return decode_info(self._call(Ioctl.DM_DEV_SUSPEND, name, flags=flags, event=udev_flags))

    def resume_call(self, name: str) -> tuple[int, bytes]:
        """What `resume` would hand to ioctl(2) on this file: request and argument, for another process to do it."""
        return Ioctl.DM_DEV_SUSPEND.request, bytes(_plain(name))

    def info(self, name: str = "", *, uuid: str = "", dev: tuple[int, int] | None = None) -> DeviceInfo:
        """The state of a device, by one of name, uuid and (major, minor)."""
        number = 0 if dev is None else encode_device(*dev)
        return decode_info(self._call(Ioctl.DM_DEV_STATUS, name, uuid, dev=number))

    def status(self, name: str, *, noflush: bool = False) -> list[StatusEntry]:
        """What each target says of its state; noflush: as it is, without a commit first."""
        flags = NOFLUSH if noflush else 0
        return decode_status(self._send(Ioctl.DM_TABLE_STATUS, name, flags=flags, size=_ANSWER_SIZE))

    def table(self, name: str, *, inactive: bool = False) -> list[TableEntry]:
        """The table in force, or the one that is loaded."""
        flags = STATUS_TABLE | NOFLUSH | (QUERY_INACTIVE if inactive else 0)
        return decode_table(self._send(Ioctl.DM_TABLE_STATUS, name, flags=flags, size=_ANSWER_SIZE))

    def deps(self, name: str) -> list[tuple[int, int]]:
        """The (major, minor) of the devices below."""
        return decode_dependencies(self._send(Ioctl.DM_TABLE_DEPS, name, size=_ANSWER_SIZE))

    def message(self, name: str, text: str, sector: int = 0) -> str | None:
        """Send the target at a sector, or with `@...` device-mapper itself, a message: the reply, if there is one.

        A reply that does not fit in 16 KiB is asked for by sending the message again.
        """
        payload = struct.pack("=Q", sector) + encode(text) + b"\0"
        size = _LIST_SIZE if text.startswith("@") else _PLAIN_SIZE
        buffer = self._send(Ioctl.DM_TARGET_MSG, name, payload, size=size)
        start, flags = struct.unpack_from("=I8xI", buffer, 16)
        return decode_text(buffer, start) if flags & DATA_OUT else None

    # -- events

    def arm_poll(self) -> None:
        """Forget the events until now, for poll(2)."""
        self._call(Ioctl.DM_DEV_ARM_POLL)

    def wait(self, name: str, event_nr: int) -> DeviceInfo:
        """Wait until a device's last event is another one than number `event_nr`: its state then."""
        return decode_info(self._call(Ioctl.DM_DEV_WAIT, name, event=event_nr))


def _plain(name: str = "", uuid: str = "", *, flags: int = 0, event: int = 0, dev: int = 0) -> bytearray:
    """The argument of an ioctl without data of its own."""
    buffer = bytearray(_PLAIN_SIZE)
    raw_name = encode_limited(name, NAME_MAX, "name")
    raw_uuid = encode_limited(uuid, UUID_MAX, "uuid")
    HEADER.pack_into(buffer, 0, *_INTERFACE, _PLAIN_SIZE, HEADER.size, 0, 0, flags, event, 0, dev, raw_name, raw_uuid)
    return buffer


def _open(path: str) -> int:
    try:
        return open_misc(path, "device-mapper", "dm_mod")
    except PermissionError as error:
        raise NotPermitted("device-mapper needs root", hint="run as root") from error
    except OSError as error:
        raise DriverUnsupported(f"this kernel has no device-mapper ({error.filename}: {error.strerror})") from error
