"""The trees of a btrfs file system, read by BTRFS_IOC_TREE_SEARCH_V2, and the items in them that matter here.

Structures are those of include/uapi/linux/btrfs_tree.h. The kernel skips every node that was written before a
transaction that the caller names, so a search for what is newer costs what was changed since.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import attrs

from thinpool.btrfs import ioctl

ROOT_TREE = 1
INODE_ITEM = 1
INODE_REF = 12
INODE_EXTREF = 13
DIR_INDEX = 96
EXTENT_DATA = 108
ROOT_ITEM = 132
ROOT_REF = 156

ANY = (1 << 64) - 1
LAST_INODE = ANY - 256
"""BTRFS_LAST_FREE_OBJECTID, less one."""

_KEY = struct.Struct("=7Q4L4QQ")  # struct btrfs_ioctl_search_key and buf_size
_HEADER = struct.Struct("=QQQLL")  # struct btrfs_ioctl_search_header
_COUNT_AT = 64  # nr_items in struct btrfs_ioctl_search_key
_LONGEST_ITEM = 1 << 16  # an item fits into a node, BTRFS_MAX_METADATA_BLOCKSIZE
_BUFFER = 2 * _LONGEST_ITEM

_INODE = struct.Struct("<5Q4L")  # struct btrfs_inode_item up to mode
_REF = struct.Struct("<QH")  # struct btrfs_inode_ref
_EXTREF = struct.Struct("<QQH")  # struct btrfs_inode_extref
_DIR = struct.Struct("<QBQQHHB")  # struct btrfs_dir_item
_ROOT_REF = struct.Struct("<QQH")  # struct btrfs_root_ref
_EXTENT = struct.Struct("<QQBBHBQQ")  # struct btrfs_file_extent_item up to disk_num_bytes
_FT_DIR = 2  # BTRFS_FT_DIR
_INLINE_AT = 21  # disk_bytenr in struct btrfs_file_extent_item, where inline data begins
_INLINE = 0  # BTRFS_FILE_EXTENT_INLINE


class Key(NamedTuple):
    """The key of an item."""

    number: int
    kind: int
    offset: int


class Item(NamedTuple):
    """One item; its content is `buffer[at : at + length]` until the search goes on."""

    number: int
    kind: int
    offset: int
    buffer: bytearray
    at: int
    length: int


class Entry(NamedTuple):
    """One entry of a directory: a name, and the number of an inode, or of the subvolume whose root it is."""

    name: bytes
    number: int
    subvolume: bool
    directory: bool


@attrs.frozen
class Inode:
    """What of an inode's item matters here.

    Attributes:
        generation: the transaction that made it.
        changed: the transaction that last wrote it.
        size: st_size; of a directory, twice the bytes of the names in it.
        occupied: bytes of data that it has, as st_blocks counts them.
        links: number of its names.
        directory: whether it is one.
    """

    generation: int
    changed: int
    size: int
    occupied: int
    links: int
    directory: bool


@attrs.frozen
class Extent:
    """One extent of a file.

    Attributes:
        made: the transaction that wrote the data.
        address: where on disk it is; 0 for a hole, None for data within the tree.
        size: bytes on disk of the whole extent (of the data, where it is within the tree).
    """

    made: int
    address: int | None
    size: int


class Tree:
    """Searches in the tree of a subvolume, or another one of its file system.

    Args:
        fd: any file of the subvolume, open for reading; it stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._spare: list[bytearray] = []

    def items(self, first: Key, last: Key, *, since: int = 0, tree: int = 0) -> Iterator[Item]:
        """The items between two keys, both included, in their order.

        Args:
            first: the first key.
            last: the last key.
            since: only what lies in nodes that this transaction, or a later one, wrote.
            tree: number of the tree; 0 for the subvolume's.
        """
        buffer = self._spare.pop() if self._spare else bytearray(_KEY.size + _BUFFER)
        try:
            at: Key | None = first
            while at is not None and at <= last:
                _KEY.pack_into(
                    buffer, 0, tree, at.number, last.number, at.offset, last.offset, since, ANY, at.kind, last.kind,
                    0xFFFFFFFF, 0, 0, 0, 0, 0, _BUFFER,
                )  # fmt: skip
                ioctl.call(self.fd, ioctl.TREE_SEARCH_V2, "BTRFS_IOC_TREE_SEARCH_V2", buffer)
                (count,) = struct.unpack_from("=L", buffer, _COUNT_AT)
                position = _KEY.size
                number, kind, offset = last
                for _ in range(count):
                    _, number, offset, kind, length = _HEADER.unpack_from(buffer, position)
                    position += _HEADER.size
                    yield Item(number, kind, offset, buffer, position, length)
                    position += length
                is_full = position + _HEADER.size + _LONGEST_ITEM > len(buffer)
                at = _after(Key(number, kind, offset)) if count and is_full else None
        finally:
            self._spare.append(buffer)

    def inodes(self, *, since: int = 0) -> Iterator[tuple[int, Inode]]:
        """All inodes with their numbers; or those that `since` or a later transaction wrote, and what lies beside."""
        for item in self.items(Key(ioctl.FIRST_INODE, 0, 0), Key(LAST_INODE, 255, ANY), since=since):
            if item.kind == INODE_ITEM:
                yield item.number, inode(item)

    def extents(self, *, since: int = 0) -> Iterator[Extent]:
        """All extents of files, or those that `since` or a later transaction wrote, and what lies beside."""
        for item in self.items(Key(ioctl.FIRST_INODE, 0, 0), Key(LAST_INODE, 255, ANY), since=since):
            if item.kind == EXTENT_DATA:
                yield extent(item)

    def entries(self, directory: int) -> Iterator[Entry]:
        """The entries of a directory, in the order in which they were made."""
        for item in self.items(Key(directory, DIR_INDEX, 0), Key(directory, DIR_INDEX, ANY)):
            number, kind, _, _, _, length, file_type = _DIR.unpack_from(item.buffer, item.at)
            start = item.at + _DIR.size
            yield Entry(bytes(item.buffer[start : start + length]), number, kind == ROOT_ITEM, file_type == _FT_DIR)

    def subvolumes(self, of: int) -> Iterator[tuple[int, int, bytes]]:
        """The subvolumes directly below one: number, inode number of the directory, name."""
        for item in self.items(Key(of, ROOT_REF, 0), Key(of, ROOT_REF, ANY), tree=ROOT_TREE):
            directory, _, length = _ROOT_REF.unpack_from(item.buffer, item.at)
            start = item.at + _ROOT_REF.size
            yield item.offset, directory, bytes(item.buffer[start : start + length])


def _after(key: Key) -> Key | None:
    """The next key there can be; None after the last one."""
    number, kind, offset = key
    if offset < ANY:
        return Key(number, kind, offset + 1)
    if kind < 255:
        return Key(number, kind + 1, 0)
    return Key(number + 1, 0, 0) if number < ANY else None


def inode(item: Item) -> Inode:
    """An INODE_ITEM as a value."""
    generation, changed, size, occupied, _, links, _, _, mode = _INODE.unpack_from(item.buffer, item.at)
    return Inode(generation, changed, size, occupied, links, (mode & 0o170000) == 0o040000)


def names(item: Item) -> Iterator[tuple[int, bytes]]:
    """The names in an INODE_REF or INODE_EXTREF: pairs of a directory's inode number and a name."""
    at, end = item.at, item.at + item.length
    while at < end:
        if item.kind == INODE_REF:
            directory = item.offset
            _, length = _REF.unpack_from(item.buffer, at)
            at += _REF.size
        else:
            directory, _, length = _EXTREF.unpack_from(item.buffer, at)
            at += _EXTREF.size
        yield directory, bytes(item.buffer[at : at + length])
        at += length


def extent(item: Item) -> Extent:
    """An EXTENT_DATA as a value."""
    if item.buffer[item.at + _INLINE_AT - 1] == _INLINE:
        (made,) = struct.unpack_from("<Q", item.buffer, item.at)
        return Extent(made, None, item.length - _INLINE_AT)
    made, _, _, _, _, _, address, size = _EXTENT.unpack_from(item.buffer, item.at)
    return Extent(made, address, size)
