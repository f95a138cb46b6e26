"""Single changes, each of a kind that a comparison by transaction numbers could miss."""

import ctypes
import io
import itertools
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from thinpool import Store
from thinpool.filesystem import syscalls
from thinpool.model import Change

pytestmark = pytest.mark.kernel

EMPTY = bytes(10240)  # an archive with nothing in it
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def overwrite_silently(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite_mapped(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"M"


def make_again(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    (path / "f").write_text("anew")


def move_up(root: Path) -> None:
    os.rename(root / "d" / "e", root / "e")


def break_link(root: Path) -> None:
    os.rename(root / "l", root / "t")
    shutil.copy2(root / "t", root / "l")
    (root / "t").unlink()


def touch_and_put_back(path: Path) -> None:
    path.chmod(0o600)
    path.chmod(0o644)


def replace(path: Path, other: Path) -> None:
    path.unlink()
    other.touch()


CASES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str]]]] = {
    "silent overwrite": (lambda root: overwrite_silently(root / "d/f"), [("C", "/d/f")]),
    "write through a mapping": (lambda root: overwrite_mapped(root / "d/f"), [("C", "/d/f")]),
    "truncated": (lambda root: os.truncate(root / "d/f", 1), [("C", "/d/f")]),
    "mode": (lambda root: (root / "d/f").chmod(0o600), [("C", "/d/f")]),
    "mode of a directory": (lambda root: (root / "d").chmod(0o700), [("C", "/d")]),
    "mode of the root": (lambda root: root.chmod(0o700), [("C", "/")]),
    "attribute": (lambda root: os.setxattr(root / "d/f", "user.k", b"v"), [("C", "/d/f")]),
    "attribute of a directory": (lambda root: os.setxattr(root / "d/e", "user.k", b"v"), [("C", "/d/e")]),
    "removed": (lambda root: (root / "d/f").unlink(), [("D", "/d/f")]),
    "tree removed": (lambda root: shutil.rmtree(root / "d"), [("D", "/d")]),
    "tree made again": (lambda root: make_again(root / "d/e"), [("C", "/d/e/f"), ("D", "/d/e/g")]),
    "renamed": (lambda root: os.rename(root / "d/f", root / "d/h"), [("A", "/d/h"), ("D", "/d/f")]),
    "tree moved": (move_up, [("A", "/e"), ("A", "/e/f"), ("A", "/e/g"), ("D", "/d/e")]),
    "exchanged": (lambda root: exchange(root / "d/f", root / "d/e/f"), [("C", "/d/e/f"), ("C", "/d/f")]),
    "trees exchanged, with a link that leads in": (
        lambda root: exchange(root / "d/e", root / "x"),
        [("A", "/x/f"), ("C", "/d/e/g"), ("C", "/l"), ("C", "/x/g"), ("D", "/d/e/f")],
    ),
    "linked": (lambda root: os.link(root / "d/f", root / "n"), [("A", "/n")]),
    "link broken": (
        break_link,
        [("C", "/d/e/g"), ("C", "/l")],
    ),
    "touched and put back": (lambda root: touch_and_put_back(root / "d/f"), []),
    "nothing": (lambda root: root, []),
}


def lay_out(tree: Path) -> None:
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "x").mkdir()
    for file in ("d/f", "d/e/f", "d/e/g", "x/g"):
        (tree / file).write_text(file * 3)
        (tree / file).chmod(0o644)
    os.link(tree / "d/e/g", tree / "l")


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_found(store: Store, case: str) -> None:
    change, expected = CASES[case]
    store.prepare("work")
    with store.mount("work") as tree:
        lay_out(tree)
    store.commit("base", "work")
    store.prepare("work", "base")
    with store.mount("work") as tree:
        change(tree)
        while_mounted = store.changes("work", method="fast")
    walked = store.changes("work", method="walk")
    assert sorted((found.kind, found.path) for found in walked) == sorted(expected)
    assert list(while_mounted) == list(walked)
    assert list(store.changes("work", method="fast")) == list(walked)
    store.commit("done", "work")
    assert list(store.changes("done", method="fast")) == list(walked)
    assert list(store.changes("base", "done", method="fast")) == list(store.changes("base", "done", method="walk"))


def test_an_entry_that_is_gone_from_a_long_directory(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "long").mkdir()
        for number in range(3000):
            (tree / "long" / f"file-number-{number:06}").touch()
    store.commit("base", "work")
    changes: dict[str, Callable[[Path], object]] = {
        "gone": lambda long: (long / "file-number-000007").unlink(),
        "new": lambda long: (long / "new").touch(),
        "moved": lambda long: os.rename(long / "file-number-000010", long / "file-number-000011x"),
        "both": lambda long: replace(long / "file-number-000008", long / "file-number-000008x"),
        "anew": lambda long: replace(long / "file-number-000009", long / "file-number-000009"),
    }
    for name, change in changes.items():
        store.prepare(name, "base")
        with store.mount(name) as tree:
            change(tree / "long")
        found = list(store.changes(name, method="fast"))
        assert found == list(store.changes(name, method="walk"))
        assert found
    for name, base in itertools.permutations(changes, 2):
        assert list(store.changes(name, base, method="fast")) == list(store.changes(name, base, method="walk"))


def test_siblings_that_gave_one_number_to_different_directories(store: Store) -> None:
    store.import_layer("base", io.BytesIO(EMPTY))
    numbers = set()
    for name in ("one", "two"):
        store.prepare(name, "base")
        with store.mount(name) as tree:
            (tree / "new").mkdir()
            (tree / "new" / "same").touch()
            (tree / "new" / "file").write_text(name)
            (tree / "new" / name).touch()
            numbers.add((tree / "new").stat().st_ino)
    assert len(numbers) == 1
    changes = store.changes("two", "one", method="fast")
    assert list(changes) == list(store.changes("two", "one", method="walk"))
    assert {change.path for change in changes} >= {"/new/file", "/new/one", "/new/two"}


def test_inode_numbers_that_come_again(store: Store, root: Path, host: Path) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        lay_out(tree)
        (tree / "last").mkdir()
        (tree / "last" / "f").write_text("old")
    store.commit("base", "work")
    store.prepare("work", "base")
    with store.mount("work") as tree:
        number = (tree / "last").stat().st_ino
        shutil.rmtree(tree / "last")
    store.close()
    disk = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(host)], check=True, capture_output=True, text=True
    ).stdout.strip()
    syscalls.umount(str(host))
    syscalls.mount(disk, str(host), "btrfs")
    with Store.open(root) as again:
        with again.mount("work") as tree:
            (tree / "last").mkdir()
            (tree / "last" / "g").write_text("new")
            (tree / "last" / "f").write_text("new")
            assert (tree / "last").stat().st_ino == number
        changes = again.changes("work", method="fast")
        assert list(changes) == [Change("C", "/last/f"), Change("A", "/last/g")]


def test_only_what_changed_is_asked_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinpool.btrfs import ioctl  # noqa: PLC0415

    def searches(name: str) -> int:
        calls: list[str] = []
        carry_out = ioctl.call

        def counted(fd: int, request: int, name: str, argument: bytearray) -> None:
            calls.append(name)
            carry_out(fd, request, name, argument)

        with monkeypatch.context() as patch:
            patch.setattr(ioctl, "call", counted)
            assert store.changes(name, method="fast")
        return calls.count("BTRFS_IOC_TREE_SEARCH_V2")

    counts = []
    for size in (10, 200):
        store.prepare(f"work-{size}")
        with store.mount(f"work-{size}") as tree:
            for folder in range(size):
                (tree / f"{folder}").mkdir()
                for number in range(10):
                    (tree / f"{folder}" / f"{number}").write_text("x")
        store.commit(f"base-{size}", f"work-{size}")
        store.prepare(f"child-{size}", f"base-{size}")
        with store.mount(f"child-{size}") as tree:
            (tree / "3" / "4").write_text("y")
            (tree / "5" / "6").unlink()
        counts.append(searches(f"child-{size}"))
    assert counts[0] == counts[1]
