import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.layer.tars import archive, base256, entry, gnu_long, header, pax
from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.oci.places import ArchivePlace, DirectoryPlace, Place

names = st.text("ab.-", min_size=1, max_size=4).filter(lambda name: not name.startswith("."))
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
contents = st.binary(max_size=2000) | st.integers(0, 300_000).map(lambda size: b"x" * size)


def content(place: Place, path: str) -> bytes | None:
    blob = place.open(path)
    if blob is None:
        return None
    with blob:
        data = blob.readall()
        assert len(data) == blob.size
        return data


def place_of(data: bytes, folder: Path) -> ArchivePlace:
    file = folder / "archive"
    file.write_bytes(data)
    return ArchivePlace(os.open(file, os.O_RDONLY))


@given(
    files=st.lists(st.tuples(paths, contents), max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    lead=st.sampled_from(["", "./", "/"]),
)
def test_an_archive_gives_what_was_put_in(
    files: list[tuple[str, bytes]], form: int, lead: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for path, data in files:
            member = tarfile.TarInfo(lead + path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if not files:
        out = io.BytesIO(archive(header(b"x", b"5")))
    place = place_of(out.getvalue(), tmp_path_factory.mktemp("archive"))
    for path, data in dict(files).items():  # the later of one name counts
        assert content(place, path) == data
    assert content(place, "another") is None


@given(cut=st.integers(0, 5000), data=contents)
def test_a_cut_archive_is_an_error(cut: int, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = archive(entry(b"first", data=data), entry(b"second", data=b"x"))
    cut = min(cut, len(whole) - 1024)
    with pytest.raises(ArchiveError):
        place_of(whole[:cut], tmp_path_factory.mktemp("archive"))


@given(data=st.binary(max_size=3000), position=st.integers(0, 3000))
def test_a_damaged_archive_is_read_or_an_error(
    data: bytes, position: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = archive(pax({b"path": b"long/" * 30}), entry(b"x", data=b"content"), header(b"l", b"2", link=b"x"))
    broken = whole[:position] + data + whole[position + len(data) :]
    try:
        place = place_of(broken, tmp_path_factory.mktemp("archive"))
        content(place, "x")
        content(place, "l")
    except ArchiveError:
        return


def test_links_are_followed_by_name(tmp_path: Path) -> None:
    place = place_of(
        archive(
            entry(b"a/layer.tar", data=b"content"),
            header(b"b/layer.tar", b"2", link=b"../a/layer.tar"),
            header(b"c", b"1", link=b"a/layer.tar"),
            header(b"d", b"2", link=b"./b//layer.tar"),
            header(b"e", b"2", link=b"/a/layer.tar"),
            header(b"out", b"2", link=b"../../etc/passwd"),
            header(b"abs", b"2", link=b"/etc/passwd"),
            header(b"above", b"2", link=b"../../a/layer.tar"),
            header(b"round", b"2", link=b"about"),
            header(b"about", b"2", link=b"round"),
            header(b"folder", b"5"),
            header(b"fifo", b"6"),
        ),
        tmp_path,
    )
    for name in ("a/layer.tar", "b/layer.tar", "c", "d", "e"):
        assert content(place, name) == b"content"
    for name in ("out", "abs", "above", "folder", "fifo"):
        with pytest.raises(ArchiveError, match="is no regular file, nor a link to one"):
            place.open(name)
    with pytest.raises(UnsafeArchive, match="a link to a link"):
        place.open("round")


def test_parts_that_lead_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=r"has a '\.\.' part"):
        place_of(archive(entry(b"../x", data=b"")), tmp_path)


def test_data_stored_with_holes_is_not_taken_for_the_content(tmp_path: Path) -> None:
    sparse = {b"major": b"1", b"minor": b"0", b"realsize": b"9", b"name": b"x"}
    sparse = {b"GNU.sparse." + key: value for key, value in sparse.items()}
    place = place_of(archive(pax(sparse), entry(b"y", data=b"1\n8\n1\n" + bytes(506) + b"z")), tmp_path)
    with pytest.raises(ArchiveError, match="is no regular file"):
        place.open("x")


@pytest.mark.parametrize(
    "many",
    [
        b"".join(header(b"n%d" % number) for number in range(20_001)),
        gnu_long(b"L", b"n" * 513) + header(b"x"),
        pax({b"path": b"n" * 513}) + header(b"x"),
        pax({b"comment": b"n" * (1 << 20)}) + header(b"x"),
    ],
    ids=["entries", "long name", "long path", "long header"],
)
def test_more_than_an_image_has(tmp_path: Path, many: bytes) -> None:
    with pytest.raises(UnsafeArchive):
        place_of(archive(many), tmp_path)


def test_an_archive_is_plain(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not a tar archive"):
        place_of(gzip.compress(archive(entry(b"x", data=b"x"))), tmp_path)


def test_a_large_member_is_not_read(tmp_path: Path) -> None:
    """A terabyte of hole, which would take minutes to read."""
    file = tmp_path / "archive"
    size = 1 << 39
    with file.open("wb") as out:
        out.write(entry(b"first", data=b"1"))
        out.write(header(b"large", size=base256(size, 12)))
        out.seek(size, os.SEEK_CUR)
        out.write(archive(entry(b"last", data=b"2")))
    place = ArchivePlace(os.open(file, os.O_RDONLY))
    assert [content(place, name) for name in ("first", "last")] == [b"1", b"2"]
    blob = place.open("large")
    assert blob is not None
    assert blob.size == size
    assert blob.read(10) == bytes(10)


def test_a_file_that_becomes_shorter_just_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    with DirectoryPlace(tmp_path) as place:
        blob = place.open("x")
        assert blob is not None
        os.truncate(tmp_path / "x", 4)
        with blob:
            assert blob.readall() == b"0123"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_odd_paths(tmp_path: Path, path: str) -> None:
    """Documents can name anything."""
    with DirectoryPlace(tmp_path) as directory:
        for place in (directory, place_of(archive(entry(b"a", data=b"")), tmp_path)):
            with contextlib.suppress(ArchiveError):
                assert place.open(path) is None
