"""Many layers made one, in the notation of aufs, which needs neither root nor a mount."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinpool.drivers.branches import Branches, name_of
from thinpool.drivers.marks import AufsMarks
from thinpool.errors import MountError


@attrs.frozen
class Dir:
    """A directory of an upper: whether it is opaque, and a file's text, a directory, or None for a whiteout."""

    opaque: bool = False
    entries: "dict[str, str | Dir | None]" = attrs.field(factory=dict)


Shown = dict[str, object]

_leaves = st.one_of(st.none(), st.sampled_from(["one", "two"]))
_names = st.sampled_from(["a", "b", "c"])
_directories = st.recursive(
    st.builds(Dir, st.booleans(), st.dictionaries(_names, _leaves)),
    lambda below: st.builds(Dir, st.booleans(), st.dictionaries(_names, st.one_of(_leaves, below))),
    max_leaves=6,
)
_layers = st.lists(_directories.map(lambda top: attrs.evolve(top, opaque=False)), min_size=4, max_size=9)


def view(stack: Sequence[Dir]) -> Shown:
    """What a stack shows, the topmost first, in the most simple-minded way."""
    shown: Shown = {}
    for name in {name for layer in stack for name in layer.entries}:
        directories: list[Dir] = []
        for layer in stack:
            if name not in layer.entries:
                continue
            found = layer.entries[name]
            if not isinstance(found, Dir):
                if found is not None and not directories:
                    shown[name] = found
                break
            directories.append(found)
            if found.opaque:
                break
        if directories:
            shown[name] = view(directories)
    return shown


def write(path: Path, directory: Dir) -> None:
    path.mkdir(exist_ok=True)
    if directory.opaque:
        (path / ".wh..wh..opq").touch()
    for name, found in directory.entries.items():
        if isinstance(found, Dir):
            write(path / name, found)
        elif found is None:
            (path / f".wh.{name}").touch()
        else:
            (path / name).write_text(found)


def read(path: Path) -> Dir:
    found = Dir(opaque=(path / ".wh..wh..opq").exists())
    for entry in path.iterdir():
        if entry.name.startswith(".wh..wh."):
            continue
        if entry.name.startswith(".wh."):
            found.entries[entry.name.removeprefix(".wh.")] = None
        else:
            found.entries[entry.name] = read(entry) if entry.is_dir() else entry.read_text()
    return found


def write_shown(path: Path, shown: Shown) -> None:
    path.mkdir(exist_ok=True)
    for name, found in shown.items():
        if isinstance(found, dict):
            write_shown(path / name, found)
        else:
            (path / name).write_text(str(found))


def hides_nothing(top: Dir, below: Shown | None) -> bool:
    """Whether an upper has a whiteout of something that is not there."""
    reached = None if top.opaque else below
    for name, found in top.entries.items():
        under = None if reached is None else reached.get(name)
        if found is None and under is None:
            return True
        if isinstance(found, Dir) and hides_nothing(found, under if isinstance(under, dict) else None):
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(layers=_layers)
def test_one_upper_shows_what_many_did(layers: list[Dir]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        check_pressing(folder, layers)
    finally:
        shutil.rmtree(folder)


def check_pressing(folder: Path, layers: list[Dir]) -> None:
    root = folder / "driver"
    Branches.make(root)

    def look(names: Sequence[str]) -> int:
        place = Path(tempfile.mkdtemp(dir=folder))
        write_shown(place, view([read(root / "d" / name) for name in names]))
        return os.open(place, os.O_PATH | os.O_DIRECTORY)

    branches = Branches(root, AufsMarks(), len(layers), look)
    try:
        for number, layer in enumerate(layers, 1):
            write(root / "d" / name_of(number), layer)
            (root / "p" / name_of(number)).symlink_to(name_of(number - 1))
        expected = view(list(reversed(layers)))
        branches.create(99, len(layers))
        stack = branches.below(99)
        assert len(stack) == len(layers) - len(layers) * 9 // 10 + 1
        assert stack[0] == f"{name_of(len(layers))}+"
        uppers = [read(root / "d" / name) for name in stack]
        assert view(uppers) == expected
        assert not hides_nothing(uppers[0], view(uppers[1:]))
        assert list(branches.descent(99)) == [name_of(99), *(name_of(number) for number in range(len(layers), 0, -1))]
        assert os.listdir(root / "t") == []
        for number in (99, *range(len(layers), 0, -1)):
            assert branches.delete(number)
            assert not branches.delete(number)
        assert os.listdir(root / "d") == ["0"]
        assert os.listdir(root / "p") == []
    finally:
        branches.close()


@pytest.fixture
def branches(tmp_path: Path) -> Branches:
    Branches.make(tmp_path)
    return Branches(tmp_path, AufsMarks(), 126, lambda _: os.open(tmp_path / "d/0", os.O_PATH))


def test_a_copy_of_an_upper_has_no_bookkeeping(branches: Branches) -> None:
    branches.create(1, None)
    upper = branches.directory / "d" / "1"
    assert sorted(os.listdir(upper)) == [".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk"]  # what a mount would make
    for name in (".wh.gone", "kept"):
        (upper / name).touch()
    (upper / "dir").mkdir()
    (upper / "dir" / ".wh..wh..opq").touch()
    os.link(upper / "kept", upper / "dir" / "link")
    with (upper / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
        file.truncate(2 << 20)
    branches.snapshot(2, 1)
    copy = branches.directory / "d" / "2"
    assert sorted(os.listdir(copy)) == [".wh.gone", "dir", "holes", "kept"]
    assert sorted(os.listdir(copy / "dir")) == [".wh..wh..opq", "link"]
    assert (copy / "kept").stat().st_ino == (copy / "dir" / "link").stat().st_ino
    assert (copy / "kept").stat().st_nlink == 2
    assert (copy / "holes").read_bytes() == (upper / "holes").read_bytes()
    assert branches.space(2).inodes == 6  # marks take some too
    branches.close()


def test_what_was_half_made_is_made_anew(branches: Branches) -> None:
    (branches.directory / "p" / "1").symlink_to("zz")
    (branches.directory / "d" / "1").mkdir()
    (branches.directory / "d" / "1" / "left").touch()
    (branches.directory / "t" / "1" / "l").mkdir(parents=True)
    branches.create(1, None)
    assert "left" not in os.listdir(branches.directory / "d" / "1")
    assert branches.stack(1) == ["1"]
    branches.close()


def test_storage_that_is_not_there_is_named(branches: Branches) -> None:
    with pytest.raises(MountError, match="p/5 is missing"):
        branches.stack(5)
    branches.create(5, None)
    shutil.rmtree(branches.directory / "d" / "5")
    with pytest.raises(MountError, match="d/5 is missing"):
        branches.space(5)
    branches.close()
    branches.close()
