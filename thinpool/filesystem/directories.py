"""Directories that stay open."""

import os


def names(directory: int) -> list[str]:
    """The names in a directory, by a file descriptor that has been open for a while.

    It is opened anew: on btrfs, a directory shows what was in it when it was opened or rewound last (btrfs_opendir and
    btrfs_dir_llseek in fs/btrfs/inode.c), and os.listdir() rewinds when it has read, not before.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)
