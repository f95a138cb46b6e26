"""The features that a file system may have to be read here; all others are refused.

Flags: the kernel's fs/ext4/ext4.h.
"""

import enum
from collections.abc import Mapping

from thinpool.filesystem.ext4.errors import Unreadable


class Compat(enum.IntFlag):
    """Features that a kernel without them may ignore."""

    DIR_PREALLOC = 0x1
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(enum.IntFlag):
    """Features that a kernel must know."""

    FILETYPE = 0x2
    EXTENTS = 0x40
    BITS64 = 0x80
    FLEX_BG = 0x200
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000


class RoCompat(enum.IntFlag):
    """Features that a kernel must know to write."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    QUOTA = 0x100
    METADATA_CSUM = 0x400
    READONLY = 0x1000
    PROJECT = 0x2000
    ORPHAN_PRESENT = 0x10000


_KNOWN = {"compat": Compat, "incompat": Incompat, "ro_compat": RoCompat}
_REFUSED: Mapping[tuple[str, int], str] = {
    ("incompat", 0x1): "compression",
    ("incompat", 0x4): "needs_recovery (the journal holds changes that are not in their places)",
    ("incompat", 0x8): "journal_dev (it is the journal of another file system)",
    ("incompat", 0x10): "meta_bg",
    ("incompat", 0x100): "mmp (another machine may write to it)",
    ("incompat", 0x400): "ea_inode",
    ("incompat", 0x1000): "dirdata",
    ("incompat", 0x8000): "inline_data",
    ("incompat", 0x10000): "encrypt",
    ("incompat", 0x20000): "casefold",
    ("ro_compat", 0x200): "bigalloc",
    ("ro_compat", 0x4000): "shared_blocks",
    ("ro_compat", 0x8000): "verity",
}


def check_features(compat: int, incompat: int, ro_compat: int) -> None:
    """Refuse a file system with a feature that is not known here.

    Raises:
        Unreadable: names the feature.
    """
    for name, bits in (("incompat", incompat), ("ro_compat", ro_compat), ("compat", compat)):
        unknown = bits & ~sum(_KNOWN[name])
        if unknown:
            lowest = unknown & -unknown
            feature = _REFUSED.get((name, lowest), f"{name} feature {lowest:#x}")
            raise Unreadable(f"the file system has {feature}")
