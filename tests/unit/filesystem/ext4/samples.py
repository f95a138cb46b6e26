"""Stored file systems in memory, an account of all that is in one, and damage with checksums made right again."""

import functools
import stat
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

import attrs
import zstandard

from thinpool.filesystem.ext4.checksums import Checksums, crc16
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import EXTENTS_FLAG, INDEX_FLAG, Inode
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, ROOT_INODE
from thinpool.filesystem.ext4.view import Ext4View
from thinpool.layer.xattrs import belongs

NAMES = ("checked", "unchecked", "maps")
_DATA = Path(__file__).parents[3] / "data"
MOST_READS = 5_000
MOST_BYTES = 16 << 20


class Endless(BaseException):
    """More was read than there can be a reason for."""


@functools.cache
def sample(name: str) -> bytes:
    return zstandard.ZstdDecompressor().decompress((_DATA / f"ext4-{name}.zst").read_bytes(), 1 << 20)


@attrs.define(eq=False)
class MemoryVolume:
    """A device in memory that is not read without end."""

    data: bytes | bytearray
    reads: int = 0
    amount: int = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size, (offset, length)
        self.reads += 1
        self.amount += length
        if self.reads > MOST_READS or self.amount > MOST_BYTES:
            raise Endless
        return bytes(self.data[offset : offset + length])

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        assert all(0 <= offset <= offset + length <= self.size for offset, length in ranges)

    def stored_at(self, offset: int) -> tuple[Hashable, int]:
        return offset, self.size - offset


def account(data: bytes | bytearray) -> list[tuple[object, ...]]:
    """All that a view tells of a file system, entry by entry; the content of a file once."""
    view = Ext4View(Image.open(MemoryVolume(data)), belongs)
    found: list[tuple[object, ...]] = []
    seen: set[int] = set()

    def entry(name: str, depth: int) -> None:
        status = view.status(name)
        row: tuple[object, ...] = (depth, name, attrs.astuple(status), tuple(view.attributes(name).items()))
        if stat.S_ISLNK(status.st_mode):
            row += (view.target(name),)
        elif stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
            seen.add(status.st_ino)
            row += tuple(content(name, status.st_size))
        found.append(row)

    def content(name: str, size: int) -> Iterator[tuple[int, bytes]]:
        file = view.content(name, size)
        position = 0
        while (position := file.next_data(position)) < size:
            data = file.read(position, min(BLOCK_SIZE, size - position))
            assert data
            yield position, data
            position += len(data)

    def directory(depth: int) -> None:
        names = view.entries()
        for name, inode in names.items():
            entry(name, depth)
            if inode:
                view.enter(name)
                directory(depth + 1)
                view.leave()

    entry(".", 0)
    directory(1)
    return found


@attrs.frozen(eq=False)
class Structures:
    """Where the parts of an undamaged file system are, so that they can be damaged on purpose.

    Attributes:
        image: the file system.
        inodes: those in use.
        nodes: blocks of trees of extents or of maps, with their inode.
        leaves: blocks of directories with their inode, and whether they belong to a hashed tree.
        attributes: blocks of attributes.
        contents: blocks with data that no checksum covers.
    """

    image: Image
    inodes: list[Inode]
    nodes: list[tuple[int, Inode]]
    leaves: list[tuple[int, Inode, bool]]
    attributes: list[int]
    contents: set[int]

    @classmethod
    def of(cls, data: bytes) -> "Structures":
        image = Image.open(MemoryVolume(data))
        special = image.superblock.special_inodes
        numbers = (number for number in range(1, image.superblock.inodes + 1) if number not in special)
        inodes = [inode for inode in map(image.inode, numbers) if inode is not None]
        found = cls(image, inodes, [], [], sorted({inode.attribute_block for inode in inodes} - {0}), set())
        for inode in inodes:
            found._add(inode)
        return found

    def _add(self, inode: Inode) -> None:
        if inode.flags & EXTENTS_FLAG:
            _, entries, _, depth = struct.unpack_from("<4H", inode.block)
            starts = [struct.unpack_from("<I", inode.block, 16 + 12 * index)[0] for index in range(entries)]
        else:
            depth = 1
            starts = [block for block in struct.unpack_from("<3I", inode.block, 48) if block]
        if stat.S_ISREG(inode.mode) or stat.S_ISDIR(inode.mode):
            self.nodes.extend((start, inode) for start in starts if depth)
        elif not stat.S_ISLNK(inode.mode) or inode.size < 60:
            return
        for extent in self.image.extents(inode):
            for index in range(extent.blocks):
                if inode.is_directory:
                    is_tree = bool(inode.flags & INDEX_FLAG) and extent.start + index == 0
                    self.leaves.append((extent.block + index, inode, is_tree))
                else:
                    self.contents.add(extent.block + index)

    @property
    def _sums(self) -> Checksums | None:
        return self.image.superblock.checksums

    def inode_at(self, inode: Inode) -> int:
        offset = self.image.groups.offset(inode.number)
        assert offset is not None
        return offset

    # -- checksums made right again; without metadata_csum there is little to do

    def mend_superblock(self, data: bytearray) -> None:
        if self._sums is not None:
            _put(data, 1024 + 1020, "<I", self._sums.over(0, data[1024 : 1024 + 1020]))

    def mend_group(self, data: bytearray) -> None:
        at, size = BLOCK_SIZE, self.image.superblock.descriptor_size
        before, after = data[at : at + 30], data[at + 32 : at + size]
        sums = self._sums
        if sums is None:
            value = crc16(self.image.superblock.uuid + bytes(4) + before + after)
        else:
            value = sums.over(sums.of_group(0), before, bytes(2), after) & 0xFFFF
        _put(data, at + 30, "<H", value)

    def mend_inode(self, data: bytearray, inode: Inode) -> None:
        sums, at = self._sums, self.inode_at(inode)
        if sums is None:
            return
        raw = data[at : at + 256]
        (generation,) = struct.unpack_from("<I", raw, 0x64)
        has_high = struct.unpack_from("<H", raw, 0x80)[0] >= 4
        raw[0x7C:0x7E] = bytes(2)
        if has_high:
            raw[0x82:0x84] = bytes(2)
        value = sums.over(sums.of_inode(inode.number, generation), raw)
        _put(data, at + 0x7C, "<H", value & 0xFFFF)
        if has_high:
            _put(data, at + 0x82, "<H", value >> 16)

    def mend_node(self, data: bytearray, block: int, inode: Inode) -> None:
        at = block * BLOCK_SIZE
        end = 12 + 12 * struct.unpack_from("<H", data, at + 4)[0]
        if self._sums is not None and end <= BLOCK_SIZE - 4:
            _put(data, at + end, "<I", self._over(data[at : at + end], inode))

    def mend_leaf(self, data: bytearray, block: int, inode: Inode, is_tree: bool) -> None:
        at = block * BLOCK_SIZE
        if self._sums is None:
            return
        if not is_tree:
            _put(data, at + BLOCK_SIZE - 4, "<I", self._over(data[at : at + BLOCK_SIZE - 12], inode))
            return
        limit, count = struct.unpack_from("<HH", data, at + 32)
        tail = 32 + 8 * limit
        if tail <= BLOCK_SIZE - 8:
            covered = data[at : at + 32 + 8 * count] + data[at + tail : at + tail + 4] + bytes(4)
            _put(data, at + tail + 4, "<I", self._over(covered, inode))

    def mend_attributes(self, data: bytearray, block: int) -> None:
        sums, at = self._sums, block * BLOCK_SIZE
        if sums is not None:
            data[at + 16 : at + 20] = bytes(4)
            _put(data, at + 16, "<I", sums.over(sums.of_block(block), data[at : at + BLOCK_SIZE]))

    def _over(self, covered: bytes | bytearray, inode: Inode) -> int:
        assert self._sums is not None
        return self._sums.over(self._sums.of_inode(inode.number, inode.generation), covered)


def _put(data: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into(form, data, at, value)


class Damaged:
    """A sample, to be damaged on purpose."""

    def __init__(self, name: str) -> None:
        self.whole = Structures.of(sample(name))
        self.data = bytearray(sample(name))

    def entry(self, folder: str, name: bytes) -> tuple[int, int, bool]:
        """Where an entry is, its block's number and whether the block is of a hashed tree."""
        for block, inode, is_tree in self.whole.leaves:
            if inode.number != self.number(folder):
                continue
            at = self.data.find(name, block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
            if at > 0:
                return at - 8, block, is_tree
        raise AssertionError(name)

    def number(self, path: str) -> int:
        image, number = self.whole.image, ROOT_INODE
        for part in path.split("/"):
            if part:
                number = image.entries(image.used_inode(number))[part.encode()].inode
        return number

    def inode(self, path: str) -> Inode:
        return self.whole.image.used_inode(self.number(path))

    def redirect(self, folder: str, name: bytes, number: int, kind: int = 2) -> None:
        """Let an entry name another inode."""
        at, block, is_tree = self.entry(folder, name)
        struct.pack_into("<I", self.data, at, number)
        self.data[at + 7] = kind
        self.whole.mend_leaf(self.data, block, self.inode(folder), is_tree)

    def patch(self, path: str, at: int, form: str, *values: int) -> None:
        """Change fields of an inode."""
        inode = self.inode(path)
        struct.pack_into(form, self.data, self.whole.inode_at(inode) + at, *values)
        self.whole.mend_inode(self.data, inode)


def changed(name: str, at: int, form: str, value: Callable[[int], int]) -> bytearray:
    """A sample with one field of its superblock changed, and the checksum made right."""
    data = bytearray(sample(name))
    (old,) = struct.unpack_from(form, data, 1024 + at)
    struct.pack_into(form, data, 1024 + at, value(old))
    Structures.of(sample(name)).mend_superblock(data)
    return data
