"""The walk on trees that need no privileges."""

import contextlib
import os
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinpool.errors import TreeError
from thinpool.layer.changes import walk
from thinpool.layer.tree import Descent
from thinpool.model import Change

FAR_FUTURE = 1 << 62


@contextlib.contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    fds = [os.open(path, os.O_PATH) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir(0o755)
    newer.mkdir(0o755)
    return older, newer


def walked(older: Path, newer: Path, settled_ns: int | None = None) -> list[str]:
    with opened(older, newer) as (old, new):
        return [f"{change.kind} {change.path}" for change in walk(old, new, settled_ns=settled_ns)]


def write(path: Path, text: str = "", time_ns: int = 0) -> None:
    path.write_text(text)
    os.utime(path, ns=(time_ns, time_ns))


def test_the_order_is_that_of_the_paths_bytes(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    names = [
        b"a/x",
        b"a-b/y",
        b"a.b",
        b"a/z/deep",
        b"ab",
        b"\xc3\xa9/q",
        b"\xff",
        b"\xee\x80\x80",
        b"\xf0\x9f\x98\x80",
        b"\xee",
    ]
    for name in names:
        path = os.fsencode(newer) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).touch()
    with opened(older, newer) as (old, new):
        paths = [os.fsencode(change.path) for change in walk(old, new)]
    assert paths == sorted(paths)
    assert len(paths) == len(names) + 4


def test_kinds_of_changes(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    for tree in trees:
        for folder in ("same", "gone", "becomes file", "mode"):
            (tree / folder).mkdir()
        write(tree / "same" / "file", "same")
        write(tree / "content", "older" if tree is older else "newer")
        write(tree / "time", "x", 0 if tree is older else 1)
        write(tree / "becomes directory")
        (tree / "link").symlink_to("one" if tree is older else "two")
        os.utime(tree / "link", ns=(0, 0), follow_symlinks=False)
    write(older / "gone" / "file")
    write(older / "becomes file" / "inside")
    for path in (newer / "becomes file", newer / "gone"):
        path.rmdir()
    write(newer / "becomes file")
    (newer / "becomes directory").unlink()
    (newer / "becomes directory").mkdir()
    write(newer / "becomes directory" / "inside")
    (newer / "mode").chmod(0o700)
    (older / "gone" / "file").unlink()
    assert walked(older, newer) == [
        "C /becomes directory",
        "A /becomes directory/inside",
        "C /becomes file",
        "C /content",
        "D /gone",
        "C /link",
        "C /mode",
        "C /time",
    ]


def test_the_root_itself(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    os.utime(newer, ns=(0, 0))
    assert walked(older, newer) == []
    newer.chmod(0o750)
    assert walked(older, newer) == ["C /"]


def test_against_nothing_the_root_is_one_that_was_just_made(trees: tuple[Path, Path]) -> None:
    _, newer = trees
    write(newer / "f")
    owned = os.geteuid() == os.getegid() == 0
    with opened(newer) as (new,):
        assert list(walk(None, new)) == ([] if owned else [Change("C", "/")]) + [Change("A", "/f")]
        newer.chmod(0o700)
        assert next(walk(None, new)) == Change("C", "/")


def test_hard_links_count_among_paths_that_both_have(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    for tree in trees:
        for name in ("apart", "joined", "kept 1", "only name"):
            write(tree / name, "x")
        os.link(tree / "kept 1", tree / "kept 2")
    os.link(older / "apart", older / "with")
    os.link(older / "only name", older / "removed")
    write(newer / "with", "x")
    write(older / "to", "x")
    os.link(newer / "joined", newer / "to")
    os.link(newer / "only name", newer / "added")
    for tree in trees:
        for path in tree.iterdir():
            os.utime(path, ns=(0, 0))
    assert walked(older, newer) == ["A /added", "C /apart", "C /joined", "D /removed", "C /to", "C /with"]


def test_content_is_compared_beyond_any_buffer(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    for tree in trees:
        for name in ("same", "last byte", "hole"):
            write(tree / name, "x" * 1_000_000)
        with open(tree / "hole", "r+b") as file:
            file.truncate(0)
            file.truncate(1_000_000)
    (newer / "hole").write_bytes(bytes(1_000_000))
    with open(newer / "last byte", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"y")
    for tree in trees:
        for path in tree.iterdir():
            os.utime(path, ns=(0, 0))
    assert walked(older, newer) == ["C /last byte"]


@pytest.mark.parametrize("data_in", ["older", "newer"])
def test_data_where_the_other_has_a_hole(trees: tuple[Path, Path], data_in: str) -> None:
    for tree in trees:
        with open(tree / "f", "wb") as file:
            if tree.name == data_in:
                file.seek(3_000_000)
                file.write(b"x")
            file.truncate(5_000_000)
        os.utime(tree / "f", ns=(0, 0))
    assert walked(*trees) == ["C /f"]


def bytes_read() -> int:
    """By this process, so far (proc(5))."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def test_what_was_last_touched_before_the_trees_parted_is_not_read(tmp_path: Path) -> None:
    """The same tree twice stands for a snapshot: equal inode numbers and times."""
    tree = tmp_path / "tree"
    tree.mkdir()
    write(tree / "f", "x" * 1_000_000)
    touched = (tree / "f").stat().st_ctime_ns

    def read(settled_ns: int | None) -> bool:
        before = bytes_read()
        assert walked(tree, tree, settled_ns) == []
        return bytes_read() - before > 1_000_000

    assert read(None)
    assert read(touched - 1)
    assert read(touched + 10_000_000)
    assert not read(touched + 30_000_000)
    assert not read(FAR_FUTURE)


def test_a_copy_is_read_whatever_its_times(trees: tuple[Path, Path]) -> None:
    for tree in trees:
        write(tree / "f", tree.name)
    assert walked(*trees, settled_ns=FAR_FUTURE) == ["C /f"]


def test_depth_without_end(trees: tuple[Path, Path]) -> None:
    """1,000 directories below one another, names of 255 bytes, few descriptors and little memory."""
    older, newer = trees
    for tree in trees:
        fd = os.open(tree, os.O_RDONLY)
        for number in range(1000):
            name = f"{number:03}".ljust(255, "n")
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
            if number % 100 == 50:
                os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
                os.utime(f"f{number}", ns=(0, number if tree is newer else 0), dir_fd=fd)
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (160, hard))
    tracemalloc.start()
    try:
        with opened(older, newer) as (old, new):
            lengths = [len(change.path) for change in walk(old, new)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert lengths == [256 * (number + 1) + 1 + len(f"f{number}") for number in reversed(range(50, 1000, 100))]
    assert peak < 8 << 20
    for tree in trees:
        remove_deep(tree)


def remove_deep(tree: Path) -> None:
    """Path functions do not reach that deep."""
    with contextlib.suppress(FileNotFoundError), opened(tree) as (fd,), Descent(fd) as descent:
        while True:
            for name in os.listdir(descent.fd):
                if not name.startswith("f"):
                    descent.enter(name)
                    break
                os.unlink(name, dir_fd=descent.fd)
            else:
                if not os.listdir(descent.fd):
                    if descent.depth == 0:
                        return
                    descent.leave()
                    for name in os.listdir(descent.fd):
                        if not name.startswith("f"):
                            os.rmdir(name, dir_fd=descent.fd)


def test_many_changes_after_an_open_question_wait_outside_of_memory(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    for tree in trees:
        write(tree / "0 first name", "x")
        os.link(tree / "0 first name", tree / "zz last name")
    for number in range(500):
        write(newer / f"f{number:04}")
    assert walked(older, newer) == [f"A /f{number:04}" for number in range(500)]


def test_a_walk_that_is_given_up_closes_everything(trees: tuple[Path, Path]) -> None:
    older, newer = trees
    (newer / "d").mkdir()
    write(newer / "d" / "f")
    before = len(os.listdir("/proc/self/fd"))
    with opened(older, newer) as (old, new):
        changes = walk(old, new)
        next(changes)
        changes.close()  # type: ignore[attr-defined] # a generator
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with opened(tmp_path / "file") as (fd,), pytest.raises(TreeError, match="cannot be read"):
        list(walk(None, fd))


def test_a_directory_that_moves_meanwhile_is_noticed(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 60)
    deep.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with opened(tmp_path) as (fd,), Descent(fd) as descent:
        descent.go(["d"] * 60)
        (tmp_path / "d" / "d" / "d").rename(tmp_path / "elsewhere" / "d")
        with pytest.raises(TreeError, match="was moved"):
            descent.go(())
