"""The bytes of the device-mapper interface, against buffers built here by the kernel's rules."""

import errno
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinpool.dm import DeviceEntry, TableEntry, TargetVersion, Unknown
from thinpool.dm.control import Control
from thinpool.dm.failures import failure
from thinpool.dm.protocol import (
    HEADER,
    NAME_MAX,
    SPEC,
    UUID_MAX,
    Ioctl,
    check_new_name,
    decode_dependencies,
    decode_device,
    decode_devices,
    decode_info,
    decode_table,
    decode_versions,
    encode,
    encode_device,
    encode_limited,
    encode_table,
)
from thinpool.errors import ConfigError, DriverUnsupported

_majors = st.integers(0, (1 << 12) - 1)
_minors = st.integers(0, (1 << 20) - 1)


def _texts(limit: int, *, least: int = 1) -> st.SearchStrategy[str]:
    raw = st.binary(min_size=least, max_size=limit).map(lambda raw: raw.replace(b"\0", b"x"))
    return raw.map(lambda raw: raw.decode("utf-8", "surrogateescape"))


_devices = st.builds(
    DeviceEntry,
    _texts(NAME_MAX),
    st.integers(1, (1 << 12) - 1),
    _minors,
    st.integers(0, (1 << 32) - 1),
    st.none() | st.just("") | _texts(UUID_MAX),
)
_entries = st.builds(
    TableEntry,
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.builds(Unknown, st.sampled_from(["crypt", "a" * 15, "snapshot-merge"]), _texts(300, least=0)),
)


def _buffer(data: bytes, *, count: int = 0) -> bytearray:
    header = HEADER.pack(4, 47, 0, HEADER.size + len(data), HEADER.size, count, 0, 0, 0, 0, 0, b"", b"")
    return bytearray(header + data)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 8)


def _list(devices: list[DeviceEntry]) -> bytes:
    """As list_devices in drivers/md/dm-ioctl.c."""
    parts = []
    for number, device in enumerate(devices):
        head = 12 + len(encode(device.name)) + 1
        tail = struct.pack("=II", device.event_nr or 0, {None: 0, "": 2}.get(device.uuid, 1))
        if device.uuid:
            tail = _padded(tail + encode(device.uuid) + b"\0")
        size = head + -head % 8 + len(tail)
        following = size if number + 1 < len(devices) else 0
        dev = encode_device(device.major, device.minor)
        parts.append(_padded(struct.pack("=QI", dev, following) + encode(device.name) + b"\0") + tail)
    return b"".join(parts) or bytes(16)


@given(_majors, _minors)
def test_device_numbers(major: int, minor: int) -> None:
    assert decode_device(encode_device(major, minor)) == (major, minor)


@given(st.lists(_devices, max_size=20))
def test_the_list_of_devices(devices: list[DeviceEntry]) -> None:
    assert list(decode_devices(_buffer(_list(devices)), 47)) == devices


def test_the_list_of_an_old_kernel_has_names_only() -> None:
    name = b"seven78\0"
    data = struct.pack("=QI", encode_device(253, 1), 20) + name + struct.pack("=QI", encode_device(253, 2), 0) + name
    first, second = decode_devices(_buffer(data), 36)
    assert first == DeviceEntry("seven78", 253, 1, None, None)
    assert second == DeviceEntry("seven78", 253, 2, None, None)


@given(st.lists(_entries, max_size=10))
def test_a_table_is_read_back(table: list[TableEntry]) -> None:
    """As retrieve_status in drivers/md/dm-ioctl.c, where offsets count from the first line."""
    data = b""
    for entry in table:
        params = _padded(encode(entry.target.params()) + b"\0")
        following = len(data) + SPEC.size + len(params)
        kind = encode(entry.target.kind)
        data += SPEC.pack(entry.start_sectors, entry.length_sectors, 0, following, kind) + params
    assert decode_table(_buffer(data, count=len(table))) == table


@given(st.lists(_entries, max_size=10))
def test_a_table_is_written(table: list[TableEntry]) -> None:
    """As table_load reads it: next_target in drivers/md/dm-ioctl.c, where offsets count from each line."""
    data, at = encode_table(table), 0
    for entry in table:
        start, length, _, following, kind = SPEC.unpack_from(data, at)
        assert (start, length, kind.rstrip(b"\0").decode()) == (
            entry.start_sectors,
            entry.length_sectors,
            entry.target.kind,
        )
        params = data[at + SPEC.size : at + following]
        assert params[: params.index(0)] == encode(entry.target.params())
        assert following % 8 == 0
        at += following
    assert at == len(data)


@given(st.lists(st.tuples(_majors, _minors), max_size=20))
def test_dependencies(devices: list[tuple[int, int]]) -> None:
    data = struct.pack(f"=II{len(devices)}Q", len(devices), 0, *(encode_device(*device) for device in devices))
    assert decode_dependencies(_buffer(data)) == devices


@given(st.lists(st.builds(TargetVersion, _texts(15), st.tuples(*[st.integers(0, 255)] * 3)), max_size=8))
def test_versions(targets: list[TargetVersion]) -> None:
    data = b""
    for number, target in enumerate(targets):
        name = _padded(encode(target.name) + b"\0")
        following = 16 + len(name) if number + 1 < len(targets) else 0
        data += struct.pack("=IIII", following, *target.version) + name
    assert list(decode_versions(_buffer(data))) == targets


@given(_texts(NAME_MAX), _texts(UUID_MAX, least=0), _majors, _minors, st.integers(0, (1 << 19) - 1))
def test_the_state_of_a_device(name: str, uuid: str, major: int, minor: int, flags: int) -> None:
    raw = HEADER.pack(
        4, 47, 0, 512, 312, 3, 2, flags, 9, 0, encode_device(major, minor), encode(name), encode(uuid)
    )  # fmt: skip
    info = decode_info(bytearray(raw))
    assert (info.name, info.uuid, info.major, info.minor) == (name, uuid, major, minor)
    assert (info.target_count, info.open_count, info.event_nr) == (3, 2, 9)
    found = [info.read_only, info.suspended, info.active, info.inactive, info.deferred_remove]
    assert found == [bool(flags >> bit & 1) for bit in (0, 1, 5, 6, 17)]


@pytest.mark.parametrize(("text", "limit"), [("n" * 128, NAME_MAX), ("\u00e9" * 64, NAME_MAX), ("a\0b", NAME_MAX)])
def test_what_a_field_cannot_hold(text: str, limit: int) -> None:
    assert len(encode_limited("n" * limit, limit, "name")) == limit
    with pytest.raises(ConfigError, match="accepted are 127 bytes without NUL"):
        encode_limited(text, limit, "name")


@pytest.mark.parametrize("name", ["", ".", "..", "control", "a/b", "/"])
def test_what_no_device_can_be_called(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a device-mapper device"):
        check_new_name(name)


@given(st.sampled_from(Ioctl), st.sampled_from(sorted(errno.errorcode)), _texts(20, least=0))
@example(Ioctl.DM_DEV_REMOVE, errno.EBUSY, "pool")
def test_a_failure_says_what_when_and_why(ioctl: Ioctl, code: int, device: str) -> None:
    error = failure(ioctl, device, code)
    assert (error.ioctl, error.device, error.errno) == (ioctl.name, device or None, code)
    assert error.message.startswith(f"{ioctl.name} {device}".strip())
    assert not error.message.endswith(".")


def test_requests_are_those_of_the_header() -> None:
    assert Ioctl.DM_VERSION.request == 0xC138FD00
    assert Ioctl.DM_GET_TARGET_VERSION.request == 0xC138FD11


def test_a_control_device_that_is_none() -> None:
    with pytest.raises(DriverUnsupported, match="does not speak device-mapper: Inappropriate ioctl for device"):
        Control("/dev/null")
