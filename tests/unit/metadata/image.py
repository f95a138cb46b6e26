"""A small writer of thin-pool metadata, in memory, and what the right answers are.

Equal nodes are written once, and leaves end where their keys say, so devices with common mappings share nodes as
snapshots do, also where their trees differ in height.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.mappings import BlockRange
from thinpool.metadata.superblock import BITMAP_SALT, INDEX_SALT, NODE_SALT, SUPERBLOCK_SALT, checksum

BLOCK = 4096
COUNTS = (BLOCK - 16) * 4
T = TypeVar("T")

Mappings = Mapping[int, int]
"""Virtual block to data block."""

Devices = Mapping[int, Mappings]
"""Thin id to mappings."""


class MemorySource:
    """Blocks in memory that count how often they are read, and end a hang."""

    def __init__(self, data: Mapping[int, bytes], blocks: int, limit: int = 100_000) -> None:
        self.data = dict(data)
        self.blocks = blocks
        self.reads: Counter[int] = Counter()
        self.calls = 0
        self.closed = False
        self.writes = 0
        self._limit = limit

    def read(self, block: int, count: int = 1) -> bytes:
        if not 0 <= block <= self.blocks - count:
            raise PoolFailed(f"metadata block {block} lies outside")
        self.calls += 1
        self.reads.update(range(block, block + count))
        assert self.calls < self._limit, "a walk without an end"
        return b"".join(self.data.get(number, bytes(BLOCK)) for number in range(block, block + count))

    def read_each(self, block: int, count: int) -> list[bytes]:
        data = self.read(block, count)
        return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]

    def mark(self) -> int:
        return self.writes

    def close(self) -> None:
        self.closed = True


def sealed(data: bytes | bytearray, salt: int) -> bytes:
    """The block with the checksum that it should have."""
    return struct.pack("<I", checksum(bytes(data), salt)) + bytes(data[4:])


@attrs.frozen
class Shape:
    """How trees are built: how full leaves are on average, and inner nodes of each device's tree."""

    leaf: int = 6
    inner: int = 3


class Image:
    """Metadata under construction."""

    def __init__(self, *, blocks: int = 4096, data_blocks: int = 1 << 20) -> None:
        self.blocks = blocks
        self.data_blocks = data_blocks
        self.written: dict[int, bytes] = {}
        self.salts: dict[int, int] = {}
        self.children: dict[int, list[int]] = {}
        self.data: dict[int, list[int]] = {}
        self._known: dict[tuple[object, ...], int] = {}
        self._next = 1

    def allot(self) -> int:
        self._next += 1
        return self._next - 1

    def write(self, block: int, data: bytes | bytearray, salt: int) -> None:
        assert len(data) == BLOCK
        self.written[block] = sealed(data, salt)
        self.salts[block] = salt

    def node(self, *, leaf: bool, keys: Sequence[int], values: Sequence[bytes], value_size: int) -> int:
        """The block of a node, written if there is no equal one."""
        identity = (leaf, tuple(keys), tuple(values), value_size)
        if identity not in self._known:
            block = self._known[identity] = self.allot()
            limit = (BLOCK - 32) // (8 + value_size) // 3 * 3
            data = struct.pack("<IIQIIII", 0, 2 if leaf else 1, block, len(keys), limit, value_size, 0)
            data += struct.pack(f"<{len(keys)}Q", *keys) + bytes(8 * (limit - len(keys))) + b"".join(values)
            self.write(block, data.ljust(BLOCK, b"\0"), NODE_SALT)
        return self._known[identity]

    def tree(self, items: Sequence[tuple[int, bytes]], value_size: int, shape: Shape) -> int:
        """The root of a tree over sorted items."""
        level: list[tuple[int, int]] = []
        for chunk in _chunks(items, shape.leaf, 1):
            keys, values = [key for key, _ in chunk], [value for _, value in chunk]
            level.append((keys[0], self.node(leaf=True, keys=keys, values=values, value_size=value_size)))
        while len(level) > 1:
            level = [self._inner(chunk) for chunk in _chunks(level, shape.inner, 2)]
        return level[0][1] if level else self.node(leaf=True, keys=(), values=(), value_size=value_size)

    def _inner(self, chunk: Sequence[tuple[int, int]]) -> tuple[int, int]:
        keys, blocks = [key for key, _ in chunk], [block for _, block in chunk]
        block = self.node(leaf=False, keys=keys, values=[struct.pack("<Q", b) for b in blocks], value_size=8)
        self.children[block] = blocks
        return keys[0], block

    def mapping_tree(self, mappings: Mappings, shape: Shape) -> int:
        items = [(key, struct.pack("<Q", mappings[key] << 24 | (key & 0xFFFF))) for key in sorted(mappings)]
        before = set(self.written)
        root = self.tree(items, 8, shape)
        for block in set(self.written) - before - set(self.children):
            self.data[block] = [value >> 24 for value in leaf_values(self.written[block])]
        return root

    def devices(self, devices: Devices, shapes: Mapping[int, Shape], top: Shape) -> tuple[int, int]:
        """The roots of the tree of devices and of the tree of their details."""
        roots = {
            thin_id: self.mapping_tree(mappings, shapes.get(thin_id, Shape())) for thin_id, mappings in devices.items()
        }
        before = set(self.written)
        root = self.tree([(key, struct.pack("<Q", roots[key])) for key in sorted(roots)], 8, top)
        for block in set(self.written) - before - set(self.children):
            self.children[block] = list(leaf_values(self.written[block]))
        details = [(key, struct.pack("<QQII", len(devices[key]), key * 3, key, key + 1)) for key in sorted(devices)]
        return root, self.tree(details, 24, top)

    def finish(self, roots: tuple[int, int], held: tuple[int, int] | None = None, **fields: int) -> MemorySource:
        """Write space maps and superblocks."""
        held_root = 0
        if held is not None:
            held_root = self.allot()
            self.superblock(held_root, held, (bytes(128), bytes(128)), 0, fields)
        metadata, data = self._count([roots, *([held] if held else [])])
        data_map = self._data_space_map(data)
        metadata.update(dict.fromkeys(set(range(self._next + 8)) - set(metadata), 1))
        metadata_map = self._metadata_space_map(metadata)
        self.superblock(0, roots, (data_map, metadata_map), held_root, fields)
        return MemorySource(self.written, self.blocks)

    def superblock(
        self,
        block: int,
        roots: tuple[int, int],
        space_maps: tuple[bytes, bytes],
        held_root: int,
        fields: Mapping[str, int],
    ) -> None:
        data = struct.pack("<IIQ16sQ", 0, fields.get("flags", 0), block, bytes(16), fields.get("magic", 27022010))
        data += struct.pack("<IIQQ", fields.get("version", 2), 7, fields.get("transaction_id", 11), held_root)
        data += space_maps[0].ljust(128, b"\0") + space_maps[1].ljust(128, b"\0")
        sectors = fields.get("data_block_size_sectors", 128)
        data += struct.pack("<QQIIQ", *roots, sectors, fields.get("metadata_sectors", 8), self.blocks)
        data += struct.pack("<III", 0, 0, fields.get("incompat_flags", 0))
        self.write(block, data.ljust(BLOCK, b"\0"), SUPERBLOCK_SALT)

    def _count(self, tops: Iterable[tuple[int, int]]) -> tuple[Counter[int], Counter[int]]:
        metadata: Counter[int] = Counter()
        data: Counter[int] = Counter()
        pending = [root for top in tops for root in top]
        while pending:
            block = pending.pop()
            metadata[block] += 1
            if metadata[block] == 1:
                pending += self.children.get(block, ())
                data.update(self.data.get(block, ()))
        return metadata, data

    def _bitmaps(self, counts: Mapping[int, int], total: int) -> list[tuple[int, int, int]]:
        entries = []
        for start in range(0, total, COUNTS):
            bits, used = bytearray(COUNTS // 4), 0
            for number in range(start, min(start + COUNTS, total)) if total < COUNTS else sorted(counts):
                count = min(counts.get(number, 0), 3)
                if start <= number < start + COUNTS and count:
                    used += 1
                    high_low = (count >> 1) | (count & 1) << 1
                    bits[(number - start) // 4] |= high_low << (number - start) % 4 * 2
            block = self.allot()
            self.write(block, struct.pack("<IIQ", 0, 0, block) + bits, BITMAP_SALT)
            entries.append((block, COUNTS - used, 0))
        return entries

    def _data_space_map(self, counts: Mapping[int, int]) -> bytes:
        entries = [struct.pack("<QII", *entry) for entry in self._bitmaps(counts, self.data_blocks)]
        index = self.tree(list(enumerate(entries)), 16, Shape(60, 10))
        return struct.pack("<QQQQ", self.data_blocks, len(counts), index, self._many(counts))

    def _metadata_space_map(self, counts: Mapping[int, int]) -> bytes:
        many = self._many(counts)
        entries = self._bitmaps(counts, self.blocks)
        block = self.allot()
        data = struct.pack("<IIQ", 0, 0, block) + b"".join(struct.pack("<QII", *entry) for entry in entries)
        self.write(block, data.ljust(BLOCK, b"\0"), INDEX_SALT)
        return struct.pack("<QQQQ", self.blocks, len(counts), block, many)

    def _many(self, counts: Mapping[int, int]) -> int:
        items = [(key, struct.pack("<I", counts[key])) for key in sorted(counts) if counts[key] > 2]
        return self.tree(items, 4, Shape(100, 10))


def leaf_values(data: bytes) -> tuple[int, ...]:
    count, limit = struct.unpack_from("<II", data, 16)
    return struct.unpack_from(f"<{count}Q", data, 32 + 8 * limit)


def _chunks(items: Sequence[tuple[int, T]], average: int, least: int) -> list[Sequence[tuple[int, T]]]:
    """Cut before keys that a hash picks, so that equal stretches are cut equally."""
    chunks: list[Sequence[tuple[int, T]]] = []
    start = 0
    for index, (key, _) in enumerate(items):
        full = index - start >= 120
        if index - start >= least and (full or key * 2654435761 % 1000003 % average == 0):
            chunks.append(items[start:index])
            start = index
    if start < len(items):
        chunks.append(items[start:])
    return chunks


def exclusive(devices: Devices) -> dict[int, int]:
    """How many data blocks each device alone maps, by looking at all of them."""
    uses = Counter(block for mappings in devices.values() for block in set(mappings.values()))
    return {key: sum(uses[block] == 1 for block in mappings.values()) for key, mappings in devices.items()}


def difference(old: Mappings, new: Mappings) -> list[tuple[int, int | None, int | None]]:
    """Virtual blocks that are mapped differently, with both data blocks."""
    keys = sorted(set(old) | set(new))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def spread(ranges: Iterable[BlockRange]) -> list[tuple[int, int | None, int | None]]:
    """The single blocks that ranges stand for."""
    return [
        (
            part.start + step,
            None if part.old is None else part.old + step,
            None if part.new is None else part.new + step,
        )
        for part in ranges
        for step in range(part.length)
    ]
