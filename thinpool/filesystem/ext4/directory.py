"""The entries of a directory.

Layout and checks: `struct ext4_dir_entry_2` of the kernel's fs/ext4/ext4.h, the structures of hashed trees in
namei.c, `__ext4_check_dir_entry` of dir.c. A directory with a hashed tree reads like any other: the blocks of the tree look
like empty entries, so only their checksums are of another kind.
"""

from collections.abc import Mapping
from typing import NamedTuple

from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import Superblock
from thinpool.filesystem.ext4.volume import Volume


class Entry(NamedTuple):
    """One entry.

    Attributes:
        inode: the inode's number.
        kind: the type of the inode, as `stat.S_IFMT` of its mode; 0 where the file system does not keep it here.
    """

    inode: int
    kind: int


def read(volume: Volume, superblock: Superblock, inode: Inode) -> Mapping[bytes, Entry]:
    """All entries of a directory by name, `.` and `..` among them.

    Raises:
        Unreadable: it is damaged, or no directory.
    """
    raise NotImplementedError
