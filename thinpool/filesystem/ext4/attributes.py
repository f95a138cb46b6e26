"""Extended attributes, in the inode and in a block that inodes share.

Layout and checks: the kernel's fs/ext4/xattr.h, `ext4_xattr_check_entries` and `ext4_xattr_block_csum` of xattr.c;
access control lists: fs/ext4/acl.h and acl.c.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, Superblock
from thinpool.filesystem.ext4.volume import Volume

_MAGIC = struct.pack("<I", 0xEA020000)
_HEADER_SIZE = 32
_ONE_BLOCK = struct.pack("<I", 1)
_ENTRY = struct.Struct("<BBHIII")
_END = bytes(4)
_CHECKSUM = slice(16, 20)

_PREFIXES = {1: "user.", 4: "trusted.", 6: "security.", 10: "gnu."}
_ACLS = {2: "system.posix_acl_access", 3: "system.posix_acl_default"}

_ACL_ON_DISK = struct.pack("<I", 1)  # EXT4_ACL_VERSION
_ACL_SHOWN = struct.pack("<I", 2)  # POSIX_ACL_XATTR_VERSION
_ACL_SHORT = struct.Struct("<HH")
_ACL_LONG = struct.Struct("<HHI")
_NAMED = frozenset((0x02, 0x08))  # ACL_USER, ACL_GROUP
_UNNAMED = frozenset((0x01, 0x04, 0x10, 0x20))
_NO_ID = 0xFFFFFFFF


class _Entry(NamedTuple):
    """One attribute: where its entry ends, the kind of its name, the name, and the place of its value."""

    end: int
    kind: int
    name: bytes
    offset: int
    size: int


def read(volume: Volume, superblock: Superblock, inode: Inode) -> Mapping[str, bytes]:
    """All extended attributes that a mount shows, as listxattr(2) and getxattr(2) do.

    Raises:
        Unreadable: they are damaged.
    """
    found: dict[str, bytes] = {}
    body = inode.body
    if body[:4] == _MAGIC:
        _collect(inode, body, 4, 4, found)
    if inode.attribute_block:
        _collect(inode, _block(volume, superblock, inode), _HEADER_SIZE, 0, found)
    return found


def _block(volume: Volume, superblock: Superblock, inode: Inode) -> bytes:
    number = inode.attribute_block
    data = volume.read(number * BLOCK_SIZE, BLOCK_SIZE)
    if data[:4] != _MAGIC or data[8:12] != _ONE_BLOCK:
        raise _damaged(inode, f"block {number} holds none")
    sums = superblock.checksums
    if sums is not None:
        (found,) = struct.unpack("<I", data[_CHECKSUM])
        if found != sums.over(sums.of_block(number), data[: _CHECKSUM.start], bytes(4), data[_CHECKSUM.stop :]):
            raise _damaged(inode, f"wrong checksum of block {number}")
    return data


def _collect(inode: Inode, data: bytes, start: int, values_at: int, found: dict[str, bytes]) -> None:
    """Add the attributes of one place, whose values' offsets count from `values_at`."""
    entries = list(_entries(inode, data, start))
    end = entries[-1].end if entries else start
    for _, index, name, offset, size in entries:
        position = values_at + offset
        if size and not (end + 4 <= position and position + size + -size % 4 <= len(data)):
            raise _damaged(inode, f"a value of {size} bytes at {offset}")
        value = data[position : position + size] if size else b""
        if index in _ACLS and not name:
            full = _ACLS[index]
            value = _shown_acl(inode, value)
        elif index in _PREFIXES and name:
            full = _PREFIXES[index] + os.fsdecode(name)
        elif index in _ACLS or index in _PREFIXES:
            raise _damaged(inode, f"the name {name!r} of kind {index}")
        else:
            continue
        if full in found:
            raise _damaged(inode, f"{full} is there twice")
        found[full] = value


def _entries(inode: Inode, data: bytes, start: int) -> Iterator[_Entry]:
    position = start
    while data[position : position + 4] != _END:
        if position + _ENTRY.size > len(data):
            raise _damaged(inode, "their list has no end")
        length, index, offset, value_inode, size, _ = _ENTRY.unpack_from(data, position)
        name = data[position + _ENTRY.size : position + _ENTRY.size + length]
        position += _ENTRY.size + length + -length % 4
        if position + 4 > len(data) or b"\0" in name:
            raise _damaged(inode, "their list has no end, or a name that cannot be")
        if value_inode:
            raise Unreadable(f"inode {inode.number} has an attribute in another inode (ea_inode)")
        yield _Entry(position, index, name, offset, size)


def _shown_acl(inode: Inode, value: bytes) -> bytes:
    """A list as the system calls show it: entries without an id have one that stands for none."""
    if stat.S_ISLNK(inode.mode) or value[:4] != _ACL_ON_DISK or len(value) == 4:
        raise _damaged(inode, "an access control list")
    shown = [_ACL_SHOWN]
    position = 4
    while position < len(value):
        tag = int.from_bytes(value[position : position + 2], "little")
        layout = _ACL_LONG if tag in _NAMED else _ACL_SHORT
        if (tag not in _NAMED and tag not in _UNNAMED) or position + layout.size > len(value):
            raise _damaged(inode, f"an access control list with an entry of kind {tag}")
        _, permissions, *named = layout.unpack_from(value, position)
        shown.append(_ACL_LONG.pack(tag, permissions, *(named or [_NO_ID])))
        position += layout.size
    return b"".join(shown)


def _damaged(inode: Inode, reason: str) -> Unreadable:
    return Unreadable(f"the extended attributes of inode {inode.number} are damaged: {reason}")
