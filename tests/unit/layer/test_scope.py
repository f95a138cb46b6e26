"""A walk that looks only where trees may differ finds what a walk over everything finds."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from thinpool.layer.changes import walk
from thinpool.layer.scope import Scope
from thinpool.model import Change

NAMES = ("a", "b", "c.d", "\udcff", "é")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
steps = st.lists(st.tuples(st.sampled_from(("file", "directory", "remove", "move", "link", "mode")), paths, paths))


def carry_out(root: Path, work: Sequence[tuple[str, Sequence[str], Sequence[str]]], text: str) -> None:
    for verb, first, second in work:
        path, other = root.joinpath(*first), root.joinpath(*second)
        try:
            match verb:
                case "file":
                    path.write_text(text)
                    os.utime(path, ns=(0, 0))
                case "directory":
                    path.mkdir(parents=True)
                case "remove":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                case "move":
                    path.rename(other)
                case "link":
                    other.hardlink_to(path)
                case _:
                    path.chmod(0o700)
        except OSError:
            continue


def copy(source: Path, target: Path) -> None:
    """Copy a tree with its hard links."""
    copies: dict[int, str] = {}

    def copy_file(file: str, to: str) -> str:
        inode = os.stat(file).st_ino
        if inode in copies:
            os.link(copies[inode], to)
        else:
            copies[inode] = str(shutil.copy2(file, to))
        return to

    shutil.copytree(source, target, copy_function=copy_file)


def compared(older: Path, newer: Path, scope: Scope | None) -> list[Change]:
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (older, newer)]
    try:
        return list(walk(*fds, scope=scope))
    finally:
        for fd in fds:
            os.close(fd)


def parts_of(path: str) -> list[str]:
    return path.strip("/").split("/") if path != "/" else []


@given(first=steps, then=steps, more=st.lists(st.tuples(paths, st.booleans(), st.booleans())), listed=st.booleans())
def test_a_scope_that_holds_all_changes_finds_them_all(
    first: list[tuple[str, Sequence[str], Sequence[str]]],
    then: list[tuple[str, Sequence[str], Sequence[str]]],
    more: list[tuple[Sequence[str], bool, bool]],
    listed: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        older, newer = Path(folder, "older"), Path(folder, "newer")
        older.mkdir()
        carry_out(older, first, "one")
        copy(older, newer)
        carry_out(newer, then, "two")
        everything = compared(older, newer, None)
        scope = Scope(same_inodes=False)
        for change in everything:
            *above, name = parts_of(change.path) or [""]
            if listed:
                scope.add(above, listed=True)
            elif name:
                scope.add([*above, name])
        for path, is_listed, whole in more:
            scope.add(path, listed=is_listed, whole=whole)
        assert compared(older, newer, scope) == everything


def test_nothing_else_is_looked_at(tmp_path: Path) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    for tree, text in ((older, "one"), (newer, "three")):
        (tree / "d" / "e").mkdir(parents=True)
        for name in ("f", "d/f", "d/e/f", "d/g"):
            (tree / name).write_text(text)
    scope = Scope(same_inodes=False)
    scope.add(["d", "f"])
    scope.add(["d", "missing"])
    assert compared(older, newer, scope) == [Change("C", "/d/f")]
    scope.add(["d"], listed=True)
    assert compared(older, newer, scope) == [Change("C", "/d/f"), Change("C", "/d/g")]
    scope.add(["d"], whole=True)
    assert [change.path for change in compared(older, newer, scope)] == ["/d/e/f", "/d/f", "/d/g"]


def test_a_directory_that_another_one_replaced_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    for tree, text in ((older, "one"), (newer, "three")):
        (tree / "d").mkdir(parents=True)
        (tree / "d" / "f").write_text(text)
    scope = Scope()
    scope.add([], listed=True)
    assert compared(older, newer, scope) == [Change("C", "/d/f")]
