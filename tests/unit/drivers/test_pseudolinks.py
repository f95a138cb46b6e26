"""Pseudo-links of aufs: what a mount would have to join is found, touched by all its names, and forgotten after it."""

import os
from pathlib import Path

from thinpool.drivers import pseudolinks


def test_an_upper_without_any(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert pseudolinks.pending(fd) == frozenset()
    pseudolinks.forget(fd)
    os.close(fd)


def test_all_names_are_touched_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "deep/er").mkdir(parents=True)
    (root / "a").write_text("a")
    (root / "a").chmod(0o4755)
    (root / "deep/er/b").hardlink_to(root / "a")
    (root / "link").symlink_to("a")
    os.link(root / "link", root / "deep/link", follow_symlinks=False)
    (root / "other").write_text("other")
    numbers = frozenset({(root / "a").stat().st_ino, (root / "link").lstat().st_ino})
    before = {path: path.lstat() for path in root.rglob("*")}
    fd = os.open(root, os.O_RDONLY)
    pseudolinks.join(fd, numbers)
    os.close(fd)
    for path, status in before.items():
        now = path.lstat()
        assert (now.st_mode, now.st_mtime_ns, now.st_uid) == (status.st_mode, status.st_mtime_ns, status.st_uid)
        assert (now.st_ctime_ns > status.st_ctime_ns) == (status.st_ino in numbers), path


def test_what_is_pending_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(pseudolinks.FOLDER)
    folder.mkdir()
    for name in ("11.20", "12.21", "odd"):
        (folder / name).touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    assert pseudolinks.pending(fd) == {11, 12}
    pseudolinks.forget(fd)
    assert pseudolinks.pending(fd) == frozenset()
    os.close(fd)
    assert list(folder.iterdir()) == []
