"""What is hard to tell from changed inodes: replaced directories, hard links, writes that leave few traces."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import end_guard, exported, look, told
from tests.kernel.drivers.engine import MAKES, store_of
from tests.kernel.drivers.ext4_cases import (
    CASES,
    Change,
    directories_exchanged,
    family,
    file_made_again_with_its_attributes,
    one_file,
)
from tests.kernel.layer.trees import Tree, expected_changes, survey
from thinpool import Store
from thinpool.drivers import thincompare
from thinpool.drivers.base import Unsure
from thinpool.filesystem.ext4.changed import changed_inodes
from thinpool.model import Changes

pytestmark = pytest.mark.kernel


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
