"""The superblock of a thin pool's metadata, parsed and checked.

Layout and constants: `struct thin_disk_superblock` of the kernel's drivers/md/dm-thin-metadata.c, `struct
disk_sm_root` of drivers/md/persistent-data/dm-space-map-common.h; the checksum is `dm_bm_checksum` of
dm-block-manager.c. All integers are little-endian.
"""

import enum
import os
import struct
from collections.abc import Callable
from functools import cache
from typing import cast

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.reader import BLOCK_SIZE, MAX_BLOCKS, DirectFile

__all__ = [
    "BITMAP_SALT",
    "INDEX_SALT",
    "NODE_SALT",
    "SUPERBLOCK_SALT",
    "SpaceMapRoot",
    "Superblock",
    "SuperblockFlag",
    "checksum",
    "parse_superblock",
    "read_superblock",
]

SUPERBLOCK_SALT = 160774
NODE_SALT = 121107
BITMAP_SALT = 240779
INDEX_SALT = 160478
"""What the kernel mixes into the checksum of each kind of block (`*_CSUM_XOR`)."""

_MAGIC = 27022010
_VERSIONS = (1, 2)
_METADATA_BLOCK_SECTORS = BLOCK_SIZE // 512
_DATA_BLOCK_SECTORS_MIN = 128
_DATA_BLOCK_SECTORS_MAX = 2097152
_DATA_BLOCKS_MAX = 1 << 40  # a mapping has 40 bits for one (pack_block_time in dm-thin-metadata.c)

_HEADER = struct.Struct("<IIQ16sQIIQQ")
_DATA_SPACE_MAP = 64
_METADATA_SPACE_MAP = 192
_ROOTS = struct.Struct("<QQIIQIII")
_ROOTS_AT = 320
_SPACE_MAP_ROOT = struct.Struct("<QQQQ")


class SuperblockFlag(enum.IntFlag):
    """Bits of the superblock's flags."""

    NEEDS_CHECK = 1


@attrs.frozen
class SpaceMapRoot:
    """Where the reference counts of one device's blocks are kept.

    Attributes:
        blocks: number of blocks that are counted.
        allocated: how many of them have a count above zero.
        bitmap_root: metadata block of the index of bitmaps (a B-tree for data, one index block for metadata).
        ref_count_root: metadata block of the B-tree of counts above two.
    """

    blocks: int
    allocated: int
    bitmap_root: int
    ref_count_root: int


@attrs.frozen
class Superblock:
    """One committed state of a pool's metadata.

    Attributes:
        block: metadata block this was read from; 0, or that of a metadata snapshot.
        flags: see `SuperblockFlag`; bits without a name are kept.
        uuid: 16 bytes; the kernel writes zeros and never reads them.
        version: format version, 1 or 2.
        time: the counter of snapshots that mappings are stamped with.
        transaction_id: the user-space counter, set by `set_transaction_id`.
        held_root: metadata block of the metadata snapshot's superblock, 0 where none is reserved.
        data_space_map: counts of data blocks; None in a metadata snapshot, where the kernel wipes it.
        metadata_space_map: counts of metadata blocks; None in a metadata snapshot.
        mapping_root: B-tree from thin id to the root of that device's B-tree of mappings.
        details_root: B-tree from thin id to the device's details.
        data_block_size_sectors: the pool's block size in 512-byte sectors.
        metadata_block_size: bytes of a metadata block, always 4096.
        metadata_blocks: size of the metadata in blocks when it was formatted; growing leaves it as it was, so ask
            `metadata_space_map.blocks` for the size in force.
        compat_flags: features that an old kernel may ignore.
        compat_ro_flags: features that an old kernel may ignore as long as it does not write.
        incompat_flags: features that must be understood; none is defined, so always 0 here.
    """

    block: int
    flags: SuperblockFlag
    uuid: bytes
    version: int
    time: int
    transaction_id: int
    held_root: int
    data_space_map: SpaceMapRoot | None
    metadata_space_map: SpaceMapRoot | None
    mapping_root: int
    details_root: int
    data_block_size_sectors: int
    metadata_block_size: int
    metadata_blocks: int
    compat_flags: int
    compat_ro_flags: int
    incompat_flags: int

    @property
    def needs_check(self) -> bool:
        """Whether the kernel marked the metadata as needing a check after a failed write."""
        return bool(self.flags & SuperblockFlag.NEEDS_CHECK)

    @property
    def data_block_size(self) -> int:
        """The pool's block size in bytes."""
        return self.data_block_size_sectors * 512


def checksum(block: bytes, salt: int) -> int:
    """The checksum that belongs into the first four bytes of a metadata block of the kind that the salt stands for."""
    return _crc32c()(memoryview(block)[4:]) ^ 0xFFFFFFFF ^ salt


@cache
def _crc32c() -> Callable[[memoryview], int]:
    from crc32c import crc32c  # noqa: PLC0415 - it looks up its own version, which costs every command

    return cast("Callable[[memoryview], int]", crc32c)


def parse_superblock(data: bytes, block: int = 0) -> Superblock:
    """Check and parse one metadata block that should hold a superblock.

    Args:
        data: the 4096 bytes of the block.
        block: the number it was read from, which it must carry.

    Raises:
        PoolFailed: naming the block and what is wrong with it.
    """
    if len(data) != BLOCK_SIZE:
        raise PoolFailed(f"metadata block {block}: {len(data)} bytes given, a superblock has {BLOCK_SIZE}")
    csum, flags, number, uuid, magic, version, time, transaction_id, held_root = _HEADER.unpack_from(data)
    mapping, details, data_sectors, metadata_sectors, blocks, compat, compat_ro, incompat = _ROOTS.unpack_from(
        data, _ROOTS_AT
    )
    reason = None
    if not any(data):
        reason = "all zeros, no pool has been made here"
    elif magic != _MAGIC:
        reason = f"magic number {magic} where a thin pool has {_MAGIC}"
    elif csum != checksum(data, SUPERBLOCK_SALT):
        reason = "wrong checksum"
    elif number != block:
        reason = f"claims to be block {number}"
    elif version not in _VERSIONS:
        reason = f"format version {version}, known are 1 and 2"
    elif incompat:
        reason = f"incompatible features {incompat:#x}, none is known"
    elif metadata_sectors != _METADATA_BLOCK_SECTORS:
        reason = f"metadata blocks of {metadata_sectors} sectors, known is {_METADATA_BLOCK_SECTORS}"
    elif not _DATA_BLOCK_SECTORS_MIN <= data_sectors <= _DATA_BLOCK_SECTORS_MAX or data_sectors % 128:
        reason = f"data blocks of {data_sectors} sectors, the kernel accepts 128 to 2097152 in steps of 128"
    elif not mapping or not details:
        reason = "no mapping tree or no tree of device details"
    else:
        reason = _wrong_counts(data)
    if reason:
        raise PoolFailed(f"metadata block {block} is no valid superblock: {reason}")
    return Superblock(
        block=block,
        flags=SuperblockFlag(flags),
        uuid=uuid,
        version=version,
        time=time,
        transaction_id=transaction_id,
        held_root=held_root,
        data_space_map=_space_map_root(data, _DATA_SPACE_MAP),
        metadata_space_map=_space_map_root(data, _METADATA_SPACE_MAP),
        mapping_root=mapping,
        details_root=details,
        data_block_size_sectors=data_sectors,
        metadata_block_size=BLOCK_SIZE,
        metadata_blocks=blocks,
        compat_flags=compat,
        compat_ro_flags=compat_ro,
        incompat_flags=incompat,
    )


def _wrong_counts(data: bytes) -> str | None:
    """What is wrong with the sizes that the space maps claim."""
    limits = (("data", _DATA_SPACE_MAP, _DATA_BLOCKS_MAX), ("metadata", _METADATA_SPACE_MAP, MAX_BLOCKS))
    for name, offset, limit in limits:
        root = _space_map_root(data, offset)
        if root is not None and root.blocks > limit:
            return f"{root.blocks} blocks of {name}, there can be {limit}"
        if root is not None and root.allocated > root.blocks:
            return f"{root.allocated} of {root.blocks} blocks of {name} in use"
    return None


def _space_map_root(data: bytes, offset: int) -> SpaceMapRoot | None:
    root = SpaceMapRoot(*_SPACE_MAP_ROOT.unpack_from(data, offset))
    return root if root.bitmap_root else None


def read_superblock(device: str | bytes | os.PathLike[str] | int, block: int = 0) -> Superblock:
    """Read the superblock of a metadata device, past the page cache.

    Args:
        device: path of the metadata device or of an image of it, or a file descriptor, which stays open and keeps
            its position.
        block: metadata block to read; another than 0 for a metadata snapshot.

    Raises:
        PoolFailed: the block cannot be read, or holds no valid superblock.
    """
    with DirectFile.open(device) as file:
        return parse_superblock(file.read(block), block)
