"""Names in archives: what they mean, how they are shown; and the small things that hold many of them."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.inodes import InodeSet
from thinpool.layer.parents import Parents
from thinpool.layer.paths import clean
from thinpool.layer.text import shown
from thinpool.layer.times import DirectoryTimes
from thinpool.layer.whiteouts import Meaning, is_reserved, meaning, removed, whiteout


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"./a/./b/", b"a/b"),
        (b"//a//b//", b"a/b"),
        (b"/", b""),
        (b".", b""),
        (b"./", b""),
        (b"...", b"..."),
        (b"a/..b/c..", b"a/..b/c.."),
        (b"\xff\n", b"\xff\n"),
    ],
)
def test_clean(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@pytest.mark.parametrize("name", [b"..", b"../a", b"a/..", b"a/../b", b"/..", b"./..//a"])
def test_two_dots_are_refused(name: bytes) -> None:
    with pytest.raises(UnsafeArchive):
        clean(name)


@pytest.mark.parametrize("name", [b"", b"a\0b"])
def test_names_that_are_none(name: bytes) -> None:
    with pytest.raises(ArchiveError):
        clean(name)


@given(name=st.binary())
def test_a_clean_path_stays_below_the_root(name: bytes) -> None:
    try:
        path = clean(name)
    except ArchiveError:
        return
    assert clean(b"/" + path) == path
    assert not any(part in {b"", b".", b".."} for part in path.split(b"/")) or not path


@pytest.mark.parametrize(
    ("path", "means"),
    [
        (b"a", Meaning.ENTRY),
        (b"a.wh.b", Meaning.ENTRY),
        (b"a/wh.b", Meaning.ENTRY),
        (b".wh.a", Meaning.WHITEOUT),
        (b"a/.wh.b", Meaning.WHITEOUT),
        (b".wh....", Meaning.WHITEOUT),
        (b".wh..a", Meaning.WHITEOUT),
        (b".wh..wh..opq", Meaning.OPAQUE),
        (b"a/.wh..wh..opq", Meaning.OPAQUE),
        (b".wh..wh.aufs", Meaning.BOOKKEEPING),
        (b".wh..wh.", Meaning.BOOKKEEPING),
        (b".wh..wh.plnk/1.2", Meaning.BOOKKEEPING),
        (b".wh..wh.plnk/.wh.x/y", Meaning.BOOKKEEPING),
    ],
)
def test_whiteouts(path: bytes, means: Meaning) -> None:
    assert meaning(path) is means


@pytest.mark.parametrize("path", [b".wh.", b".wh..", b".wh...", b"a/.wh..", b".wh.a/b", b"x/.wh.a/.wh.b"])
def test_whiteouts_that_are_refused(path: bytes) -> None:
    with pytest.raises(UnsafeArchive):
        meaning(path)


@given(name=st.binary(min_size=1).filter(lambda name: b"/" not in name and name not in {b".", b".."}))
def test_a_whiteout_says_what_it_removes(name: bytes) -> None:
    assert removed(whiteout(name)) == name
    if not is_reserved(name):
        assert meaning(whiteout(name)) is Meaning.WHITEOUT


@given(name=st.one_of(st.binary(max_size=300), st.text(max_size=300)))
def test_names_in_messages_are_one_printable_line(name: bytes | str) -> None:
    text = shown(name.replace(b"\0", b"") if isinstance(name, bytes) else name.encode(errors="ignore"))
    assert text.isprintable()
    assert len(text) < 4000


@given(numbers=st.sets(st.integers(0, 2**64 - 1)), others=st.sets(st.integers(0, 2000)))
def test_inode_sets(numbers: set[int], others: set[int]) -> None:
    inodes = InodeSet()
    for number in numbers:
        inodes.add(number)
    for number in numbers | others:
        assert (number in inodes) == (number in numbers)


@given(
    paths=st.sets(
        st.lists(st.sampled_from((b"a", b"a-b", b"a.b", b"ab", b"a0", b"b", b"\xff")), min_size=1, max_size=5).map(
            b"/".join
        )
    )
)
def test_parents_come_once_and_before_what_is_in_them(paths: set[bytes]) -> None:
    parents = Parents()
    order: list[bytes] = []
    directories = {path for path in paths if any(other.startswith(path + b"/") for other in paths)}
    for path in sorted(paths):
        for missing in parents.missing(path):
            parents.add(missing)
            order.append(missing)
        if path in directories:
            parents.add(path)
        order.append(path)
    assert len(order) == len(set(order))
    for number, path in enumerate(order):
        above = path.rpartition(b"/")[0]
        assert not path or above in order[:number]


def test_parents_of_a_deep_tree_take_little() -> None:
    parents = Parents()
    path = b"/".join([b"n" * 255] * 1000)
    for missing in parents.missing(path):
        parents.add(missing)
    assert list(parents.missing(path + b"2")) == []


def test_parents_do_not_pile_up_where_nobody_asks_between_siblings() -> None:
    parents = Parents()
    parents.add(b"")
    parents.add(b"d")
    tracemalloc.start()
    try:
        for number in range(20_000):
            parents.add(b"d/%06d" % number)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10_000


@given(
    entries=st.lists(
        st.tuples(st.binary(max_size=50), st.integers(0, 2**64 - 1), st.integers(-(2**90), 2**90)), max_size=20
    )
)
def test_times_of_directories(entries: list[tuple[bytes, int, int]]) -> None:
    times = DirectoryTimes()
    for entry in entries:
        times.add(*entry)
    assert list(times) == entries
    times.close()
