"""Inodes: what stat(2) tells of them, and the parts that lead on.

Layout: `struct ext4_inode` of the kernel's fs/ext4/ext4.h; meaning and checks: `__ext4_iget` and `ext4_inode_csum` of
fs/ext4/inode.c.
"""

import os
import stat
import struct

import attrs

from thinpool.filesystem.ext4.checksums import Checksums
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.superblock import Superblock

EXTENTS_FLAG = 0x80000
INDEX_FLAG = 0x1000

_REFUSED_FLAGS = {
    0x800: "encrypted",
    0x100000: "sealed by fs-verity",
    0x200000: "the value of an attribute (ea_inode)",
    0x10000000: "stored inside its inode (inline_data)",
    0x40000000: "a directory that folds case",
}
_ALL_REFUSED = sum(_REFUSED_FLAGS)
_TYPES = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_BASE = 128  # EXT4_GOOD_OLD_INODE_SIZE
_ALL_EXTRA = 32  # what the kernel takes an inode to have that does not say
_HEAD = struct.Struct("<HHIIiiIHHII4x60sIII4xHHHHHH")
_EXTRA = struct.Struct("<H2xII")
_DEVICES = struct.Struct("<II")
_HIGHEST_SIZE = (1 << 63) - 1


@attrs.frozen
class Inode:
    """An inode that is in use. Two that are equal are the same in all that a mount shows of the inode itself.

    Attributes:
        number: its number.
        generation: the number that tells it from an earlier inode of that number.
        mode: type and permissions, as st_mode.
        uid: owner.
        gid: group.
        size: bytes, as st_size.
        links: how many names it has; 1 of a directory stands for more than the kernel counts.
        mtime_ns: time of modification, nanoseconds since 1970.
        ctime_ns: time of the last change of status.
        rdev: the device number of a device, as os.makedev gives it; else 0.
        flags: the kernel's `EXT4_*_FL`.
        sectors: what the inode says that it occupies, lower half.
        block: the root of its extents or block map, a short link's target, or a device number: 60 bytes.
        attribute_block: the number of the block with further extended attributes, 0 for none.
        body: what follows the known fields of the inode: extended attributes.
    """

    number: int
    generation: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    flags: int
    sectors: int
    block: bytes
    attribute_block: int
    body: bytes

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


def parse_inode(raw: bytes | memoryview, number: int, superblock: Superblock) -> Inode | None:
    """Check and parse the bytes of an inode as they are in its table.

    Args:
        raw: `inode_size` bytes.
        number: the inode's number.
        superblock: of the file system.

    Returns:
        None for one that no name leads to: never used, free, or waiting to be removed.

    Raises:
        Unreadable: it is damaged, or of a kind that is not known here.
    """
    (
        mode, uid, size, _, ctime, mtime, _, gid, links, sectors, flags, block, generation, attribute_block,
        size_high, _, attribute_block_high, uid_high, gid_high, _, _,
    ) = _HEAD.unpack_from(raw)  # fmt: skip
    raw = bytes(raw)
    extra, ctime_extra, mtime_extra = _EXTRA.unpack_from(raw, _BASE)
    if not links and not mode and not any(raw):
        return None
    if superblock.checksums is not None:
        _check(raw, number, generation, extra, superblock.checksums)
    if not links:
        return None
    if extra > superblock.inode_size - _BASE or extra % 4:
        raise Unreadable(f"inode {number} is damaged: {extra} bytes of further fields")
    kind = _kind(number, mode, flags)
    if kind == stat.S_IFREG or superblock.has_large_directories:
        size |= size_high << 32
        if size > _HIGHEST_SIZE:
            raise Unreadable(f"inode {number} is damaged: {size} bytes")
    if superblock.is_64bit:
        attribute_block |= attribute_block_high << 32
    if attribute_block >= superblock.blocks:
        raise Unreadable(f"inode {number} is damaged: its attributes are at block {attribute_block}")
    known = extra or _ALL_EXTRA
    return Inode(
        number=number,
        generation=generation,
        mode=mode,
        uid=uid | uid_high << 16,
        gid=gid | gid_high << 16,
        size=size,
        links=links,
        mtime_ns=_time(mtime, mtime_extra if known >= 12 else 0, number),
        ctime_ns=_time(ctime, ctime_extra if known >= 8 else 0, number),
        rdev=_device(block) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
        flags=flags,
        sectors=sectors,
        block=block,
        attribute_block=attribute_block,
        body=raw[_BASE + extra :] if extra else b"",
    )


def _kind(number: int, mode: int, flags: int) -> int:
    """The type of an inode, if it is one that is known here."""
    kind = stat.S_IFMT(mode)
    if kind not in _TYPES:
        raise Unreadable(f"inode {number} is damaged: mode {mode:o}")
    if flags & _ALL_REFUSED:
        reason = next(text for flag, text in _REFUSED_FLAGS.items() if flags & flag)
        raise Unreadable(f"inode {number} is {reason}")
    return kind


def _time(seconds: int, extra: int, number: int) -> int:
    """Nanoseconds since 1970 (`ext4_decode_extra_time`): two more bits of seconds, then 30 bits of nanoseconds."""
    nanoseconds = extra >> 2
    if nanoseconds >= 1_000_000_000:
        raise Unreadable(f"inode {number} is damaged: a time has {nanoseconds} nanoseconds")
    return (seconds + ((extra & 3) << 32)) * 1_000_000_000 + nanoseconds


def _device(block: bytes) -> int:
    """The number in its old form of 16 bits, or in the new one of 32 (`ext4_iget`, include/linux/kdev_t.h)."""
    old, new = _DEVICES.unpack_from(block)
    if old:
        return os.makedev(old >> 8 & 0xFF, old & 0xFF)
    return os.makedev(new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)


def _check(raw: bytes, number: int, generation: int, extra: int, sums: Checksums) -> None:
    low, high, zeros = raw[0x7C:0x7E], raw[0x82:0x84], b"\0\0"
    if extra >= 4:
        covered = raw[:0x7C] + zeros + raw[0x7E:0x82] + zeros + raw[0x84:]
    else:
        covered, high = raw[:0x7C] + zeros + raw[0x7E:], b""
    expected = sums.over(sums.of_inode(number, generation), covered)
    found = low + high
    if found != expected.to_bytes(4, "little")[: len(found)]:
        raise Unreadable(f"inode {number} is damaged: wrong checksum")
