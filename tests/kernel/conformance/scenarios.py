"""What happens to a tree from layer to layer: each scenario goes on, after a `yield`, in a child of what it made.

A `yield` commits the layer and gives the root of the next one. The roots lie in different places, so a scenario keeps
no path across a `yield`.
"""

import ctypes
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Generator
from pathlib import Path

Scenario = Generator[None, Path, None]

SCENARIOS: list[Callable[[Path], Scenario]] = []

SOME_TIME_NS = 1_600_000_000_123_456_789


def scenario(function: Callable[[Path], Scenario]) -> Callable[[Path], Scenario]:
    """Take a scenario into the suite."""
    SCENARIOS.append(function)
    return function


def again_with_its_time(path: Path, data: bytes, offset: int = 0) -> None:
    """Overwrite content and put the time of modification back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# -- content of files


@scenario
def files_of_all_sizes(root: Path) -> Scenario:
    for size in (0, 1, 59, 60, 156, 4095, 4096, 4097, 65_536, 1_000_000):
        (root / f"{size}").write_bytes(os.urandom(size))
    root = yield
    for path in root.iterdir():
        with path.open("ab") as file:
            file.write(b"more")


@scenario
def a_file_written_over_at_the_same_size_and_time(root: Path) -> Scenario:
    for name in ("small", "large"):
        (root / name).write_bytes(b"a" * (10 if name == "small" else 300_000))
    root = yield
    again_with_its_time(root / "small", b"b")
    again_with_its_time(root / "large", b"b", 250_000)


@scenario
def a_file_made_shorter_and_longer(root: Path) -> Scenario:
    (root / "f").write_bytes(b"x" * 200_000)
    root = yield
    os.truncate(root / "f", 5)
    root = yield
    os.truncate(root / "f", 100_000)


@scenario
def a_file_touched_and_put_back(root: Path) -> Scenario:
    (root / "f").write_text("same")
    root = yield
    status = (root / "f").stat()
    (root / "f").chmod(0o600)
    (root / "f").chmod(stat.S_IMODE(status.st_mode))
    again_with_its_time(root / "f", b"same")


@scenario
def a_file_made_again_as_it_was(root: Path) -> Scenario:
    (root / "f").write_text("same")
    os.utime(root / "f", ns=(0, SOME_TIME_NS))
    root = yield
    (root / "f").unlink()
    (root / "f").write_text("same")
    os.utime(root / "f", ns=(0, SOME_TIME_NS))


@scenario
def one_byte_in_the_middle_of_a_big_file(root: Path) -> Scenario:
    with (root / "big").open("wb") as file:
        for _ in range(4):
            file.write(os.urandom(1 << 20))
    root = yield
    again_with_its_time(root / "big", b"!", 3_000_000)


@scenario
def holes(root: Path) -> Scenario:
    with (root / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(30 << 20)
    (root / "nothing").touch()
    os.truncate(root / "nothing", 64 << 20)
    root = yield
    again_with_its_time(root / "sparse", b"!", 20 << 20)
    os.truncate(root / "nothing", 0)


@scenario
def a_shared_mapping_written_to(root: Path) -> Scenario:
    (root / "f").write_bytes(bytes(20_000))
    root = yield
    with (root / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[10_000:10_004] = b"here"


@scenario
def a_file_deleted_while_it_is_open(root: Path) -> Scenario:
    (root / "there").write_text("there")
    root = yield
    with (root / "there").open("r+b") as file:
        (root / "there").unlink()
        file.write(b"nowhere")


# -- names that come and go


@scenario
def a_file_deleted_made_again_and_deleted_again(root: Path) -> Scenario:
    (root / "f").write_text("first")
    (root / "other").write_text("other")
    root = yield
    (root / "f").unlink()
    root = yield
    (root / "f").write_text("again")
    root = yield
    (root / "f").unlink()


@scenario
def a_file_renamed_and_moved(root: Path) -> Scenario:
    for name in ("a", "b"):
        (root / name).mkdir()
    (root / "a/f").write_text("f")
    (root / "g").write_text("g")
    root = yield
    (root / "a/f").rename(root / "b/f")
    (root / "g").rename(root / "h")
    root = yield
    (root / "b/f").rename(root / "a/f")


@scenario
def a_file_replaced_by_a_rename(root: Path) -> Scenario:
    (root / "config").write_text("old")
    root = yield
    (root / "config.new").write_text("new")
    (root / "config.new").replace(root / "config")


@scenario
def a_directory_moved(root: Path) -> Scenario:
    """By a rename where it can be; where the kernel says EXDEV, as overlayfs may, by copying, as mv(1) does."""
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/f").write_text("f")
    (root / "target").mkdir()
    root = yield
    shutil.move(root / "a/b", root / "target/moved")
    root = yield
    shutil.move(root / "target", root / "a/target")


@scenario
def a_new_directory_renamed(root: Path) -> Scenario:
    (root / "there").mkdir()
    root = yield
    (root / "new/below").mkdir(parents=True)
    (root / "new/below/f").write_text("f")
    (root / "new").rename(root / "there/renamed")


@scenario
def two_files_exchanged(root: Path) -> Scenario:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    root = yield
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = 2  # RENAME_EXCHANGE, include/uapi/linux/fs.h
    done = libc.renameat2(-100, os.fsencode(root / "a"), -100, os.fsencode(root / "b"), exchange)
    if done:  # a file system that cannot
        (root / "a").rename(root / "c")
        (root / "b").rename(root / "a")
        (root / "c").rename(root / "b")


# -- directories


@scenario
def a_tree_removed(root: Path) -> Scenario:
    (root / "tree/with/depth").mkdir(parents=True)
    (root / "tree/with/f").write_text("f")
    (root / "kept/removed/below").mkdir(parents=True)
    root = yield
    shutil.rmtree(root / "tree")
    shutil.rmtree(root / "kept/removed")


@scenario
def a_directory_removed_and_made_again_empty(root: Path) -> Scenario:
    (root / "d/sub").mkdir(parents=True)
    (root / "d/old").write_text("old")
    root = yield
    shutil.rmtree(root / "d")
    (root / "d").mkdir()


@scenario
def a_directory_removed_and_made_again_with_other_content(root: Path) -> Scenario:
    (root / "d/sub/deep").mkdir(parents=True)
    for name in ("d/old", "d/both", "d/sub/old", "d/sub/deep/old"):
        (root / name).write_text(name)
    root = yield
    shutil.rmtree(root / "d")
    (root / "d/sub").mkdir(parents=True)
    (root / "d/both").write_text("new")
    (root / "d/new").write_text("new")
    root = yield
    (root / "d/sub/deep").mkdir()
    (root / "d/old").write_text("back")
    root = yield
    shutil.rmtree(root / "d/sub")
    (root / "d/sub").mkdir()


@scenario
def a_directory_emptied_and_kept(root: Path) -> Scenario:
    (root / "d").mkdir()
    for name in ("a", "b", "c"):
        (root / "d" / name).write_text(name)
    root = yield
    for path in (root / "d").iterdir():
        path.unlink()
    root = yield
    (root / "d").rmdir()


@scenario
def everything_removed(root: Path) -> Scenario:
    (root / "a/b").mkdir(parents=True)
    (root / "f").write_text("f")
    root = yield
    shutil.rmtree(root / "a")
    (root / "f").unlink()
    root = yield
    (root / "a").write_text("a file now")


@scenario
def many_files_and_half_of_them_removed(root: Path) -> Scenario:
    for number in range(200):
        (root / f"file-{number:04}").write_bytes(b"%d" % number)
    root = yield
    for number in range(0, 200, 2):
        (root / f"file-{number:04}").unlink()


# -- types that change


@scenario
def a_file_becomes_a_directory_and_a_file_again(root: Path) -> Scenario:
    (root / "x").write_text("file")
    root = yield
    (root / "x").unlink()
    (root / "x").mkdir()
    (root / "x/inside").write_text("inside")
    root = yield
    shutil.rmtree(root / "x")
    (root / "x").write_text("file again")


@scenario
def a_directory_becomes_a_file_and_a_directory_again(root: Path) -> Scenario:
    (root / "x/y").mkdir(parents=True)
    (root / "x/f").write_text("f")
    root = yield
    shutil.rmtree(root / "x")
    (root / "x").write_text("file")
    root = yield
    (root / "x").unlink()
    (root / "x").mkdir()


@scenario
def a_directory_becomes_a_symbolic_link_to_where_it_went(root: Path) -> Scenario:
    (root / "lib").mkdir()
    (root / "lib/f").write_text("f")
    root = yield
    (root / "usr").mkdir()
    shutil.move(root / "lib", root / "usr/lib")
    (root / "lib").symlink_to("usr/lib")
    root = yield
    (root / "lib").unlink()
    (root / "lib").mkdir()


@scenario
def every_type_becomes_every_other(root: Path) -> Scenario:
    makers: tuple[Callable[[Path], object], ...] = (
        lambda path: path.write_text("file"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("target"),
        os.mkfifo,
        lambda path: os.mknod(path, stat.S_IFSOCK | 0o755),
        lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0)),
    )
    for old in range(len(makers)):
        for new in range(len(makers)):
            makers[old](root / f"{old}-{new}")
    root = yield
    for old in range(len(makers)):
        for new in range(len(makers)):
            path = root / f"{old}-{new}"
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
            makers[new](path)
