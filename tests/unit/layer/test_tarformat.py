"""Headers: what is written is read back, by ourselves and by others, and is the same every time."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.layer.tars import record as plain_record
from thinpool.errors import ArchiveError
from thinpool.layer.limits import Limits
from thinpool.layer.reader import TarReader
from thinpool.layer.tarformat import (
    BLOCK,
    END,
    Entry,
    EntryType,
    escape_key,
    format_entry,
    format_time,
    parse_time,
    record,
    records,
    unescape_key,
)

name_bytes = st.lists(
    st.binary(min_size=1, max_size=255).filter(lambda part: b"/" not in part and b"\0" not in part),
    min_size=1,
    max_size=6,
).map(b"/".join)
ids = st.one_of(st.sampled_from((0, 0o7777777, 0o7777777 + 1, 2**32 - 2)), st.integers(0, 2**32 - 2))
times = st.one_of(st.integers(-(2**62), 2**62), st.integers(-(2**40), 2**40).map(lambda seconds: seconds * 10**9))
keys = st.binary(min_size=1, max_size=40).filter(lambda key: b"=" not in key)
written = st.builds(
    Entry,
    name=name_bytes,
    type=st.sampled_from([EntryType.HARDLINK, EntryType.SYMLINK, EntryType.CHARACTER, EntryType.FIFO]),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    mtime_ns=times,
    link=name_bytes,
    major=st.integers(0, 4095),
    minor=st.integers(0, 2**20 - 1),
)


@given(entry=written)
def test_what_is_written_is_read_back(entry: Entry) -> None:
    (member,) = TarReader(iter([format_entry(entry) + END]), Limits()).members()
    assert (member.name, member.type, member.mode) == (entry.name, entry.type, entry.mode)
    assert (member.uid, member.gid, member.mtime_ns) == (entry.uid, entry.gid, entry.mtime_ns)
    assert member.link == entry.link
    if entry.type is EntryType.CHARACTER:
        assert (member.major, member.minor) == (entry.major, entry.minor)


@given(entry=written)
def test_a_header_is_whole_blocks_and_always_the_same(entry: Entry) -> None:
    data = format_entry(entry)
    assert len(data) % BLOCK == 0
    assert data == format_entry(entry)


@given(entry=written)
def test_tarfile_reads_it(entry: Entry) -> None:
    with tarfile.open(fileobj=io.BytesIO(format_entry(entry) + END), errors="surrogateescape") as tar:
        (member,) = tar.getmembers()
    assert member.name.rstrip("/").encode(errors="surrogateescape") == entry.name.rstrip(b"/")
    assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
    assert member.mtime == pytest.approx(entry.mtime_ns / 1e9, abs=1)


@pytest.mark.parametrize("size", [0, 8 << 30, (8 << 30) - 1, 1 << 62])
def test_sizes(size: int) -> None:
    reader = TarReader(iter([format_entry(Entry(b"f", EntryType.REGULAR, size=size))]), Limits(size=1 << 63))
    assert next(reader.members()).size == size


def test_a_plain_entry_has_no_extended_header() -> None:
    entry = Entry(b"n" * 100, EntryType.SYMLINK, 0o777, 1, 2, mtime_ns=1_700_000_000_000_000_000, link=b"l" * 100)
    assert len(format_entry(entry)) == BLOCK


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, b"0"),
        (1, b"0.000000001"),
        (-1, b"-0.000000001"),
        (-1_500_000_000, b"-1.5"),
        (1_350_244_992_023_960_108, b"1350244992.023960108"),
        (10_000_000_000, b"10"),
        (-10_000_000_000, b"-10"),
    ],
)
def test_times(time_ns: int, text: bytes) -> None:
    assert format_time(time_ns) == text
    assert parse_time(text) == time_ns


@given(time_ns=times)
def test_times_come_back(time_ns: int) -> None:
    assert parse_time(format_time(time_ns)) == time_ns


@pytest.mark.parametrize(("text", "time_ns"), [(b"1.", 10**9), (b".5", 5 * 10**8), (b"1.0000000019", 1_000_000_001)])
def test_odd_times(text: bytes, time_ns: int) -> None:
    assert parse_time(text) == time_ns


@given(pairs=st.lists(st.tuples(keys, st.binary(max_size=1100)), max_size=5))
def test_records(pairs: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(record(*pair) for pair in pairs)
    assert data == b"".join(plain_record(*pair) for pair in pairs)
    assert list(records(data)) == pairs


@given(data=st.binary(max_size=100))
def test_any_bytes_as_records(data: bytes) -> None:
    try:
        pairs = list(records(data))
    except ArchiveError:
        return
    assert b"".join(record(*pair) for pair in pairs) == data.rstrip(b"\0") or pairs


@given(name=st.binary(max_size=40))
def test_keys_of_attributes(name: bytes) -> None:
    assert b"=" not in escape_key(name)
    assert unescape_key(escape_key(name)) == name
