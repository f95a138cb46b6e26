"""The superblock of an ext4 file system, and the gate: what is not known here is not read.

Layout and meaning: `struct ext4_super_block` and the feature flags of the kernel's fs/ext4/ext4.h, the checks of
fs/ext4/super.c. All integers are little-endian.
"""

import enum
import struct
from collections.abc import Mapping

import attrs

from thinpool.filesystem.ext4.checksums import Checksums, crc32c, stored
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.volume import Volume

BLOCK_SIZE = 4096
"""Bytes of a block; no other size is read."""

ROOT_INODE = 2

_OFFSET = 1024
_SIZE = 1024
_MAGIC = 0xEF53
_LEAST_INODE_SIZE = 160
_VALID, _ERROR = 1, 2  # EXT4_VALID_FS, EXT4_ERROR_FS
_UID16 = 0x10  # EXT4_DEFM_UID16
_CRC32C = 1
_LARGEST_BLOCKS_PER_GROUP = 8 * BLOCK_SIZE
_FIRST_INODE = 11

_STATE = struct.Struct("<HHH")
_SYSTEM = struct.Struct("<IIHHIHHIII")  # creator_os .. feature_ro_compat
_DESCRIPTOR_SIZE = struct.Struct("<HI")  # and default mount options
_QUOTA = struct.Struct("<II")
_U32 = struct.Struct("<I")


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


@attrs.frozen
class Superblock:
    """What of a superblock matters for reading.

    Attributes:
        uuid: 16 bytes.
        size: bytes of the file system.
        blocks: blocks of 4096 bytes.
        inodes: how many inodes the tables have room for.
        blocks_per_group: blocks of a group; the last may have fewer.
        inodes_per_group: inodes of a group.
        inode_size: bytes of an inode in its table.
        descriptor_size: bytes of a group descriptor, 32 or 64.
        first_inode: the first that is not reserved.
        special_inodes: inodes that hold no file of the tree: the reserved ones but for the root directory, and those
            of quotas, journal and orphan list.
        compat: features.
        incompat: features.
        ro_compat: features.
        checksums: the checksums of its metadata; None where it has none.
    """

    uuid: bytes
    size: int
    blocks: int
    inodes: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    first_inode: int
    special_inodes: frozenset[int]
    compat: Compat
    incompat: Incompat
    ro_compat: RoCompat
    checksums: Checksums | None = attrs.field(eq=False, repr=False)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-self.blocks // self.blocks_per_group)

    @property
    def table_size(self) -> int:
        """Bytes of a group's inode table."""
        return self.inodes_per_group * self.inode_size

    @property
    def has_type_in_entries(self) -> bool:
        """Whether a directory's entries tell the type of what they name."""
        return Incompat.FILETYPE in self.incompat


def read_superblock(volume: Volume) -> Superblock:
    """Read and check the superblock of a device.

    Raises:
        Unreadable: it is no ext4, or one that cannot be read here; says why.
    """
    if volume.size < _OFFSET + _SIZE:
        raise Unreadable("the device is too small for an ext4 file system")
    return parse_superblock(volume.read(_OFFSET, _SIZE), volume.size)


def parse_superblock(data: bytes, device_size: int) -> Superblock:
    """Check and parse the 1024 bytes of a superblock.

    Raises:
        Unreadable: see `read_superblock`.
    """
    magic, state, _ = _STATE.unpack_from(data, 0x38)
    if magic != _MAGIC:
        raise Unreadable("no ext4 file system: its superblock has another magic number")
    creator, revision, _, _, first, inode_size, _, compat, incompat, ro_compat = _SYSTEM.unpack_from(data, 0x48)
    _check_features(compat, incompat, ro_compat)
    checked = bool(ro_compat & RoCompat.METADATA_CSUM)
    if checked:
        _check_checksum(data)
    if incompat & Incompat.CSUM_SEED and not checked:
        raise Unreadable("the superblock has metadata_csum_seed without metadata_csum")
    _check_state(data, state, creator, revision)
    inodes, low, _, first_block, log_size, blocks_per_group, clusters, inodes_per_group = _numbers(data)
    blocks = low | (_U32.unpack_from(data, 0x150)[0] << 32 if incompat & Incompat.BITS64 else 0)
    size_given, _ = _DESCRIPTOR_SIZE.unpack_from(data, 0xFE)
    descriptor_size = size_given if incompat & Incompat.BITS64 else 32
    reasons = (
        (log_size == 2, f"the blocks have {1024 << min(log_size, 20)} bytes, known is {BLOCK_SIZE}"),
        (
            _LEAST_INODE_SIZE <= inode_size <= BLOCK_SIZE and not inode_size & (inode_size - 1),
            f"the inodes have {inode_size} bytes, known are 256 to {BLOCK_SIZE}",
        ),
        (descriptor_size in {32, 64}, f"group descriptors of {descriptor_size} bytes, known are 32 and 64"),
        (first_block == 0, f"the first data block is {first_block}"),
        (_FIRST_INODE <= first <= 8 * BLOCK_SIZE, f"the first inode is {first}"),
        (
            0 < blocks_per_group <= _LARGEST_BLOCKS_PER_GROUP and clusters == blocks_per_group,
            f"{blocks_per_group} blocks and {clusters} clusters a group",
        ),
        (
            0 < inodes_per_group <= 8 * BLOCK_SIZE and not inodes_per_group * inode_size % BLOCK_SIZE,
            f"{inodes_per_group} inodes a group",
        ),
        (1 < blocks <= device_size // BLOCK_SIZE, f"{blocks} blocks on a device of {device_size // BLOCK_SIZE}"),
    )
    for good, reason in reasons:
        if not good:
            raise Unreadable(f"the superblock cannot be read: {reason}")
    if inodes != -(-blocks // blocks_per_group) * inodes_per_group:
        raise Unreadable(f"the superblock is damaged: {inodes} inodes, {inodes_per_group} a group")
    uuid = bytes(data[0x68:0x78])
    seed = _U32.unpack_from(data, 0x270)[0] if incompat & Incompat.CSUM_SEED else None
    return Superblock(
        uuid=uuid,
        size=blocks * BLOCK_SIZE,
        blocks=blocks,
        inodes=inodes,
        blocks_per_group=blocks_per_group,
        inodes_per_group=inodes_per_group,
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        first_inode=first,
        special_inodes=_special(data, first, Compat(compat)),
        compat=Compat(compat),
        incompat=Incompat(incompat),
        ro_compat=RoCompat(ro_compat),
        checksums=Checksums.of(uuid, seed) if checked else None,
    )


def _numbers(data: bytes) -> tuple[int, ...]:
    # inodes, blocks, (free inodes), first block, log of block size, blocks, clusters and inodes a group
    inodes, blocks = struct.unpack_from("<II", data)
    free, first, log_size, _ = struct.unpack_from("<IIII", data, 0x10)
    per_group, clusters, inodes_per_group = struct.unpack_from("<III", data, 0x20)
    return inodes, blocks, free, first, log_size, per_group, clusters, inodes_per_group


def _check_features(compat: int, incompat: int, ro_compat: int) -> None:
    for name, bits in (("incompat", incompat), ("ro_compat", ro_compat), ("compat", compat)):
        unknown = bits & ~sum(_KNOWN[name])
        if unknown:
            lowest = unknown & -unknown
            feature = _REFUSED.get((name, lowest), f"{name} feature {lowest:#x}")
            raise Unreadable(f"the file system has {feature}")


def _check_checksum(data: bytes) -> None:
    if data[0x175] != _CRC32C:
        raise Unreadable(f"the superblock has checksums of type {data[0x175]}, known is {_CRC32C}")
    if stored(crc32c()(data[:0x3FC], 0)) != _U32.unpack_from(data, 0x3FC)[0]:
        raise Unreadable("the superblock is damaged: wrong checksum")


def _check_state(data: bytes, state: int, creator: int, revision: int) -> None:
    if revision != 1 or creator != 0:
        raise Unreadable(f"the file system is of revision {revision} and system {creator}, known are 1 and 0 (Linux)")
    if state & _ERROR:
        raise Unreadable("the file system is marked as having errors")
    if not state & _VALID:
        raise Unreadable("the file system was not unmounted cleanly")
    if _DESCRIPTOR_SIZE.unpack_from(data, 0xFE)[1] & _UID16:
        raise Unreadable("the file system asks to be mounted with owners of 16 bits")


def _special(data: bytes, first: int, compat: Compat) -> frozenset[int]:
    (journal,) = _U32.unpack_from(data, 0xE0)
    quotas = (*_QUOTA.unpack_from(data, 0x240), *_U32.unpack_from(data, 0x26C))
    (orphans,) = _U32.unpack_from(data, 0x280) if Compat.ORPHAN_FILE in compat else (0,)
    return frozenset({*range(1, first), journal, *quotas, orphans} - {0, ROOT_INODE})
