"""Give the blocks of a thin device that is about to be deleted back to what the pool lies on.

The kernel frees a deleted device's blocks in the pool's books, and tells nobody below: a loop file keeps its size, an
SSD keeps the data. Only a discard of the thin device itself is passed down, for blocks that no other device shares. So
before a deletion that frees much, just those blocks are discarded; they are found in the metadata by the kernel's
reference counts, at a cost that grows with what the device alone has. A deletion that frees little leaves its blocks to
be used again; most deletions are of that kind, and to tell them cheaply it is noted, when a device is deactivated, that
much was written to it.

Nothing here can harm: the device's contents are not wanted any more, and the kernel never passes down the discard of a
block that is shared. So the metadata are read as they are, and any trouble just ends the attempt.
"""

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.dm.device import device_path
from thinpool.errors import DeviceMapperError, PoolFailed, PoolFull
from thinpool.metadata import Books
from thinpool.metadata.btree import NodeReader
from thinpool.metadata.mappings import data_blocks, mapping_tree
from thinpool.metadata.reader import BlockReader
from thinpool.metadata.source import DirectFile
from thinpool.metadata.spacemap import data_space_map, metadata_space_map
from thinpool.metadata.superblock import SpaceMapRoot
from thinpool.pool.thins import ThinDevices
from thinpool.pool.written import WORTHWHILE

_BLKDISCARD = 0x1277  # include/uapi/linux/fs.h


def give_back(thins: "ThinDevices", metadata: Path, thin_id: int) -> bool:
    """Discard what a thin device alone has, if that is much and nobody has the device active.

    A process that dies meanwhile leaves a device with less in it, maybe active, which is to be deleted all the same.

    Args:
        thins: the thin devices of the pool.
        metadata: the device that the pool's metadata are on.
        thin_id: the device, just before it is deleted.

    Returns:
        Whether it was done.
    """
    try:
        if thins.is_active(thin_id) or freed_by_deletion(metadata, thin_id) < WORTHWHILE:
            return False
        last = deque(own_ranges(metadata, thin_id), maxlen=1)
        if not last:
            return False
        info = thins.activate(thin_id, sum(last[0]))
        try:
            discard(device_path(info), own_ranges(metadata, thin_id))
            point("blocks-given-back")
        finally:
            thins.deactivate(thin_id)
    except (PoolFailed, PoolFull, DeviceMapperError, OSError):
        return False
    return True


def freed_by_deletion(metadata: Path, thin_id: int) -> int:
    """Bytes of data that one device alone has.

    Raises:
        PoolFailed: there is no such device, or the metadata cannot be read.
    """
    with Books.open(metadata) as books:
        return books.exclusive_blocks(thin_id) * books.data_block_size


def own_ranges(metadata: Path, thin_id: int) -> Iterator[tuple[int, int]]:
    """Where on a device the blocks are that it alone has: offset and length in bytes, ascending, adjacent ones as one.

    Raises:
        PoolFailed: there is no such device, or the metadata cannot be read.
    """
    with Books.open(metadata) as books:
        root, superblock, size = books.mapping_root(thin_id), books.superblock, books.data_block_size
    start = end = 0
    for block in _own_blocks(metadata, root, superblock.metadata_space_map, superblock.data_space_map):
        if block != end:
            if end > start:
                yield start * size, (end - start) * size
            start = block
        end = block + 1
    if end > start:
        yield start * size, (end - start) * size


def _own_blocks(metadata: Path, root: int, *counts: SpaceMapRoot | None) -> Iterator[int]:
    """The virtual blocks of which the kernel counts one reference, below tree nodes of which it does."""
    nodes_root, data_root = counts
    reader = BlockReader(DirectFile.open(metadata))
    try:
        if nodes_root is None or data_root is None:
            return
        nodes = NodeReader(reader)
        node_counts, data_counts = metadata_space_map(reader, nodes_root), data_space_map(nodes, data_root)
        for leaf in mapping_tree(nodes, root).leaves(select=node_counts.once):
            once = data_counts.once(data_blocks(leaf))
            yield from (key for key, own in zip(leaf.keys, once, strict=True) if own)
    finally:
        reader.close()


def discard(device: Path, ranges: Iterator[tuple[int, int]]) -> None:
    """Discard ranges of a block device, offset and length in bytes (BLKDISCARD of blkdiscard(8)).

    Raises:
        OSError: EBUSY, where somebody has the device; EOPNOTSUPP, where it takes no discards.
    """
    fd = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        for offset, length in ranges:
            fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))
    finally:
        os.close(fd)
