"""The two writes that thinpool makes to metadata itself: to its first block, while no pool is active on it."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinpool.metadata.superblock import SUPERBLOCK_SALT, checksum

_BLOCK = 4096


def zero_first_block(metadata: Path) -> None:
    """Clear the first block, which makes the kernel format the device when it activates a pool on it."""
    with _direct(metadata) as (fd, block):
        os.pwritev(fd, [block], 0)
        os.fsync(fd)


def write_uuid(metadata: Path, name: bytes) -> None:
    """Put a uuid into a superblock; the kernel carries that field along and never sets it (dm-thin-metadata.c)."""
    with _direct(metadata) as (fd, block):
        os.preadv(fd, [block], 0)
        block[16:32] = name
        struct.pack_into("<I", block, 0, checksum(bytes(block), SUPERBLOCK_SALT))
        os.pwritev(fd, [block], 0)
        os.fsync(fd)


@contextmanager
def _direct(metadata: Path) -> Iterator[tuple[int, mmap.mmap]]:
    """A device past the page cache, which the kernel's own writes to metadata do not touch, and an aligned block."""
    fd = os.open(metadata, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, _BLOCK) as block:
            yield fd, block
    finally:
        os.close(fd)
