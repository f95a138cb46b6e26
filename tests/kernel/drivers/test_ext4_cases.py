"""What is hard to tell from changed inodes: replaced directories, hard links, writes that leave few traces."""

import ctypes
import mmap
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import end_guard, exported, look, told
from tests.kernel.drivers.engine import MAKES, store_of
from tests.kernel.layer.trees import CAPABILITY, Tree, expected_changes, survey
from thinpool import Store
from thinpool.drivers import thincompare
from thinpool.drivers.base import Unsure
from thinpool.filesystem.ext4.changed import changed_inodes
from thinpool.model import Changes

pytestmark = pytest.mark.kernel

Change = Callable[[Path], object]
CASES: dict[str, tuple[Change, Change]] = {}
_PAGE = 4096
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


def case(before: Change) -> Callable[[Change], Change]:
    """Register a change to a folder that `before` filled."""

    def take(after: Change) -> Change:
        CASES[after.__name__] = (before, after)
        return after

    return take


def exchange(first: Path, second: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, os.fsencode(first), -100, os.fsencode(second), _EXCHANGE) == 0, ctypes.get_errno()


def family(root: Path) -> None:
    """Directories in directories, with files, some of them with other names elsewhere."""
    for name in ("a/x/deep/er", "b/x/deep", "c"):
        (root / name).mkdir(parents=True)
    for name in ("a/x/f", "a/x/g", "b/x/f", "a/x/deep/h", "b/x/deep/h", "a/x/deep/er/i"):
        (root / name).write_text(name)
    for name, target in (("c/link", "a/x/f"), ("c/other", "b/x/f"), ("c/third", "a/x/deep/h")):
        (root / name).hardlink_to(root / target)


def one_file(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/f").write_bytes(b"x" * 3 * _PAGE)


def many_pieces(root: Path) -> None:
    """A file with more extents than an inode holds."""
    with (root / "f").open("wb") as file:
        for number in range(40):
            file.seek(2 * number * _PAGE)
            file.write(b"piece")


@case(family)
def directories_exchanged(root: Path) -> None:
    exchange(root / "a/x", root / "b/x")


@case(family)
def directories_exchanged_at_two_levels(root: Path) -> None:
    exchange(root / "a", root / "b")
    exchange(root / "a/x/deep", root / "b/x/deep")


@case(family)
def parents_exchanged_and_children_back(root: Path) -> None:
    exchange(root / "a", root / "b")
    exchange(root / "a/x", root / "b/x")


@case(family)
def moved_below_itself_renamed(root: Path) -> None:
    (root / "a").rename(root / "moved")
    (root / "a").mkdir()
    (root / "moved/x").rename(root / "a/x")


@case(family)
def moved_and_changed_below(root: Path) -> None:
    (root / "a/x").rename(root / "c/x")
    (root / "c/x/deep/er/i").write_text("changed")


@case(family)
def moved_and_linked_file_changed_through_other_name(root: Path) -> None:
    (root / "a/x").rename(root / "c/x")
    (root / "c/third").write_text("changed")


@case(family)
def replaced_by_a_copy(root: Path) -> None:
    shutil.copytree(root / "a", root / "copy")
    shutil.rmtree(root / "a")
    (root / "copy").rename(root / "a")


@case(family)
def directory_made_again(root: Path) -> None:
    shutil.rmtree(root / "a/x/deep/er")
    (root / "a/x/deep/er").mkdir()
    (root / "a/x/deep/er/i").write_text("a/x/deep/er/i")


@case(family)
def directory_becomes_a_file_and_back(root: Path) -> None:
    shutil.rmtree(root / "a/x/deep")
    (root / "a/x/deep").write_text("file")
    (root / "c/link").unlink()
    (root / "c/link").mkdir()


@case(family)
def names_change_hands(root: Path) -> None:
    exchange(root / "a/x/f", root / "b/x/f")


@case(family)
def names_added_and_removed(root: Path) -> None:
    (root / "c/fourth").hardlink_to(root / "a/x/g")
    (root / "c/link").unlink()


@case(family)
def name_moved_to_another_directory(root: Path) -> None:
    (root / "c/link").rename(root / "b/x/link")


@case(family)
def linked_file_changed_where_no_directory_is(root: Path) -> None:
    (root / "c/link").chmod(0o600)


@case(family)
def all_gone(root: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.rmtree(root / name)


@case(one_file)
def file_made_again_with_its_attributes(root: Path) -> None:
    status = (root / "d/f").stat()
    (root / "d/f").unlink()
    (root / "d/f").write_bytes(b"y" * 3 * _PAGE)
    os.utime(root / "d/f", ns=(status.st_atime_ns, status.st_mtime_ns))


@case(one_file)
def touched_and_put_back(root: Path) -> None:
    (root / "d/f").chmod(0o600)
    (root / "d/f").chmod(0o644)
    (root / "d/new").touch()
    (root / "d/new").unlink()


@case(one_file)
def written_through_a_mapping(root: Path) -> None:
    status = (root / "d/f").stat()
    with (root / "d/f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[_PAGE : _PAGE + 5] = b"mmaps"
    os.utime(root / "d/f", ns=(status.st_atime_ns, status.st_mtime_ns))


@case(one_file)
def written_past_the_page_cache(root: Path) -> None:
    status = (root / "d/f").stat()
    fd = os.open(root / "d/f", os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, _PAGE) as buffer:
        buffer.write(b"z" * _PAGE)
        assert os.pwritev(fd, [buffer], _PAGE) == _PAGE
    os.close(fd)
    os.utime(root / "d/f", ns=(status.st_atime_ns, status.st_mtime_ns))


def allocated(root: Path) -> None:
    with (root / "f").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)


@case(allocated)
def written_where_it_was_only_allocated(root: Path) -> None:
    status = (root / "f").stat()
    with (root / "f").open("r+b") as file:
        file.seek(300_000)
        file.write(b"now it is written")
    os.utime(root / "f", ns=(status.st_atime_ns, status.st_mtime_ns))


@case(many_pieces)
def one_of_many_pieces_written(root: Path) -> None:
    status = (root / "f").stat()
    with (root / "f").open("r+b") as file:
        file.seek(50 * _PAGE)
        file.write(b"other")
    os.utime(root / "f", ns=(status.st_atime_ns, status.st_mtime_ns))


def attributes(root: Path) -> None:
    for name in ("f", "g", "h"):
        (root / name).write_text("same")
        os.setxattr(root / name, "user.long", b"v" * 1000)
    (root / "d").mkdir()


@case(attributes)
def attributes_in_their_own_block(root: Path) -> None:
    os.setxattr(root / "f", "user.long", b"w" * 1000)
    os.setxattr(root / "g", "security.capability", CAPABILITY)
    os.removexattr(root / "h", "user.long")
    os.setxattr(root / "d", "user.short", b"s")


def long_directory(root: Path) -> None:
    for number in range(300):
        (root / f"{'n' * 200}{number:04}").touch()


@case(long_directory)
def long_directory_loses_and_gains(root: Path) -> None:
    (root / f"{'n' * 200}0123").unlink()
    (root / f"{'n' * 200}0124").rename(root / "renamed")
    (root / f"{'n' * 200}0200").write_text("written")


@pytest.fixture(scope="module")
def shared() -> Iterator[Store]:
    """One store for the tests of this module; each removes what it made."""
    with store_of(MAKES["usual"], **{"dm.basesize": "256M"}) as store:
        yield store


@pytest.fixture
def store(shared: Store) -> Iterator[Store]:
    """The same, empty."""
    yield shared
    left = {layer.name: layer.parent for layer in shared.walk()}
    while left:
        for name in set(left).difference(left.values()):
            shared.remove(name)
            del left[name]
    end_guard(shared)
    folder = manifests(shared)
    assert not folder.exists() or [path.name for path in folder.iterdir()] in ([], [base_of(shared)])


def manifests(store: Store) -> Path:
    return store.root / "devicemapper/names"


def base_of(store: Store) -> str:
    return str(store._session.driver._base.storage.handle)  # type: ignore[attr-defined]


def make(store: Store, name: str, parent: str | None, write: Change, *, mounted: bool = False) -> Tree:
    """A committed layer with what `write` does, and what was seen in it."""
    store.prepare("work", parent)
    with store.mount("work") as root:
        write(root)
        tree = survey(root)
        if mounted:
            store.commit(name, "work")
    if not mounted:
        store.commit(name, "work")
    return tree


def check(store: Store, older: str, newer: str, expected: object = None) -> None:
    """Fast and walk find the same, both ways round; and what is expected."""
    for first, second in ((older, newer), (newer, older)):
        fast = store.changes(second, first, method="fast")
        walk = store.changes(second, first, method="walk")
        assert told(fast) == told(walk)
        assert fast.method == "fast"
        assert fast.reads is not None
    assert expected is None or list(store.changes(newer, older, method="fast")) == expected


def all_of(number: int) -> Change:
    def write(root: Path) -> None:
        for name, pair in CASES.items():
            (root / name).mkdir(exist_ok=True)
            pair[number](root / name)

    return write


def test_cases_side_by_side(store: Store) -> None:
    """Child, grandchild and sibling, all of them against each other."""
    trees = {"base": make(store, "base", None, all_of(0))}
    trees["child"] = make(store, "child", "base", all_of(1), mounted=True)
    trees["other"] = make(store, "other", "base", all_of(1))
    trees["grandchild"] = make(store, "grandchild", "child", lambda root: shutil.rmtree(root / "directories_exchanged"))
    names = list(trees)
    for number, older in enumerate(names):
        for newer in names[number + 1 :]:
            check(store, older, newer, expected_changes(trees[older], trees[newer]))


def test_inode_numbers_are_used_again(store: Store) -> None:
    """What the cases above are about does happen."""
    before = make(store, "base", None, one_file)
    after = make(store, "child", "base", file_made_again_with_its_attributes)
    assert before[b"/d/f"].inode == after[b"/d/f"].inode
    assert told(store.changes("child", method="fast")) == [("C", "/d/f")]


# -- within a tick of the clock


def overwritten_at(path: Path, then: int, text: bytes, *, touched: bool) -> bool:
    """Overwrite a file when the clock shows a certain time; False where it ticked meanwhile."""
    now, begun = time.time_ns(), time.monotonic_ns()
    time.clock_settime_ns(time.CLOCK_REALTIME, then)
    try:
        overwrite(path, text, touched=touched)
    finally:
        time.clock_settime_ns(time.CLOCK_REALTIME, now + time.monotonic_ns() - begun)
    return path.stat().st_ctime_ns == then


def overwrite(path: Path, text: bytes, *, touched: bool) -> None:
    with path.open("r+b") as file:
        file.write(text)
    if touched:
        os.utime(path, ns=(5, 5))


@pytest.mark.parametrize("live", [False, True], ids=["child", "checkpoint"])
@pytest.mark.parametrize("touched", [False, True], ids=["block-shared", "block-copied"])
def test_second_write_within_a_tick(store: Store, *, live: bool, touched: bool) -> None:
    """The inode shows no trace of it; nor is its block written, unless its time is set too."""
    for _ in range(40):
        store.prepare("work")
        with store.mount("work") as root:
            (root / "f").write_bytes(b"one" * 1000)
            os.sync()
            overwrite(root / "f", b"two", touched=touched)
            os.sync()
            complete = store.checkpoint("base", "work").created.timestamp()
            at_once = complete - (root / "f").stat().st_ctime < 0.018
            if live:
                same = overwritten_at(root / "f", (root / "f").stat().st_ctime_ns, b"six", touched=touched)
        if not live:
            store.prepare("next", "base")
            with store.mount("next") as root:
                same = overwritten_at(root / "f", (root / "f").stat().st_ctime_ns, b"six", touched=touched)
        newer = "work" if live else "next"
        if same and at_once:
            check(store, "base", newer)
            assert told(store.changes(newer, "base", method="fast")) == [("C", "/f")]
            return
        for name in {newer, "work"}:
            store.remove(name)
        store.remove("base")
    pytest.fail("the clock ticked in between each time")


def test_siblings_written_at_the_same_instant(store: Store) -> None:
    """Their inodes are equal, and written to since they were one."""
    make(store, "base", None, one_file)
    then = time.time_ns() + 1_000_000_000
    for name, text in (("one", b"abc"), ("two", b"xyz")):
        for _ in range(40):
            store.prepare(name, "base")
            with store.mount(name) as root:
                same = overwritten_at(root / "d/f", then, text, touched=True)
            if same:
                break
            store.remove(name)
        assert same
    check(store, "one", "two")
    assert told(store.changes("one", "two", method="fast")) == [("C", "/d/f")]


# -- chains and relations


def one_more(number: int) -> Change:
    return lambda root: (root / f"file-{number % 5}").write_text(f"{number}")


def test_long_chain(store: Store) -> None:
    """Manifests refer to those below, and are pressed together in time."""
    trees = {"0": make(store, "0", None, family)}
    for number in range(1, 14):
        trees[str(number)] = make(store, str(number), str(number - 1), one_more(number))
        assert list(store.changes(str(number), method="fast")) == expected_changes(
            trees[str(number - 1)], trees[str(number)]
        )
    assert len(list(manifests(store).iterdir())) >= 13
    check(store, "0", "13", expected_changes(trees["0"], trees["13"]))
    check(store, "4", "9", expected_changes(trees["4"], trees["9"]))


def test_checkpoints_of_one_active_layer(store: Store) -> None:
    """They are siblings in the records, and share more than that tells."""
    make(store, "base", None, family)
    store.prepare("work", "base")
    with store.mount("work") as root:
        one_file(root)
        store.checkpoint("first", "work")
        directories_exchanged(root)
        store.checkpoint("second", "work")
        (root / "after").touch()
        check(store, "first", "second")
        assert told(store.changes("work", "second", method="fast")) == [("A", "/after")]
        assert told(store.changes("second", "work", method="fast")) == [("D", "/after")]
        store.prepare("child", "first")
    check(store, "child", "second")
    check(store, "base", "second")


def test_strangers(store: Store) -> None:
    """Layers that have only the base in common."""
    trees = {name: make(store, name, None, write) for name, write in (("one", family), ("two", all_of(0)))}
    trees["empty"] = make(store, "empty", None, lambda _: None)
    for older, newer in (("one", "two"), ("one", "empty"), ("empty", "two")):
        check(store, older, newer, expected_changes(trees[older], trees[newer]))


def test_layer_in_use_is_read_by_a_snapshot(store: Store) -> None:
    make(store, "base", None, family)
    store.prepare("work", "base")
    with store.mount("work") as root:
        (root / "new").write_text("not yet written out")
        changes = store.changes("work", method="fast")
        assert told(changes) == [("A", "/new")]
        assert [layer.name for layer in store.walk()] == ["base", "work"]
    assert told(store.changes("work", method="fast")) == [("A", "/new")]


def refuse(*_: object) -> None:
    raise Unsure("refused")


def test_export_holds_the_same_as_by_the_walk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "base", None, all_of(0))
    make(store, "child", "base", all_of(1))
    fast = exported(store, "child")
    assert store._session.driver._thins.active() == []  # type: ignore[attr-defined]
    monkeypatch.setattr(type(store._session.driver), "compared", refuse)
    assert store.changes("child").reason == "refused"
    assert exported(store, "child") == fast
    assert store._session.driver._thins.active() == []  # type: ignore[attr-defined]


# -- others meanwhile


def test_several_at_once_while_others_work(store: Store) -> None:
    """Nobody waits for a comparison, and none is disturbed; also while a metadata snapshot is held by somebody else.

    One that finds the books in motion each time that it looks is a walk then.
    """
    make(store, "base", None, all_of(0))
    make(store, "child", "base", all_of(1))
    expected = told(store.changes("child", method="walk"))
    pool = f"{store._session.driver._pool.name}"  # type: ignore[attr-defined]
    subprocess.run(["dmsetup", "message", pool, "0", "reserve_metadata_snap"], check=True)
    found: list[Changes] = []

    def compare() -> None:
        found.extend(store.changes("child") for _ in range(3))

    try:
        threads = [threading.Thread(target=compare) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            make(store, "passing", "base", family)
            store.remove("passing")
        for thread in threads:
            thread.join()
    finally:
        subprocess.run(["dmsetup", "message", pool, "0", "release_metadata_snap"], check=True)
    assert [told(changes) for changes in found] == [expected] * 9
    assert "fast" in {changes.method for changes in found}
    assert all("snapshot" in str(changes.reason) for changes in found if changes.method == "walk")


def close_two(root: Path) -> None:
    for name in ("a/x/f", "a/x/g"):
        (root / name).chmod(0o600)


def test_layer_that_was_checked_in_between_is_walked(store: Store) -> None:
    """e2fsck may change what it likes without a trace in an inode's times."""
    make(store, "base", None, family)
    store.prepare("work", "base")
    with store.device("work") as device:
        done = subprocess.run(["e2fsck", "-fy", str(device)], check=False, capture_output=True)
    assert done.returncode == 1  # there was no lost+found
    store.commit("child", "work")
    changes = store.changes("child")
    assert (told(changes), changes.method) == ([("A", "/lost+found")], "walk")
    assert "was checked" in str(changes.reason)


def test_candidate_that_is_lost_is_missed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above notice an engine that overlooks one inode."""
    tree = make(store, "base", None, family)
    newer = make(store, "child", "base", close_two)
    dropped = newer[b"/a/x/g"].inode
    whole = changed_inodes

    def without_one(*arguments: object) -> object:
        found = whole(*arguments)  # type: ignore[arg-type]
        del found[dropped]
        return found

    monkeypatch.setattr(thincompare, "changed_inodes", without_one)
    with pytest.raises(AssertionError):
        check(store, "base", "child", expected_changes(tree, newer))


def test_look_by_mount_is_not_needed(store: Store) -> None:
    """Both layers stay inactive."""
    make(store, "base", None, family)
    make(store, "child", "base", directories_exchanged)
    assert store.changes("child", method="fast")
    assert store._session.driver._thins.active() == []  # type: ignore[attr-defined]
    assert look(store, "child")
