"""Changes that are hard to tell from changed inodes: replaced directories, hard links, writes that leave few traces.

`CASES` has them by name: what fills the folder, and what is done to it afterwards.
"""

import ctypes
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.kernel.layer.trees import CAPABILITY

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
