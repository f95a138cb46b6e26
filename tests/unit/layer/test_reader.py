"""The archive reader on archives that were made byte by byte."""

import io
import tarfile
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.layer.tars import (
    BLOCK,
    END,
    archive,
    base256,
    entry,
    gnu_long,
    header,
    octal,
    padded,
    pax,
    record,
    sample,
)
from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.limits import Limits
from thinpool.layer.reader import Member, TarReader
from thinpool.layer.tarformat import EntryType


@attrs.frozen
class Read:
    member: Member
    data: list[tuple[int, bytes]]

    @property
    def content(self) -> bytes:
        """The file as it would be written."""
        content = bytearray(self.member.size)
        for offset, piece in self.data:
            content[offset : offset + len(piece)] = piece
        return bytes(content)


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read(data: bytes, limits: Limits | None = None, chunk: int = 1000) -> list[Read]:
    reader = TarReader(chunks(data, chunk), limits or Limits())
    return [Read(member, list(reader.data())) for member in reader.members()]


def one(data: bytes, limits: Limits | None = None) -> Read:
    (only,) = read(data, limits)
    return only


# -- what is understood


def test_every_field_of_ustar() -> None:
    got = one(archive(entry(b"n", b"3", mode=0o4755, uid=1, gid=2, mtime=3, major=4, minor=5, prefix=b"p/q")))
    assert got.member == Member(b"p/q/n", EntryType.CHARACTER, 0o4755, 1, 2, 0, 3_000_000_000, b"", 4, 5, {})


def test_v7_has_no_prefix_and_its_directories_are_files_with_a_slash() -> None:
    got = [each.member for each in read(archive(entry(b"d/", b"\0", magic=bytes(8), prefix=b"no"), entry(b"f", b"\0")))]
    assert [(member.name, member.type) for member in got] == [(b"d/", EntryType.DIRECTORY), (b"f", EntryType.REGULAR)]


def test_gnu_has_no_prefix_but_times_in_its_place() -> None:
    assert one(archive(entry(b"f", magic=b"ustar  \0", prefix=octal(1_700_000_000, 12)))).member.name == b"f"


def test_numbers_in_base_256() -> None:
    got = one(archive(entry(b"f", uid=base256(4_294_967_294, 8), mtime=base256(-5, 12)))).member
    assert (got.uid, got.mtime_ns) == (4_294_967_294, -5_000_000_000)


@pytest.mark.parametrize("blank", [b"", b" ", b"      \0"])
def test_blank_numbers_are_zero(blank: bytes) -> None:
    assert one(archive(entry(b"f", uid=blank))).member.uid == 0


def test_numbers_may_begin_with_blanks() -> None:
    assert one(archive(entry(b"f", uid=b"   17 \0"))).member.uid == 0o17


def test_signed_checksums_of_old_tars() -> None:
    block = header("\u00e9".encode(), mtime=7)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    assert one(archive(block[:148] + b"%06o\0 " % signed + block[156:])).member.mtime_ns == 7_000_000_000


def test_extended_headers_replace_the_header() -> None:
    records = {
        b"path": b"p" * 300,
        b"linkpath": b"l" * 300,
        b"uid": b"3000000000",
        b"gid": b"4",
        b"mtime": b"-1.5",
        b"SCHILY.xattr.user.a%3Db%25": b"\0\n=",
        b"LIBARCHIVE.xattr.user.c%20d": b"AAEC",
        b"comment": b"ignored",
        b"atime": b"1",
    }
    got = one(archive(pax(records), entry(b"n", b"2", link=b"short"))).member
    assert (got.name, got.link) == (b"p" * 300, b"l" * 300)
    assert (got.uid, got.gid, got.mtime_ns) == (3_000_000_000, 4, -1_500_000_000)
    assert got.xattrs == {"user.a=b%": b"\0\n=", "user.c d": b"\0\1\2"}


def test_a_size_in_an_extended_header_is_the_size() -> None:
    got = read(archive(pax({b"size": b"600"}), header(b"f") + padded(b"x" * 600), entry(b"g")))
    assert [each.member.name for each in got] == [b"f", b"g"]
    assert got[0].content == b"x" * 600


def test_global_headers_count_for_all_that_follow_until_replaced() -> None:
    data = archive(
        pax({b"uid": b"5", b"mtime": b"9"}, b"g"), entry(b"a"), pax({b"uid": b"6"}), entry(b"b"), pax({b"uid": b""}),
        entry(b"c", uid=7), pax({b"uid": b"8"}, b"g"), entry(b"d"),
    )  # fmt: skip
    got = [each.member for each in read(data)]
    assert [(member.uid, member.mtime_ns) for member in got] == [
        (5, 9_000_000_000),
        (6, 9_000_000_000),
        (7, 9_000_000_000),
        (8, 9_000_000_000),
    ]


def test_names_that_are_too_long_for_gnu_headers() -> None:
    got = one(archive(gnu_long(b"K", b"l" * 500), gnu_long(b"L", b"n" * 500), entry(b"nnn", b"2", link=b"lll"))).member
    assert (got.name, got.link) == (b"n" * 500, b"l" * 500)


def test_a_label_of_a_volume_is_no_entry() -> None:
    assert [each.member.name for each in read(archive(entry(b"label", b"V"), entry(b"f")))] == [b"f"]


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_is_no_file_has_no_data_whatever_its_size(flag: bytes) -> None:
    got = read(archive(header(b"x", flag, size=5000, link=b"y"), entry(b"f", data=b"1")))
    assert [(each.member.name, each.member.size) for each in got] == [(b"x", 0), (b"f", 1)]


def test_data_that_is_not_asked_for_is_skipped() -> None:
    reader = TarReader(chunks(archive(entry(b"a", data=b"x" * 5000), entry(b"b", data=b"y")), 100), Limits())
    assert [member.name for member in reader.members()] == [b"a", b"b"]


@given(size=st.integers(1, 3000))
def test_pieces_of_any_size(size: int) -> None:
    expected = [(each.member, each.content) for each in read(sample(), chunk=10_000)]
    assert [(each.member, each.content) for each in read(sample(), chunk=size)] == expected


def test_an_archive_of_tarfile() -> None:
    got = [each.member for each in read(sample())]
    with tarfile.open(fileobj=io.BytesIO(sample())) as tar:
        assert [member.name.rstrip(b"/").decode() for member in got] == tar.getnames()
    assert got[3].mtime_ns == 1_700_000_000_123_456_789
    assert got[3].xattrs == {"user.k": b"value"}


# -- sparse members: the same file in each of the four formats

EXTENTS = [(1024, b"a" * 512), (4096, b"b" * 700)]
SPARSE = bytes(1024) + b"a" * 512 + bytes(2560) + b"b" * 700 + bytes(204)
STORED = b"".join(data for _, data in EXTENTS)


def old_gnu(extents: list[tuple[int, int]], size: int, stored: bytes) -> bytes:
    def pairs(count: int) -> bytes:
        taken = [extents.pop(0) for _ in range(min(count, len(extents)))]
        return b"".join(octal(a, 12) + octal(b, 12) for a, b in taken).ljust(24 * count, b"\0")

    block = bytearray(header(b"f", b"S", size=len(stored), magic=b"ustar  \0"))
    block[345:500] = bytes(155)
    block[386:482] = pairs(4)
    block[482] = 1 if extents else 0
    block[483:495] = octal(size, 12)
    extensions = b""
    while extents:
        extensions += pairs(21) + (b"\1" if extents else b"\0") + bytes(7)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + extensions + padded(stored)


def sparse_0_0(extents: list[tuple[int, int]], size: int, stored: bytes) -> bytes:
    data = record(b"GNU.sparse.size", b"%d" % size) + record(b"GNU.sparse.numblocks", b"%d" % len(extents))
    for offset, length in extents:
        data += record(b"GNU.sparse.offset", b"%d" % offset) + record(b"GNU.sparse.numbytes", b"%d" % length)
    return pax(data) + entry(b"f", data=stored)


def sparse_0_1(extents: list[tuple[int, int]], size: int, stored: bytes) -> bytes:
    numbers = ",".join(f"{offset},{length}" for offset, length in extents).encode()
    records = {b"GNU.sparse.size": b"%d" % size, b"GNU.sparse.map": numbers, b"GNU.sparse.name": b"f"}
    return pax(records) + entry(b"./GNUSparseFile.1/f", data=stored)


def sparse_1_0(extents: list[tuple[int, int]], size: int, stored: bytes) -> bytes:
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": b"f",
        b"GNU.sparse.realsize": b"%d" % size,
    }
    data = padded("".join(f"{number}\n" for number in numbers).encode()) + stored
    return pax(records) + entry(b"./GNUSparseFile.1/f", data=data)


FORMATS = pytest.mark.parametrize("form", [old_gnu, sparse_0_0, sparse_0_1, sparse_1_0])


@FORMATS
def test_sparse_members(form: object) -> None:
    assert callable(form)
    got = read(archive(form([(1024, 512), (4096, 700), (5000, 0)], 5000, STORED), entry(b"g", data=b"after")))
    assert [(each.member.name, each.content) for each in got] == [(b"f", SPARSE), (b"g", b"after")]
    assert got[0].data == [(1024, b"a" * 512), (4096, b"b" * 700)] or len(got[0].data) > 2


@FORMATS
def test_sparse_members_of_many_parts(form: object) -> None:
    assert callable(form)
    extents = [(number * 1024, 512) for number in range(100)]
    got = one(archive(form(list(extents), 102_400, b"z" * 51_200)))
    assert got.content == (b"z" * 512 + bytes(512)) * 100


@FORMATS
@pytest.mark.parametrize(
    "extents",
    [
        [(1024, 512), (512, 700)],
        [(1024, 700), (1500, 512)],
        [(4096, 1212)],
        [(0, 1211)],
        [(1024, 512)],
        [(1024, 512), (4096, 701)],
        [(8 << 30, 1212)],
    ],
)
def test_sparse_maps_that_lie(form: object, extents: list[tuple[int, int]]) -> None:
    assert callable(form)
    with pytest.raises(ArchiveError, match="sparse map"):
        read(archive(form(list(extents), 5000, STORED)))


def test_a_sparse_map_without_end_is_beyond_the_limit() -> None:
    def lines() -> Iterator[bytes]:
        yield pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9" * 15})
        yield header(b"f", size=base256(1 << 40, 12))
        yield b"99999999999\n"
        while True:
            yield b"1\n" * BLOCK

    reader = TarReader(lines(), Limits(size=1 << 60))
    with pytest.raises(UnsafeArchive, match=r"sparse map of more than 1\.00 MiB"):
        list(reader.members())


# -- what is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 100, "not a tar archive"),
        (b"x" * 2000, "not a tar archive"),
        (entry(b"f")[:300], "not a tar archive"),
        (entry(b"f"), "cut short: it has no end mark"),
        (entry(b"f", data=b"x" * 600)[:-1], "cut short"),
        (entry(b"f", data=b"x" * 600)[:BLOCK], "cut short"),
        (entry(b"f") + b"half a header", "cut short"),
        (archive(pax({b"uid": b"1"})), "cut short: an extended header is its last entry"),
        (archive(entry(b"f")) + b"x", "garbage after the end"),
        (archive(entry(b"f")) + bytes(BLOCK) + entry(b"g"), "garbage after the end"),
        (entry(b"f") + bytes(BLOCK) + entry(b"g") + END, "garbage after the end"),
        (archive(entry(b"f"), header(b"g", checksum=b"000001\0 ")), "checksum is wrong"),
        (archive(entry(b"f", size=b"12x")), "not octal"),
        (archive(entry(b"f", size=b"-1")), "not octal"),
        (archive(entry(b"f", size=b"0o12")), "not octal"),
        (archive(entry(b"f", size=b"1_2")), "not octal"),
        (archive(entry(b"f", size=base256(-1, 12))), "negative size"),
        (archive(entry(b"f", uid=base256(-1, 8))), "negative owner"),
        (archive(entry(b"f", size=b"\x80" + b"\x7f" * 11)), "out of range"),
        (archive(entry(b"f", b"Z")), "unknown type"),
        (archive(entry(b"f", b"M")), "unknown type"),
        (archive(pax({b"size": b"-1"}), entry(b"f")), "not a number"),
        (archive(pax({b"size": b"9" * 30}), entry(b"f")), "out of range"),
        (archive(pax({b"size": b"9" * 5000}), entry(b"f")), "not a number"),
        (archive(pax({b"uid": "\u0661".encode()}), entry(b"f")), "not a number"),
        (archive(pax({b"mtime": b"1e9"}), entry(b"f")), "not a number"),
        (archive(pax({b"mtime": b"-"}), entry(b"f")), "not a number"),
        (archive(pax({b"mtime": b"1" * 25}), entry(b"f")), "out of range"),
        (archive(pax({b"path": b"a\0b"}), entry(b"f")), "NUL"),
        (archive(pax({b"SCHILY.xattr.": b"v"}), entry(b"f")), "without a proper name"),
        (archive(pax({b"SCHILY.acl.access": b"nonsense"}), entry(b"f")), "malformed access control list"),
        (archive(pax({b"SCHILY.acl.access": b"user:4294967295:rwx"}), entry(b"f")), "malformed access control list"),
        (archive(pax({b"SCHILY.acl.access": b"user:%s:rwx" % (b"9" * 9999)}), entry(b"f")), "malformed access control"),
        (archive(pax(b"5 a=\n"[:-1]), entry(b"f")), "malformed extended header"),
        (archive(pax(b"9 a=b\n"), entry(b"f")), "malformed extended header"),
        (archive(pax(b"0 a=b\n"), entry(b"f")), "malformed extended header"),
        (archive(pax(b"-6 a=b\n"), entry(b"f")), "malformed extended header"),
        (archive(pax(b"6 ab\n\n"), entry(b"f")), "malformed extended header"),
        (archive(pax(b"5 =b\n"), entry(b"f")), "malformed extended header"),
        (archive(pax(b"9" * 100 + b" a=b\n"), entry(b"f")), "malformed extended header"),
        (archive(pax({b"GNU.sparse.offset": b"1"}), entry(b"f")), "sparse map"),
        (archive(pax({b"GNU.sparse.numbytes": b"1"}), entry(b"f")), "sparse map"),
        (archive(pax({b"GNU.sparse.major": b"1"}), entry(b"f", data=b"1\nx\n")), "cut short|sparse"),
    ],
)
def test_damage(data: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        read(data)


def test_half_an_end_mark_is_enough_with_a_warning() -> None:
    reader = TarReader(iter([entry(b"f") + bytes(BLOCK)]), Limits())
    assert [member.name for member in reader.members()] == [b"f"]
    assert reader.warnings == ["the archive has half an end mark"]


def test_an_archive_of_nothing_but_an_end_mark_is_empty() -> None:
    assert read(END) == []


def test_a_cut_anywhere_before_the_end_mark_is_noticed() -> None:
    data = sample()
    for cut in range(len(data.rstrip(b"\0")) + 1):
        with pytest.raises(ArchiveError):
            read(data[:cut])


# -- limits


@pytest.mark.parametrize(
    ("data", "limits", "message"),
    [
        (archive(entry(b"a"), entry(b"b")), Limits(entries=1), "more than 1 entries"),
        (archive(entry(b"a", data=b"1" * 9), entry(b"b", data=b"1" * 2)), Limits(size=10), "more than 10 B in all"),
        (archive(header(b"a", size=base256(1 << 50, 12))), Limits(), "more than 1.00 TiB"),
        (archive(pax({b"path": b"n" * 200}), entry(b"a")), Limits(path_length=199), "limit 199"),
        (archive(gnu_long(b"K", b"n" * 200), entry(b"a", b"2")), Limits(path_length=199), "limit 199"),
        (archive(pax({b"path": b"n" * 5000}), entry(b"a")), Limits(header_size=4096), "extended headers of more"),
        (archive(header(b"x", b"x", size=base256(1 << 33, 12))), Limits(), "extended headers of more"),
        (archive(header(b"x", b"L", size=base256(1 << 60, 12))), Limits(), "extended headers of more"),
        (archive(*[pax(b"", b"x")] * 3000), Limits(), "extended headers of more"),
        (archive(*[pax({b"SCHILY.xattr.k%d" % n: b"x" * 999}, b"g") + entry(b"f") for n in range(1000)]), Limits(),
         "global extended headers"),
    ],
)  # fmt: skip
def test_limits(data: bytes, limits: Limits, message: str) -> None:
    with pytest.raises(UnsafeArchive, match=message):
        read(data, limits)


def test_headers_without_end_are_beyond_the_limit() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield gnu_long(b"L", b"n" * 400)

    with pytest.raises(UnsafeArchive, match="extended headers of more"):
        next(TarReader(endless(), Limits()).members())


# -- anything at all


def complaint(data: bytes) -> str:
    """What is wrong with an archive, or nothing; any other exception passes."""
    try:
        read(data)
    except ArchiveError as error:
        return error.message
    return ""


@given(data=st.binary(max_size=3000))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    message = complaint(data)
    assert "\n" not in message
    assert not message.endswith(".")


@given(
    edits=st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    fix=st.booleans(),
)
def test_a_valid_archive_with_bytes_changed(edits: list[tuple[int, int]], *, fix: bool) -> None:
    data = bytearray(sample())
    for position, value in edits:
        data[position] = value
        if fix:  # let the change pass the checksum, if it is in a header
            start = position - position % BLOCK
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    assert "\n" not in complaint(bytes(data))
