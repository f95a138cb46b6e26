"""ext4 file systems in files: made with any features, mounted, copied."""

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from thinpool.filesystem import syscalls

READ_ONLY, NO_ATIME = 1, 1024

VARIANTS = {
    "defaults": (),
    "32 bits": ("-O", "^64bit"),
    "without checksums": ("-O", "^metadata_csum"),
    "checksums of groups": ("-O", "^metadata_csum,uninit_bg"),
    "checksums of groups, 32 bits": ("-O", "^metadata_csum,uninit_bg,^64bit"),
    "inodes of 512 bytes": ("-I", "512"),
    "inodes of 4096 bytes": ("-I", "4096", "-i", "32768"),
    "groups for themselves": ("-O", "^flex_bg", "-g", "4096"),
    "groups in pairs": ("-G", "2", "-g", "2048"),
    "all groups as one": ("-G", "128", "-g", "2048"),
    "block maps": ("-O", "^extent,^64bit"),
    "ext3": ("-t", "ext3"),
    "ext2": ("-t", "ext2"),
    "no hashed directories": ("-O", "^dir_index"),
    "no types in entries": ("-O", "^filetype"),
    "two superblocks": ("-O", "sparse_super2,^resize_inode"),
    "a file of orphans": ("-O", "orphan_file"),
    "fast commits": ("-O", "fast_commit"),
    "quotas": ("-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota"),
    "large directories": ("-O", "large_dir"),
    "a seed of its own": ("-O", "metadata_csum_seed"),
    "no journal": ("-O", "^has_journal"),
    "lazy tables": ("-E", "lazy_itable_init=1"),
}


def make(path: Path, size: int, arguments: Sequence[str] = ()) -> Path:
    """A file system of ext4 unless the arguments say otherwise."""
    with path.open("wb") as file:
        file.truncate(size)
    kind = () if "-t" in arguments else ("-t", "ext4")
    inode_size = () if "-I" in arguments else ("-I", "256")
    run("mke2fs", "-q", "-F", "-b", "4096", *kind, *inode_size, *arguments, str(path))
    return path


@contextlib.contextmanager
def loop(path: Path) -> Iterator[str]:
    """A loop device on a file."""
    device = run("losetup", "--find", "--show", str(path)).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(path: Path, flags: int = NO_ATIME) -> Iterator[Path]:
    """Mount a file system, beside its file."""
    with loop(path) as device:
        place = path.with_name(f"{path.name}.mounted")
        place.mkdir()
        syscalls.mount(device, str(place), "ext4", flags)
        try:
            yield place
        finally:
            syscalls.umount(str(place))
            place.rmdir()


def copy(source: Path, target: Path) -> Path:
    """A snapshot of a file system that is not mounted."""
    run("cp", "--sparse=always", str(source), str(target))
    return target


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="surrogateescape")
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


TIMES = (
    -(1 << 31) * 10**9,
    -(1 << 31) * 10**9 + 1,
    -1,
    -999_999_999,
    0,
    999_999_999,
    ((1 << 31) - 1) * 10**9 + 999_999_999,
    (1 << 31) * 10**9,
    (1 << 32) * 10**9 + 5,
    (1 << 33) * 10**9 + 123_456_789,
    ((1 << 34) - (1 << 31) - 1) * 10**9 + 999_999_999,
)


def fill(root: Path) -> None:
    """Everything that has a form of its own on the disk; what a file system refuses is left out."""
    for step in (_files, _links, _special, _attributes, _times, _directories, _removed):
        folder = root / step.__name__.strip("_")
        folder.mkdir()
        step(folder)


def _files(root: Path) -> None:
    (root / "empty").touch()
    (root / "small").write_bytes(b"x")
    (root / "owned").write_bytes(b"y" * 5000)
    os.chown(root / "owned", 0xFFFF_FFF0, 70_000)
    (root / "whole chunks").write_bytes(os.urandom(1 << 19))
    (root / "some").write_bytes(os.urandom((1 << 19) + 4097))
    with (root / "fragments").open("wb") as file:  # three levels of extents, or of a map
        for number in range(1500):
            os.pwrite(file.fileno(), struct.pack("<Q", number), number << 13)
    with (root / "far").open("wb") as file:
        for position in (0, 11 << 12, 12 << 12, 1035 << 12, 1036 << 12, 4 << 30, 5 << 30, 1 << 40):
            with contextlib.suppress(OSError):
                os.pwrite(file.fileno(), b"far", position)
    (root / "hole at the end").write_bytes(b"z" * 4096)
    os.truncate(root / "hole at the end", 1 << 33)
    with contextlib.suppress(OSError), (root / "unwritten").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        os.pwrite(file.fileno(), b"in the middle", 500_000)
    with contextlib.suppress(AssertionError):
        shutil.copy(root / "some", root / "holes and more")
        run("fallocate", "--punch-hole", "--offset", "8192", "--length", "100000", str(root / "holes and more"))
        run("fallocate", "--keep-size", "--offset", "0", "--length", "3000000", str(root / "holes and more"))
        run("fallocate", "--zero-range", "--offset", "300000", "--length", "9000", str(root / "holes and more"))


def _links(root: Path) -> None:
    for length in (1, 58, 59, 60, 61, 1000, 4000):
        (root / f"to {length}").symlink_to("t" * length)
    (root / "file").write_bytes(b"many names")
    for number in range(10):
        (root / f"name {number}").hardlink_to(root / "file")
    os.symlink(b"\xff/\x01", root / "odd")
    os.setxattr(root / "to 59", "trusted.k", b"v" * 3000, follow_symlinks=False)
    os.setxattr(root / "to 60", "trusted.k", b"v" * 3000, follow_symlinks=False)


def _special(root: Path) -> None:
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", 0o140755)
    for kind in (0o020000, 0o060000):
        for major, minor in ((0, 1), (1, 0), (1, 3), (255, 255), (256, 0), (0, 256), (4095, 1_048_575), (8, 70_000)):
            os.mknod(root / f"{kind:o} {major} {minor}", kind | 0o640, os.makedev(major, minor))
    for mode in (0, 0o7777, 0o4755, 0o1777):
        (root / f"mode {mode:o}").touch()
        (root / f"mode {mode:o}").chmod(mode)


def _attributes(root: Path) -> None:
    for size in (0, 1, 3, 4, 30, 100, 1000, 3900):
        path = root / f"value {size}"
        path.touch()
        os.setxattr(path, "user.k", b"v" * size)
        with contextlib.suppress(OSError):  # no space, beside the longest
            os.setxattr(path, "user." + "n" * 200, b"w")
    for number in range(3):  # one block for all
        path = root / f"shared {number}"
        path.touch()
        for key in range(20):
            os.setxattr(path, f"trusted.key-{key}", b"the same for all three")
        os.removexattr(path, "trusted.key-3")
    entries = ((1, 7, -1), (2, 5, 1000), (2, 0, 4_000_000_000), (4, 5, -1), (8, 7, 70_000), (16, 7, -1), (32, 4, -1))
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, bits, ids & 0xFFFFFFFF) for tag, bits, ids in entries
    )
    folder = root / "with lists"
    folder.mkdir()
    os.setxattr(folder, "system.posix_acl_access", acl)
    os.setxattr(folder, "system.posix_acl_default", acl)
    (folder / "inherits").write_bytes(b"x")
    os.setxattr(folder / "inherits", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(folder / "inherits", "security.selinux", b"not a layer's")


def _times(root: Path) -> None:
    for time_ns in TIMES:
        path = root / str(time_ns)
        path.touch()
        os.utime(path, ns=(0, time_ns))
        path = root / f"link {time_ns}"
        path.symlink_to("x")
        os.utime(path, ns=(0, time_ns), follow_symlinks=False)


def _directories(root: Path) -> None:
    (root / "file").touch()
    for count, length in ((40, 9), (700, 120)):
        folder = root / f"{count} names"
        folder.mkdir()
        for number in range(count):
            os.link(root / "file", folder / f"{number:03}".ljust(length, "-"))
    emptied = root / "emptied"
    emptied.mkdir()
    for number in range(400):
        os.link(root / "file", emptied / f"{number:03}".ljust(200, "-"))
    for number in range(0, 400, 2):
        (emptied / f"{number:03}".ljust(200, "-")).unlink()
    for name in (b"\xff\xfe", b"n" * 255, b"new\nline", "é世".encode(), b".hidden", b"..."):
        os.mkdir(os.fsencode(root) + b"/" + name)
    deep = root
    for number in range(40):
        deep = deep / f"level {number}"
        deep.mkdir()


def _removed(root: Path) -> None:
    for number in range(50):
        (root / f"{number}").write_bytes(b"x" * 100 * number)
    for number in range(0, 50, 3):
        (root / f"{number}").unlink()
    (root / "directory").mkdir()
    (root / "directory").rmdir()
