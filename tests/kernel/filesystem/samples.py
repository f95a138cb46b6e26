"""Makes the small file systems of tests/data: `tools/lab -- python -m tests.kernel.filesystem.samples DIRECTORY`.

Kernel and mke2fs of the lab make them, so that what is in them is what a kernel writes.
"""

import os
import struct
import sys
import tempfile
from pathlib import Path

import zstandard

from tests.kernel.filesystem.disks import make, mounted

_FEATURES = "none,ext_attr,dir_index,filetype,sparse_super,large_file,huge_file,dir_nlink,extra_isize"
SAMPLES = {
    "checked": f"{_FEATURES},extent,64bit,flex_bg,metadata_csum",
    "unchecked": f"{_FEATURES},extent,flex_bg,uninit_bg",
    "maps": _FEATURES,
}
_SIZE = 1 << 20


def fill(root: Path) -> None:
    """A few of everything."""
    (root / "file").write_bytes(b"content")
    (root / "data").write_bytes(os.urandom(9000))
    with (root / "fragments").open("wb") as file:
        for number in range(7):
            os.pwrite(file.fileno(), struct.pack("<Q", number) * 20, number << 13)
        os.pwrite(file.fileno(), b"far", 20 << 20)
        os.truncate(file.fileno(), 1 << 30)
    try:
        with (root / "unwritten").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 12288)
            os.pwrite(file.fileno(), b"in the middle", 5000)
    except OSError:
        (root / "unwritten").unlink()
    (root / "short").symlink_to("target")
    (root / "long").symlink_to("t" * 100)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "disk", 0o060660, os.makedev(259, 300))
    (root / "folder" / "below").mkdir(parents=True)
    (root / "folder" / "below" / "file").write_bytes(b"below")
    os.utime(root / "folder" / "below" / "file", ns=(0, 3_000_000_000_123_456_789))
    hashed = root / "hashed"
    hashed.mkdir()
    for number in range(36):
        os.link(root / "file", hashed / f"{number:02}".ljust(250, "-"))
    for name in ("data", "folder"):
        os.setxattr(root / name, "user.in the inode", b"short")
        for number in range(12):
            os.setxattr(root / name, f"trusted.in a block {number}", b"v" * number)
    acl = struct.pack(
        "<IHHIHHIHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 2, 5, 1000, 4, 5, 0xFFFFFFFF, 16, 7, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF
    )
    for kind in ("access", "default"):
        os.setxattr(root / "folder" / "below", f"system.posix_acl_{kind}", acl)
    os.setxattr(root / "file", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))


def main(target: Path) -> None:
    for name, features in SAMPLES.items():
        with tempfile.TemporaryDirectory() as folder:
            identity = (
                "-U",
                "11111111-2222-3333-4444-555555555555",
                "-E",
                "lazy_itable_init=0,hash_seed=11111111-2222-3333-4444-555555555555",
            )
            path = make(Path(folder, "image"), _SIZE, ("-t", "ext4", "-O", features, "-N", "64", "-m", "0", *identity))
            with mounted(path) as root:
                fill(root)
            data = zstandard.ZstdCompressor(19).compress(path.read_bytes())
            (target / f"ext4-{name}.zst").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
