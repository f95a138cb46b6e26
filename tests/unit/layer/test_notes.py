"""Notes of an import: what is noted is done when it is settled, and nothing of the notes stays."""

import os
from pathlib import Path

import pytest

from thinpool.layer.notes import Writer, settle
from thinpool.layer.xattrs import OWN, belongs

TIME_NS = -1_500_000_000_123_456_789


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file, a symbolic link, a FIFO and a directory with a file in it."""
    (tmp_path / "d").mkdir()
    for name in ("f", "d/f"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


def everything(tree: Path) -> list[Path]:
    return [tree, *sorted(tree.rglob("*"))]


def settled(tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    try:
        settle(fd)
    finally:
        os.close(fd)


def test_times_are_set_again(tree: Path) -> None:
    """As a union file system cuts them on the way, seconds alone are there before."""
    writer = Writer(noting=True)
    fd = os.open(tree, os.O_RDONLY)
    for path in everything(tree):
        name = os.fsencode(path.relative_to(tree))
        if path.is_dir():
            directory = os.open(path, os.O_RDONLY)
            writer.set_time(directory, TIME_NS)
            os.close(directory)
        else:
            writer.set_time_at(fd, name, TIME_NS)
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    os.close(fd)
    settled(tree)
    for path in everything(tree):
        assert path.lstat().st_mtime_ns == TIME_NS, path
        assert os.listxattr(path, follow_symlinks=False) == []


def test_whole_seconds_need_no_note(tree: Path) -> None:
    fd = os.open(tree / "f", os.O_RDONLY)
    Writer(noting=True).set_time(fd, 5_000_000_000)
    os.close(fd)
    assert os.listxattr(tree / "f") == []


def test_without_notes_none_are_left(tree: Path) -> None:
    fd = os.open(tree / "f", os.O_RDONLY)
    Writer().set_time(fd, TIME_NS)
    os.close(fd)
    assert (os.listxattr(tree / "f"), (tree / "f").stat().st_mtime_ns) == ([], TIME_NS)


def test_what_was_removed_goes_unless_it_was_set_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["user.gone", "user.set again", "user.kept"]
    for name in names:
        os.setxattr(tree / "d", name, b"value")
    with monkeypatch.context() as patch:
        patch.setattr(os, "removexattr", lambda fd, name: os.setxattr(fd, name, b""))  # as aufs does it
        fd = os.open(tree / "d", os.O_RDONLY)
        for name in names[:2]:
            Writer(noting=True).remove_attribute(fd, name)
        os.close(fd)
    os.setxattr(tree / "d", "user.set again", b"new")
    settled(tree)
    found = {name: os.getxattr(tree / "d", name) for name in os.listxattr(tree / "d")}
    assert found == {"user.set again": b"new", "user.kept": b"value"}


def test_notes_belong_to_no_layer() -> None:
    assert not belongs(f"{OWN}mtime")
