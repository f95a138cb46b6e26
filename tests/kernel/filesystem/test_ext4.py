"""What the reader of ext4 shows of a device is what a mount shows."""

import contextlib
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.filesystem.disks import READ_ONLY, VARIANTS, copy, fill, make, mounted, run
from tests.kernel.layer.trees import OPERATIONS, Mutator, Step
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import INDEX_FLAG
from thinpool.filesystem.ext4.view import Ext4View
from thinpool.filesystem.ext4.volume import FileVolume
from thinpool.filesystem.formats import Ext4
from thinpool.layer.changes import walk_views
from thinpool.layer.view import MountedView, View
from thinpool.layer.xattrs import belongs

pytestmark = pytest.mark.kernel(device_mapper=False)

SIZE = 192 << 20
FIELDS = (
    "st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip
MAKING = ("create", "mkdir", "link", "symlink", "sparse", "set_xattr", "chmod", "device", "acl")


def steps(seed: str, count: int, among: tuple[str, ...] = OPERATIONS) -> list[Step]:
    dice = random.Random(seed)
    return [
        Step(dice.choice(among), dice.randrange(1 << 16), dice.randrange(1 << 16), dice.randrange(1 << 16))
        for _ in range(count)
    ]


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Ext4View]:
    with FileVolume.open(path) as volume:
        yield Ext4View(Image.open(volume), belongs)


@contextlib.contextmanager
def on_mount(path: Path) -> Iterator[MountedView]:
    with mounted(path, READ_ONLY) as root:
        fd = os.open(root, os.O_PATH)
        try:
            with MountedView(fd) as view:
                yield view
        finally:
            os.close(fd)


def assert_alike(ours: View, theirs: View) -> int:
    """Compare all that two views tell of the present directory and of all below; returns the number of entries."""
    count = 0
    names = ours.entries()
    assert names == theirs.entries()
    assert names == ours.entries([*names, "not there"]) == theirs.entries([*names, "not there"])
    for name in [".", *names]:
        status, other = ours.status(name), theirs.status(name)
        for field in FIELDS:
            if field != "st_rdev" or stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                assert getattr(status, field) == getattr(other, field), (name, field)
        assert ours.attributes(name) == theirs.attributes(name)
        if stat.S_ISLNK(status.st_mode):
            assert ours.target(name) == theirs.target(name)
    for name, inode in names.items():
        count += 1
        if inode:
            ours.enter(name)
            theirs.enter(name)
            count += assert_alike(ours, theirs)
            ours.leave()
            theirs.leave()
    return count


def assert_shown_as_mounted(path: Path) -> int:
    """All of the tree, and every content, in both directions."""
    with on_disk(path) as raw, on_mount(path) as mount:
        count = assert_alike(raw, mount)
        assert list(walk_views(mount, raw)) == []
        assert list(walk_views(raw, mount)) == []
    return count


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_thing_on_every_kind_of_file_system(scratch: Path, variant: str) -> None:
    path = make(scratch / "image", SIZE, VARIANTS[variant])
    with mounted(path) as root:
        fill(root)
        (root / "random").mkdir()
        Mutator(root / "random").run([*steps(variant, 40, MAKING), *steps(variant, 40)])
    assert assert_shown_as_mounted(path) > 1100


def test_what_is_rare_is_there(scratch: Path) -> None:
    """The forms on the disk that the test above is about: deep trees of extents, hashed directories, shared blocks."""
    path = make(scratch / "image", SIZE)
    with mounted(path) as root:
        fill(root)
        numbers = {name: (root / name).lstat().st_ino for name in ("files/fragments", "directories/700 names")}
        shared = [(root / f"attributes/shared {number}").lstat().st_ino for number in range(3)]
    with FileVolume.open(path) as volume:
        image = Image.open(volume)
        fragments = image.used_inode(numbers["files/fragments"])
        assert fragments.block[6] == 2  # eh_depth
        assert len(list(image.extents(fragments))) == 1500
        assert image.used_inode(numbers["directories/700 names"]).flags & INDEX_FLAG
        blocks = {image.used_inode(number).attribute_block for number in shared}
        assert len(blocks) == 1
        assert 0 not in blocks


def test_a_directory_with_a_hashed_tree_of_two_levels(scratch: Path) -> None:
    path = make(scratch / "image", SIZE)
    with mounted(path) as root:
        (root / "file").touch()
        for number in range(9000):
            os.link(root / "file", root / f"{number:05}".ljust(250, "-"))
    with FileVolume.open(path) as volume:
        image = Image.open(volume)
        entries = image.used_inode(2)
        first = next(image.extents(entries))
        assert volume.read(first.block * 4096 + 30, 1) == b"\1"  # indirect_levels of struct dx_root_info
        assert len(image.entries(entries)) == 9000 + 4
    assert assert_shown_as_mounted(path) == 9000 + 2


def test_a_file_system_that_was_grown(scratch: Path) -> None:
    path = scratch / "image"
    path.touch()
    os.truncate(path, 64 << 20)
    Ext4().make(path, ("-N", "512"))
    os.truncate(path, 1 << 30)
    with mounted(path) as root:
        Mutator(root).run(steps("before", 60, MAKING))
        fd = os.open(root, os.O_RDONLY)
        try:
            Ext4().grow(fd, 1 << 30)
        finally:
            os.close(fd)
        for number in range(700):  # more than the first group has room for
            (root / f"{number}").write_bytes(b"x" * number * 10)
    with FileVolume.open(path) as volume:
        image = Image.open(volume)
        assert image.superblock.size == 1 << 30
        assert image.superblock.inodes_per_group == 512
        assert max(entry.inode for entry in image.entries(image.used_inode(2)).values()) > 512
    assert assert_shown_as_mounted(path) > 700


@pytest.mark.parametrize("seed", range(8))
def test_two_states_differ_on_disk_as_they_do_mounted(scratch: Path, seed: int, long_run: bool) -> None:
    variants = list(VARIANTS.values())
    for number in range(100 if long_run else 1):
        older = make(scratch / f"older {number}", 64 << 20, variants[(seed + number) % len(variants)])
        with mounted(older) as root:
            Mutator(root).run(steps(f"{seed} {number} before", 60, MAKING))
        newer = copy(older, scratch / f"newer {number}")
        with mounted(newer) as root:
            Mutator(root).run(steps(f"{seed} {number} after", 25))
        with on_disk(older) as first, on_disk(newer) as second:
            on_disks = list(walk_views(first, second)), list(walk_views(second, first))
        with on_mount(older) as one, on_mount(newer) as other:
            on_mounts = list(walk_views(one, other)), list(walk_views(other, one))
        assert on_disks == on_mounts
        assert on_disks[0]
        older.unlink()
        newer.unlink()


def test_a_mounted_file_system_is_left_alone_until_its_journal_is_written_back(scratch: Path) -> None:
    """Frozen, it can be read; what is unlinked and still open then has no name, and is no trouble."""
    path = make(scratch / "image", SIZE)
    with mounted(path) as root:
        (root / "file").write_bytes(b"kept")
        (root / "removed").write_bytes(b"x" * 100_000)
        with (root / "removed").open("rb") as held:
            (root / "removed").unlink()
            with pytest.raises(Unreadable, match="needs_recovery"), on_disk(path):
                pass
            run("fsfreeze", "--freeze", str(root))
            snapshot = copy(path, scratch / "snapshot")
            run("fsfreeze", "--unfreeze", str(root))
            number = os.fstat(held.fileno()).st_ino
    with on_disk(snapshot) as view:
        assert view.image.inode(number) is None
        assert set(view.entries()) == {"file", "lost+found"}
    assert assert_shown_as_mounted(snapshot) == 2
