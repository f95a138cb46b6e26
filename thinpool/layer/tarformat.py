"""The tar format: headers and extended header records, read and written.

ustar and pax are those of POSIX.1-2017 (pax, "ustar Interchange Format" and "pax Interchange Format"); GNU's additions
are documented in GNU tar's manual, "Basic Tar Format" (base-256 numbers, long names, sparse members).
Reading trusts nothing: a field that is no number, or is out of its range, is an `ArchiveError`.
"""

import enum
import struct
from collections.abc import Iterator, Sequence
from zlib import adler32

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown

BLOCK = 512
END = bytes(2 * BLOCK)
ZERO_BLOCK = bytes(BLOCK)
NANOSECONDS = 1_000_000_000

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_FIELDS = struct.Struct("100s48s8sc100s8s32s32s8s8s155s12x")
_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \0"
_DEVICE_FLAGS = frozenset({b"3", b"4"})
_FIVE_ENDS = bytes(5)
_OCTAL = b"01234567"
_DIGITS = b"0123456789"
_BLANK_SUM = b" " * 8
_BLANK_TOTAL = sum(_BLANK_SUM)
_SUM_AT = slice(148, 156)
_NAME_FIELD = 100
_MOST_OCTAL_ID = 0o7777777
_MOST_OCTAL_LONG = 0o77777777777
_MOST_SECONDS = 1 << 63
_LONGEST_NUMBER = 40


class EntryType(enum.Enum):
    """What an entry of an archive is, by its type flag."""

    REGULAR = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHARACTER = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_DEVICES = frozenset({EntryType.CHARACTER, EntryType.BLOCK})


@attrs.frozen
class Header:
    """A header block as it stands, before extended headers change it.

    Attributes:
        name: name and prefix, joined.
        mode: permission bits, set-id and sticky bits.
        uid: owner.
        gid: group.
        size: bytes of data that follow.
        mtime_ns: time of modification in nanoseconds.
        flag: the type flag.
        link: target of a link.
        major: major device number.
        minor: minor device number.
        raw: the block.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    flag: bytes
    link: bytes
    major: int
    minor: int
    raw: bytes


def parse_header(block: bytes) -> Header:
    """Read a header block.

    Raises:
        ArchiveError: the checksum is wrong or a field is no number.
    """
    check_sum(block)
    name, numbers, _, flag, link, magic, _, _, major, minor, prefix = _FIELDS.unpack(block)
    mode, uid, gid, size, mtime = _numbers(numbers)
    gnu = magic == _GNU_MAGIC
    path = name.partition(b"\0")[0]
    if prefix[:1] != b"\0" and not gnu and magic[:5] == b"ustar":
        path = prefix.partition(b"\0")[0] + b"/" + path
    device = flag in _DEVICE_FLAGS
    return Header(
        path,
        mode & 0o7777,
        uid,
        gid,
        size,
        mtime * NANOSECONDS,
        flag,
        link.partition(b"\0")[0],
        number(major, "device number") if device else 0,
        number(minor, "device number") if device else 0,
        block,
    )


def check_sum(block: bytes) -> None:
    """Refuse a block whose checksum is neither the sum of its unsigned bytes nor, as some old tars wrote, signed."""
    field = block[_SUM_AT]
    total = byte_sum(block) - sum(field) + _BLANK_TOTAL
    if field == b"%06o\0 " % total:
        return
    stored = number(field, "checksum")
    if stored == total:
        return
    negative = sum(1 for byte in block[:148] if byte > 127) + sum(1 for byte in block[156:] if byte > 127)
    if stored != total - 256 * negative:
        raise ArchiveError("not a tar header: its checksum is wrong")


def byte_sum(block: bytes) -> int:
    """The sum of the bytes of at most 512.

    Adler-32 has the sum, plus 1 and modulo 65521, in its lower half (RFC 1950): exact for 256 bytes, and much faster
    than adding in Python.
    """
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


def _numbers(fields: bytes) -> tuple[int, int, int, int, int]:
    """Mode, owner, group, size and time: five fields one after the other."""
    if fields.translate(None, _OCTAL) == _FIVE_ENDS:  # octal digits and five NULs
        mode, uid, gid, size, mtime, empty = fields.split(b"\0")
        if not empty and len(mode) == len(uid) == len(gid) == 7 and len(size) == len(mtime) == 11:
            return int(mode, 8), int(uid, 8), int(gid, 8), int(size, 8), int(mtime, 8)
    return (
        number(fields[:8], "mode"),
        number(fields[8:16], "owner"),
        number(fields[16:24], "group"),
        number(fields[24:36], "size"),
        number(fields[36:], "time", signed=True),
    )


def number(field: bytes, what: str, *, signed: bool = False) -> int:
    """A number in a header: octal digits, or base-256 where the first bit is set (two's complement)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if value < 0 and not signed:
            raise ArchiveError(f"not a tar header: negative {what} {value}")
        if abs(value) >= _MOST_SECONDS:
            raise ArchiveError(f"not a tar header: {what} {value} is out of range")
        return value
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(_OCTAL):
        raise ArchiveError(f"not a tar header: {what} {shown(digits)} is not octal")
    return int(digits, 8) if digits else 0


def records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of an extended header, in their order.

    Raises:
        ArchiveError: a record that does not say its own length rightly.
    """
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + _LONGEST_NUMBER)
        digits = data[position:blank]
        if blank < 0 or not digits or digits.strip(_DIGITS):
            if not data[position:].strip(b"\0"):  # some writers pad the last record
                return
            raise ArchiveError("malformed extended header: a record does not begin with its length")
        end = position + int(digits)
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if end > len(data) or end <= blank + 1 or data[end - 1] != 0x0A or not equals or not key:
            raise ArchiveError("malformed extended header: a record is not LENGTH KEY=VALUE")
        yield key, value
        position = end


def record(key: bytes, value: bytes) -> bytes:
    """One record of an extended header."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while True:
        text = b"%d" % length
        if len(text) + len(body) == length:
            return text + body
        length = len(text) + len(body)


def decimal(value: bytes, what: str) -> int:
    """A number in an extended header record: decimal digits.

    Raises:
        ArchiveError: anything else.
    """
    if not value or len(value) > _LONGEST_NUMBER or value.strip(_DIGITS):
        raise ArchiveError(f"malformed extended header: {what} {shown(value)} is not a number")
    result = int(value)
    if result >= _MOST_SECONDS:
        raise ArchiveError(f"malformed extended header: {what} {shown(value)} is out of range")
    return result


def parse_time(value: bytes) -> int:
    """Seconds with a fraction, as in `1350244992.023960108` or `-1.5`, as nanoseconds; finer digits are dropped."""
    digits = value.removeprefix(b"-")
    whole, _, fraction = digits.partition(b".")
    if not (whole or fraction) or len(whole) > _LONGEST_NUMBER or (whole + fraction).strip(_DIGITS):
        raise ArchiveError(f"malformed extended header: time {shown(value)} is not a number")
    seconds = int(whole or b"0")
    if seconds >= _MOST_SECONDS:
        raise ArchiveError(f"malformed extended header: time {shown(value)} is out of range")
    result = seconds * NANOSECONDS + int(fraction[:9].ljust(9, b"0"))
    return -result if value.startswith(b"-") else result


def format_time(time_ns: int) -> bytes:
    """Nanoseconds as seconds with a fraction, exactly."""
    seconds, fraction = divmod(abs(time_ns), NANOSECONDS)
    text = b"%d.%09d" % (seconds, fraction)
    return (b"-" if time_ns < 0 else b"") + text.rstrip(b"0").rstrip(b".")


def escape_key(name: bytes) -> bytes:
    """An extended attribute's name as part of a record's key, where `=` ends the key: `%3D`, and `%25` for `%`."""
    return name.replace(b"%", b"%25").replace(b"=", b"%3D")


def unescape_key(key: bytes) -> bytes:
    """The inverse of `escape_key`."""
    return key.replace(b"%3D", b"=").replace(b"%25", b"%")


@attrs.frozen
class Entry:
    """An entry to write.

    Attributes:
        name: relative to the root; of a directory with a slash at its end.
        type: what it is.
        mode: permission bits.
        uid: owner.
        gid: group.
        size: bytes of data that follow.
        mtime_ns: time of modification in nanoseconds.
        link: target of a link.
        major: major device number.
        minor: minor device number.
        extra: more records of the extended header, complete.
    """

    name: bytes
    type: EntryType
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    extra: Sequence[bytes] = ()


def format_entry(entry: Entry) -> bytes:
    """The header of an entry, with an extended header before it where ustar cannot say it all; the same every time."""
    name, link, size, mtime_ns = entry.name, entry.link, entry.size, entry.mtime_ns
    extended: list[bytes] = []
    if len(name) > _NAME_FIELD or len(link) > _NAME_FIELD:
        extended += _long_names(name, link)
    seconds, fraction = divmod(mtime_ns, NANOSECONDS)
    if fraction or not 0 <= seconds <= _MOST_OCTAL_LONG:
        extended.append(record(b"mtime", format_time(mtime_ns)))
    if entry.uid > _MOST_OCTAL_ID:
        extended.append(record(b"uid", b"%d" % entry.uid))
    if entry.gid > _MOST_OCTAL_ID:
        extended.append(record(b"gid", b"%d" % entry.gid))
    if size > _MOST_OCTAL_LONG:
        extended.append(record(b"size", b"%d" % size))
    extended += entry.extra
    header = _block(entry)
    if not extended:
        return header
    data = b"".join(extended)
    return _extended_block(name, len(data)) + data + padding(len(data)) + header


def padding(size: int) -> bytes:
    """The zeros between the end of so many bytes of data and the next header."""
    return bytes(-size % BLOCK)


def _long_names(name: bytes, link: bytes) -> Iterator[bytes]:
    long = [(key, value) for key, value in ((b"path", name), (b"linkpath", link)) if len(value) > _NAME_FIELD]
    if not all(_is_utf8(value) for _, value in long):
        yield record(b"hdrcharset", b"BINARY")
    for key, value in long:
        yield record(key, value)


def _block(entry: Entry) -> bytes:
    seconds = entry.mtime_ns // NANOSECONDS
    device = entry.type in _DEVICES
    return _summed(
        _HEADER.pack(
            entry.name[:_NAME_FIELD],
            b"%07o" % entry.mode,
            b"%07o" % (entry.uid if entry.uid <= _MOST_OCTAL_ID else 0),
            b"%07o" % (entry.gid if entry.gid <= _MOST_OCTAL_ID else 0),
            b"%011o" % (entry.size if entry.size <= _MOST_OCTAL_LONG else 0),
            b"%011o" % (seconds if 0 <= seconds <= _MOST_OCTAL_LONG else 0),
            _BLANK_SUM,
            entry.type.value,
            entry.link[:_NAME_FIELD],
            _MAGIC,
            b"",
            b"",
            b"%07o" % entry.major if device else b"",
            b"%07o" % entry.minor if device else b"",
            b"",
        )
    )


def _extended_block(name: bytes, size: int) -> bytes:
    path = _extended_name(name)
    zero, long_zero = b"0000000", b"00000000000"
    return _summed(
        _HEADER.pack(
            path,
            b"0000644",
            zero,
            zero,
            b"%011o" % size,
            long_zero,
            _BLANK_SUM,
            b"x",
            b"",
            _MAGIC,
            b"",
            b"",
            b"",
            b"",
            b"",
        )
    )


def _summed(block: bytes) -> bytes:
    return block[: _SUM_AT.start] + b"%06o\0 " % byte_sum(block) + block[_SUM_AT.stop :]


def _extended_name(name: bytes) -> bytes:
    """A name for the extended header that readers who do not know it would make a file of."""
    return b"PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2][: _NAME_FIELD - 11]


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
