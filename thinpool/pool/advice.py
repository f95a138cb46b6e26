"""What is worth saying about a pool: how large its metadata should be, what is short, what is not for production."""

from collections.abc import Iterator

from thinpool.pool.health import METADATA_BLOCK, PoolStatus
from thinpool.pool.options import METADATA_MAX, METADATA_MIN
from thinpool.units import human_size

TRIAL = (
    "the pool lies on loop files, which are for trying thinpool out: writes pass through the host's file system, and"
    " fail when that is full; in production give it block devices (dm.datadev and dm.metadatadev, on an SSD and with"
    " the metadata mirrored) or an LVM thin pool (dm.thinpooldev)"
)
"""Said once, when a store is made."""

NOT_ZEROED = (
    "the pool does not zero new blocks: who reads a layer as a raw device can find what others deleted;"
    " lvchange --zero y VG/POOL changes that"
)

_MAPPINGS_PER_NODE = 126  # half of the 252 that a node holds at most: B-trees split nodes in the middle
_COUNTS_PER_BITMAP = (METADATA_BLOCK - 16) * 4
_DEVICES = 1000
_SPARE_BLOCKS = 64
_METADATA_PERCENT = 80


def metadata_advice(data_size: int, block_size: int, devices: int = _DEVICES) -> int:
    """Bytes of metadata that a pool should have, within what the kernel accepts.

    One mapping for each data block in nodes that are half full, a node of its own for each thin device, and the
    superblock: what thin_metadata_size(8) of thin-provisioning-tools 0.9 computes. Snapshots that are written to have
    more nodes of their own; there is no bound that is not absurd.

    Args:
        data_size: bytes of data.
        block_size: bytes of a data block.
        devices: thin devices and snapshots.
    """
    nodes = 1 + data_size // block_size // _MAPPINGS_PER_NODE + devices
    return min(max(nodes * METADATA_BLOCK, METADATA_MIN), METADATA_MAX)


def space_map_size(data_size: int, block_size: int) -> int:
    """Bytes of metadata that the reference counts of data blocks take: two bits a block, in blocks of 4 KiB.

    Each begins with a header of 16 bytes (`struct disk_bitmap_header`, persistent-data/dm-space-map-common.h); the
    index of them is a B-tree of nodes that are half full.
    """
    bitmaps = -(-(data_size // block_size) // _COUNTS_PER_BITMAP)
    return (bitmaps + bitmaps // _MAPPINGS_PER_NODE + 1) * METADATA_BLOCK


def room_to_count(data_size: int, new_size: int, block_size: int) -> int:
    """Bytes of metadata that must be free before data grow: twice what their counts take, and a little.

    The kernel writes what it changes of its books to new places, and frees the old ones with the next commit.
    """
    more = space_map_size(new_size, block_size) - space_map_size(data_size, block_size)
    return 2 * more + _SPARE_BLOCKS * METADATA_BLOCK if new_size > data_size else 0


def warnings(status: PoolStatus, *, data_percent: int, least_free_percent: int) -> Iterator[str]:
    """What people should know about an active or inactive pool.

    Args:
        status: its state.
        data_percent: how full its data may be.
        least_free_percent: what must be free before anything new is begun.
    """
    yield from _state(status)
    for what, used, total, limit in (
        ("data", status.data_used, status.data_total, data_percent),
        ("metadata", status.metadata_used, status.metadata_total, _METADATA_PERCENT),
    ):
        if total and used * 100 >= total * limit:
            yield f"{what} is {100 * used / total:.1f} % full: thinpool grow --{what} SIZE, or rm layers"
        if total and (total - used) * 100 < total * least_free_percent:
            yield f"{what} has less than dm.min_free_space={least_free_percent}% free: nothing new can be begun"
    advised = metadata_advice(status.data_total, status.block_size) if status.block_size else 0
    if status.metadata_total and status.metadata_total < advised:
        yield (
            f"{human_size(status.metadata_total)} of metadata are few for {human_size(status.data_total)} of data in"
            f" blocks of {human_size(status.block_size)}: {human_size(advised)} are advised"
        )


def _state(status: PoolStatus) -> Iterator[str]:
    if status.mode == "fail":
        yield "the pool has failed: dmesg tells why; thinpool down, then check the metadata with thin_check"
    elif status.needs_check:
        yield "the metadata needs a check: thinpool down, then thin_check; until then nothing can be written"
    elif status.mode == "ro":
        yield "the pool is read-only: its metadata is full or could not be written, dmesg tells which"
    elif status.mode == "out_of_data_space":
        yield "the pool is out of data space: thinpool grow --data SIZE, or rm layers"


def promise_warning(data_free: int, below_free: int) -> str | None:
    """A sparse file promises more than the file system below it has.

    Args:
        data_free: bytes that the pool may still take of its data file.
        below_free: bytes that the file system below has free.
    """
    if data_free <= below_free:
        return None
    return (
        f"the file system below the loop files has {human_size(below_free)} free, and the pool may take"
        f" {human_size(data_free)} more: writes to layers fail when it is full"
    )
