"""The name that all kernel objects of one store share."""

import os
from pathlib import Path


def store_prefix(root: Path) -> str:
    """What the names of a store's objects begin with: from its root's device and inode, so no two stores share it.

    It is the same for as long as the root's file system stays mounted, which the store's loop devices and mounts see
    to; the kernel's objects do not outlive that either.
    """
    found = os.stat(root)
    return f"thinpool-{found.st_dev:x}-{found.st_ino:x}"
