"""Extended attributes, in the inode and in a block that inodes share.

Layout and checks: the kernel's fs/ext4/xattr.h and `check_xattrs` of xattr.c; access control lists: fs/ext4/acl.c.
"""

from collections.abc import Mapping

from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import Superblock
from thinpool.filesystem.ext4.volume import Volume


def read(volume: Volume, superblock: Superblock, inode: Inode) -> Mapping[str, bytes]:
    """All extended attributes that a mount shows, as listxattr(2) and getxattr(2) do.

    Raises:
        Unreadable: they are damaged.
    """
    raise NotImplementedError
