"""The superblock of an ext4 file system, and the gate: what is not known here is not read.

Layout and meaning: `struct ext4_super_block` of the kernel's fs/ext4/ext4.h, the checks of fs/ext4/super.c. All
integers are little-endian.
"""

import struct

import attrs

from thinpool.filesystem.ext4.checksums import Checksums, crc32c, stored
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.features import Compat, Incompat, RoCompat, check_features
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

_STATE = struct.Struct("<HH")
_SYSTEM = struct.Struct("<IIHHIHHIII")  # creator_os .. feature_ro_compat
_DESCRIPTOR_SIZE = struct.Struct("<HI")  # and default mount options
_QUOTA = struct.Struct("<II")
_U32 = struct.Struct("<I")


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
        checked_s: when e2fsck, or mke2fs, last looked at it, in seconds since 1970.
        checksums: the checksums of its metadata; None where it has none.
        is_64bit: block numbers have more than 32 bits.
        has_large_directories: directories have sizes of 64 bits.
        has_kinds: a directory's entries tell the type of what they name.
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
    checked_s: int
    checksums: Checksums | None = attrs.field(eq=False, repr=False)
    # not asked of the flags each time, as that takes longer than what it is asked for
    is_64bit: bool = attrs.field(init=False, repr=False)
    has_large_directories: bool = attrs.field(init=False, repr=False)
    has_kinds: bool = attrs.field(init=False, repr=False)

    @is_64bit.default
    def _is_64bit(self) -> bool:
        return Incompat.BITS64 in self.incompat

    @has_large_directories.default
    def _has_large_directories(self) -> bool:
        return Incompat.LARGEDIR in self.incompat

    @has_kinds.default
    def _has_kinds(self) -> bool:
        return Incompat.FILETYPE in self.incompat

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-self.blocks // self.blocks_per_group)

    @property
    def table_size(self) -> int:
        """Bytes of a group's inode table."""
        return self.inodes_per_group * self.inode_size


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
    magic, state = _STATE.unpack_from(data, 0x38)
    if magic != _MAGIC:
        raise Unreadable("no ext4 file system: its superblock has another magic number")
    creator, revision, _, _, _, _, _, compat, incompat, ro_compat = _SYSTEM.unpack_from(data, 0x48)
    check_features(compat, incompat, ro_compat)
    checked = bool(ro_compat & RoCompat.METADATA_CSUM)
    if checked:
        _check_checksum(data)
    if incompat & Incompat.CSUM_SEED and not checked:
        raise Unreadable("the superblock has metadata_csum_seed without metadata_csum")
    _check_state(data, state, creator, revision)
    numbers = _Numbers.of(data, is_wide=bool(incompat & Incompat.BITS64))
    numbers.check(device_size)
    uuid = data[0x68:0x78]
    seed = _U32.unpack_from(data, 0x270)[0] if incompat & Incompat.CSUM_SEED else None
    return Superblock(
        uuid=uuid,
        size=numbers.blocks * BLOCK_SIZE,
        blocks=numbers.blocks,
        inodes=numbers.inodes,
        blocks_per_group=numbers.blocks_per_group,
        inodes_per_group=numbers.inodes_per_group,
        inode_size=numbers.inode_size,
        descriptor_size=numbers.descriptor_size,
        first_inode=numbers.first_inode,
        special_inodes=_special(data, numbers.first_inode, Compat(compat)),
        compat=Compat(compat),
        incompat=Incompat(incompat),
        ro_compat=RoCompat(ro_compat),
        checked_s=_U32.unpack_from(data, 0x40)[0],
        checksums=Checksums.of(uuid, seed) if checked else None,
    )


@attrs.frozen
class _Numbers:
    """The sizes and counts of a superblock, not yet checked."""

    is_wide: bool
    inodes: int
    blocks: int
    first_block: int
    log_size: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    first_inode: int
    inode_size: int
    descriptor_size: int

    @classmethod
    def of(cls, data: bytes, *, is_wide: bool) -> "_Numbers":
        inodes, low = struct.unpack_from("<II", data)
        first_block, log_size = struct.unpack_from("<II", data, 0x14)
        per_group, clusters, inodes_per_group = struct.unpack_from("<III", data, 0x20)
        _, _, _, _, first_inode, inode_size, *_ = _SYSTEM.unpack_from(data, 0x48)
        descriptor_size, _ = _DESCRIPTOR_SIZE.unpack_from(data, 0xFE)
        high = _U32.unpack_from(data, 0x150)[0] if is_wide else 0
        return cls(
            is_wide, inodes, low | high << 32, first_block, log_size, per_group, clusters, inodes_per_group,
            first_inode, inode_size, descriptor_size if is_wide else 32,
        )  # fmt: skip

    def check(self, device_size: int) -> None:
        inode_size, per_group, inodes_per_group = self.inode_size, self.blocks_per_group, self.inodes_per_group
        is_power = not inode_size & (inode_size - 1)
        device_blocks = device_size // BLOCK_SIZE
        for good, reason in (
            (self.log_size == 2, f"blocks of {1024 << min(self.log_size, 20)} bytes, known is {BLOCK_SIZE}"),
            (
                _LEAST_INODE_SIZE <= inode_size <= BLOCK_SIZE and is_power,
                f"inodes of {inode_size} bytes, known are 256 to {BLOCK_SIZE}",
            ),
            (
                self.descriptor_size == (64 if self.is_wide else 32),
                f"group descriptors of {self.descriptor_size} bytes",
            ),
            (self.first_block == 0, f"the first data block is {self.first_block}"),
            (_FIRST_INODE <= self.first_inode <= 8 * BLOCK_SIZE, f"the first inode is {self.first_inode}"),
            (
                0 < per_group <= _LARGEST_BLOCKS_PER_GROUP and self.clusters_per_group == per_group,
                f"{per_group} blocks and {self.clusters_per_group} clusters a group",
            ),
            (
                0 < inodes_per_group <= 8 * BLOCK_SIZE and not inodes_per_group * inode_size % BLOCK_SIZE,
                f"{inodes_per_group} inodes a group",
            ),
            (1 < self.blocks <= device_blocks, f"{self.blocks} blocks on a device of {device_blocks}"),
        ):
            if not good:
                raise Unreadable(f"the superblock cannot be read: {reason}")
        if self.inodes != -(-self.blocks // per_group) * inodes_per_group:
            raise Unreadable(f"the superblock is damaged: {self.inodes} inodes, {inodes_per_group} a group")


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
