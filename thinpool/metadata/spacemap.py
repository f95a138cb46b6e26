"""Space maps: how often each block is referenced, as far as "exactly once" goes.

Layout: the kernel's drivers/md/persistent-data/dm-space-map-common.h. Two bits a block (the high one first) count
references 0, 1, 2 and more; exact counts above two are in a B-tree of their own, which nothing here needs.
"""

import struct
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter

from thinpool.errors import PoolFailed
from thinpool.metadata.btree import BTree, NodeReader, broken, raw_values
from thinpool.metadata.reader import BLOCK_SIZE, BlockReader
from thinpool.metadata.superblock import BITMAP_SALT, INDEX_SALT, SpaceMapRoot, checksum

__all__ = ["COUNTS_PER_BITMAP", "SpaceMap", "data_space_map", "metadata_space_map"]

_BITMAP_HEADER = struct.Struct("<IIQ")
_INDEX_ENTRY = struct.Struct("<QII")

COUNTS_PER_BITMAP = (BLOCK_SIZE - _BITMAP_HEADER.size) * 4
"""Blocks whose counts one bitmap block holds."""

_ONCE = 0b10
"""A count of one as a number, since the kernel puts the high bit of a count at the lower address."""

_TABLES = tuple(bytes((value >> shift) & 3 == _ONCE for value in range(256)) for shift in (0, 2, 4, 6))
"""For each of the four counts in a byte, what `bytes.translate` needs to tell whether it is one."""

_PAGES = 256


class SpaceMap:
    """The blocks of one device that are referenced exactly once; a few expanded bitmaps are kept."""

    def __init__(
        self, name: str, root: SpaceMapRoot, reader: BlockReader, bitmap_block: Callable[[int], int | None]
    ) -> None:
        """Make a space map.

        Args:
            name: `data` or `metadata`, for messages.
            root: what the superblock says of it.
            reader: where bitmaps are read, the caller's.
            bitmap_block: metadata block of the bitmap with that number, None where there is none.
        """
        self.blocks = root.blocks
        self._name = name
        self._root = root
        self._reader = reader
        self._bitmap_block = bitmap_block
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def once(self, blocks: Sequence[int]) -> Sequence[int]:
        """For each block 1 where it is referenced exactly once, else 0.

        Raises:
            PoolFailed: one lies beyond the device, or the space map is damaged.
        """
        if not blocks:
            return ()
        low, high = min(blocks), max(blocks)
        if high >= self.blocks:
            raise self._beyond(high)
        number = low // COUNTS_PER_BITMAP
        if high // COUNTS_PER_BITMAP == number:
            page, first = self._page(number), number * COUNTS_PER_BITMAP
            return [page[block - first] for block in blocks]
        pages = {number: self._page(number) for number in sorted({block // COUNTS_PER_BITMAP for block in blocks})}
        return [pages[block // COUNTS_PER_BITMAP][block % COUNTS_PER_BITMAP] for block in blocks]

    def count_once(self, blocks: Sequence[int]) -> int:
        """How many of the blocks are referenced exactly once.

        Raises:
            PoolFailed: one lies beyond the device, or the space map is damaged.
        """
        return sum(self._count_in_page(number, part) for number, part in self._by_page(blocks))

    def _count_in_page(self, number: int, part: Sequence[int]) -> int:
        page, first = self._page(number), number * COUNTS_PER_BITMAP
        low, end = part[0] - first, part[-1] - first + 1
        ones = page.count(1, low, end)
        if ones == end - low:
            return len(part)
        if not ones:  # nothing in the range is referenced once, as in an old base: no look at each is needed
            return 0
        return sum(itemgetter(*([block - first for block in part] if first else part))(page))

    def prefetch(self, groups: Iterable[Sequence[int]]) -> None:
        """Read ahead the bitmaps for groups of blocks, where the disk is slow enough for that to pay."""
        if self._reader.depth == 1:
            return
        numbers = {block // COUNTS_PER_BITMAP for blocks in groups for block in blocks if block < self.blocks}
        missing = sorted(numbers.difference(self._pages))[:_PAGES]
        if len(missing) > 1:
            self._reader.prefetch(filter(None, map(self._bitmap_block, missing)))

    def _by_page(self, blocks: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        ordered = sorted(blocks)
        if ordered and ordered[-1] >= self.blocks:
            raise self._beyond(ordered[-1])
        start = 0
        while start < len(ordered):
            number = ordered[start] // COUNTS_PER_BITMAP
            end = len(ordered)
            if ordered[-1] >= (number + 1) * COUNTS_PER_BITMAP:
                end = bisect_left(ordered, (number + 1) * COUNTS_PER_BITMAP, start)
            yield number, ordered[start:end] if start or end < len(ordered) else ordered
            start = end

    def _beyond(self, block: int) -> PoolFailed:
        return broken(self._root.bitmap_root, f"{self._name} block {block} is referenced, there are {self.blocks}")

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is not None:
            self._pages.move_to_end(number)
            return page
        block = self._bitmap_block(number)
        if block is None:
            raise broken(self._root.bitmap_root, f"the {self._name} space map lacks bitmap {number}")
        page = _expand(self._checked_bitmap(block))
        self._pages[number] = page
        if len(self._pages) > _PAGES:
            self._pages.popitem(last=False)
        return page

    def _checked_bitmap(self, block: int) -> bytes:
        data = self._reader.read(block)
        csum, _unused, number = _BITMAP_HEADER.unpack_from(data)
        if csum != checksum(data, BITMAP_SALT):
            raise broken(block, "not a bitmap of a space map, or its checksum is wrong")
        if number != block:
            raise broken(block, f"a bitmap that claims to be block {number}")
        return data[_BITMAP_HEADER.size :]


def _expand(bitmap: bytes) -> bytes:
    """A byte a block: 1 where its count is one, else 0."""
    page = bytearray(COUNTS_PER_BITMAP)
    for position, table in enumerate(_TABLES):
        page[position::4] = bitmap.translate(table)
    return bytes(page)


def data_space_map(nodes: NodeReader, root: SpaceMapRoot) -> SpaceMap:
    """The counts of data blocks, whose bitmaps a B-tree lists."""
    index = BTree(nodes, root.bitmap_root, _INDEX_ENTRY.size, raw_values)

    def bitmap_block(number: int) -> int | None:
        entry = index.lookup(number)
        return None if entry is None else int(_INDEX_ENTRY.unpack(entry)[0])

    return SpaceMap("data", root, nodes.reader, bitmap_block)


def metadata_space_map(reader: BlockReader, root: SpaceMapRoot) -> SpaceMap:
    """The counts of metadata blocks, whose bitmaps one block lists (`struct disk_metadata_index`).

    Raises:
        PoolFailed: the index is damaged.
    """
    block = root.bitmap_root
    data = reader.read(block)
    csum, _padding, number = _BITMAP_HEADER.unpack_from(data)
    if csum != checksum(data, INDEX_SALT):
        raise broken(block, "not the index of the metadata space map, or its checksum is wrong")
    if number != block:
        raise broken(block, f"an index that claims to be block {number}")

    def bitmap_block(number: int) -> int | None:  # below 255, as the superblock's number of blocks is bounded
        entry: tuple[int, int, int] = _INDEX_ENTRY.unpack_from(data, _BITMAP_HEADER.size + number * _INDEX_ENTRY.size)
        return entry[0]

    return SpaceMap("metadata", root, reader, bitmap_block)
