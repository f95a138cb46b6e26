"""Manifests: what is in comes out, by chains of any make, and nothing that is damaged is believed."""

import gc
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.filesystem.ext4.manifest import Builder, Device, Manifest, Name, Unfit
from thinpool.filesystem.ext4.naming import MOST_DELTAS, Names

UUID = bytes(range(16))
Layer = Mapping[int, frozenset[Name]]

_names = st.builds(Name, st.integers(2, 2**32 - 1), st.binary(min_size=1, max_size=255), st.integers(0, 2**32 - 1))
_inodes = st.one_of(st.integers(11, 40), st.integers(11, 2**32 - 1))
_records = st.sets(st.tuples(_inodes, _names), max_size=60)


def device(number: int) -> Device:
    return Device(b"p" * 16, number, number * 3, number * 7)


def built(added: set[tuple[int, Name]], removed: set[tuple[int, Name]], late: set[int] | None = None) -> Builder:
    builder = Builder()
    for inode, name in added:
        builder.add(inode, name)
    for inode, name in removed:
        builder.remove(inode, name)
    builder.late.extend(late or ())
    return builder


def by_inode(records: set[tuple[int, Name]]) -> Mapping[int, set[Name]]:
    found: dict[int, set[Name]] = defaultdict(set)
    for inode, name in records:
        found[inode].add(name)
    return found


def assert_holds(names: Names, records: set[tuple[int, Name]], others: set[int]) -> None:
    expected = by_inode(records)
    for inode in others | set(expected):
        assert set(names.of(inode)) == expected.get(inode, set())


@given(records=_records, late=st.sets(_inodes), others=st.sets(_inodes))
def test_whole_manifest_holds_what_it_was_given(
    records: set[tuple[int, Name]], late: set[int], others: set[int]
) -> None:
    manifest = Manifest(built(records, set(), late).finish(UUID, device(5), None))
    assert (manifest.device, manifest.base, manifest.file_system) == (device(5), None, UUID)
    assert set(manifest.all_added()) == records
    assert sorted(manifest.late()) == sorted(late)
    assert_holds(Names([manifest]), records, others)


@given(
    first=_records, changes=st.lists(st.tuples(st.sets(st.integers(0, 1 << 16), max_size=20), _records), max_size=14)
)
def test_chains_hold_what_the_layers_have(
    first: set[tuple[int, Name]], changes: list[tuple[set[int], set[tuple[int, Name]]]]
) -> None:
    """However they are pressed together; what is removed may come again."""
    files = {1: Manifest(built(first, set()).finish(UUID, device(1), None))}
    now, before = set(first), set(first)
    for number, (picks, more) in enumerate(changes, 2):
        names = Names.find(device(number - 1), UUID, files.__getitem__)
        ordered = sorted(now)
        removed = {ordered[pick % len(ordered)] for pick in picks} if ordered else set()
        added = more - (now - removed)
        now = now - removed | added
        before |= now
        data = names.extended(built(added, removed, {number}), device(number))
        files[number] = Manifest(data)
        assert list(files[number].late()) == [number]
        chain = [files[number]]
        while chain[-1].base is not None:
            chain.append(files[chain[-1].base.thin_id])
        assert len(chain) <= MOST_DELTAS + 1
        assert_holds(Names.find(device(number), UUID, files.__getitem__), now, {inode for inode, _ in before})


def test_large_delta_becomes_whole() -> None:
    records = {(inode, Name(2, b"%d" % inode, 0)) for inode in range(11, 5000)}
    whole = Names([Manifest(built(records, set()).finish(UUID, device(1), None))])
    more = {(inode, Name(2, b"%d" % inode, 0)) for inode in range(5000, 9000)}
    merged = Manifest(whole.extended(built(more, set()), device(2)))
    assert merged.base is None
    assert merged.records == 8989
    few = Manifest(whole.extended(built({(77, Name(2, b"other", 0))}, set()), device(2)))
    assert few.base == device(1)


RECORDS = {(inode, Name(inode % 7 + 2, b"name-%d" % inode, inode * 3)) for inode in range(11, 900)}
WHOLE = built(RECORDS, set(), {12, 13}).finish(UUID, device(9), None)


def answers(data: bytes) -> tuple[object, ...]:
    manifest = Manifest(data)
    names = Names([manifest])
    return (manifest.device, manifest.file_system, sorted(manifest.late()), [set(names.of(n)) for n in range(900)])


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_what_is_cut_short_is_noticed(cut: int) -> None:
    with pytest.raises(Unfit):
        Manifest(WHOLE[:cut])


@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_flipped_bit_is_noticed(place: int, bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= 1 << bit
    with pytest.raises(Unfit):
        answers(bytes(damaged))


@given(data=st.binary(max_size=400))
def test_what_is_no_manifest_is_noticed(data: bytes) -> None:
    for text in (data, WHOLE[: len(data)] + data, WHOLE + data + b"x"):
        with pytest.raises(Unfit):
            Manifest(text)


def test_manifest_of_another_is_not_taken() -> None:
    manifest = Manifest(WHOLE)
    for wanted, uuid in ((device(8), UUID), (Device(b"q" * 16, 9, 27, 63), UUID), (device(9), bytes(16))):
        with pytest.raises(Unfit):
            Names.find(wanted, uuid, lambda _: manifest)
    delta = Manifest(Names([manifest]).extended(built(set(), set()), device(10)))
    with pytest.raises(Unfit):
        Names([delta])
    with pytest.raises(Unfit):
        Names([manifest, manifest])


def test_circle_of_bases_ends() -> None:
    files = {
        1: Manifest(Builder().finish(UUID, device(1), device(2))),
        2: Manifest(Builder().finish(UUID, device(2), device(1))),
    }
    with pytest.raises(Unfit):
        Names.find(device(1), UUID, files.__getitem__)


MANY = {(inode * 5, Name(inode % 99 + 2, b"%d" % inode * (inode % 11 + 1), inode)) for inode in range(3, 9000)}
LARGE = built(MANY, set()).finish(UUID, device(9), None)


def test_a_file_of_many_sheets(tmp_path: Path) -> None:
    """Names that lie across two of them among the others; more sheets than one, and fewer than are kept."""
    path = tmp_path / "9"
    path.write_bytes(LARGE)
    assert len(LARGE) > 4 << 16
    manifest = Manifest.open(path)
    assert set(manifest.all_added()) == MANY
    assert_holds(Names([manifest]), MANY, set(range(1, 500)))


def test_damage_in_a_file_is_noticed(tmp_path: Path) -> None:
    """In each page, and also where the file is cut short after it was opened."""
    for place in range(4096, len(LARGE), 4096):
        path = tmp_path / str(place)
        path.write_bytes(LARGE[:place] + bytes((LARGE[place] ^ 8,)) + LARGE[place + 1 :])
        with pytest.raises(Unfit, match="damaged"):
            list(Manifest.open(path).all_added())
    path = tmp_path / "cut"
    path.write_bytes(LARGE)
    manifest = Manifest.open(path)
    os.truncate(path, len(LARGE) - 1)
    with pytest.raises(Unfit, match="cut short"):
        list(manifest.all_added())


def test_what_is_no_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "9").write_bytes(WHOLE)
    (tmp_path / "link").symlink_to("9")
    (tmp_path / "empty").write_bytes(b"")
    for path in (tmp_path / "absent", tmp_path / "link", tmp_path / "empty", tmp_path):
        with pytest.raises(Unfit):
            Manifest.open(path)


def test_a_file_is_closed_with_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "9").write_bytes(WHOLE)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Manifest.open(tmp_path / "9")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
