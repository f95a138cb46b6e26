"""Archives made byte by byte, without the code under test and without the manners of a real writer."""

import io
import tarfile
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    data = bytearray(value.to_bytes(width, "big", signed=True))
    data[0] = data[0] | 0x80
    return bytes(data)


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """A header block; a field given as bytes is put in as it is."""

    def field(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else octal(value, width)

    parts = [name.ljust(100, b"\0"), field(mode, 8), field(uid, 8), field(gid, 8), field(size, 12), field(mtime, 12)]
    parts += [b" " * 8, flag, link.ljust(100, b"\0"), magic, bytes(64), field(major, 8), field(minor, 8)]
    parts += [prefix.ljust(155, b"\0"), bytes(12)]
    block = b"".join(parts)
    assert len(block) == BLOCK
    total = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def entry(name: bytes, flag: bytes = b"0", data: bytes = b"", **fields: int | bytes | None) -> bytes:
    """A header and its data."""
    if data:
        fields.setdefault("size", len(data))
    return header(name, flag, **fields) + padded(data)  # type: ignore[arg-type] # checked by header


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def pax(records: Mapping[bytes, bytes] | bytes, flag: bytes = b"x") -> bytes:
    """An extended header, of records or of any bytes."""
    data = records if isinstance(records, bytes) else b"".join(record(*item) for item in records.items())
    return entry(b"PaxHeaders/x", flag, data, size=len(data))


def gnu_long(flag: bytes, value: bytes) -> bytes:
    return entry(b"././@LongLink", flag, value + b"\0", magic=b"ustar  \0")


def archive(*entries: bytes) -> bytes:
    return b"".join(entries) + END


def sample() -> bytes:
    """A small archive of Python's tarfile with something of everything."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/fifo", tarfile.FIFOTYPE), ("d/" + "long" * 40, tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.mode = 0o755
            member.mtime = 1_700_000_000
            tar.addfile(member)
        member = tarfile.TarInfo("d/file")
        member.size = 1300
        member.mtime = 1_700_000_000
        member.pax_headers = {"mtime": "1700000000.123456789", "SCHILY.xattr.user.k": "value"}
        tar.addfile(member, io.BytesIO(b"x" * 1300))
        for name, kind, target in (("d/sym", tarfile.SYMTYPE, "file"), ("d/hard", tarfile.LNKTYPE, "d/file")):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = target
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("d/.wh.gone"))
    return file.getvalue()
