"""A pool's books: its devices, what they map, how they differ, and what each of them alone occupies."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from types import TracebackType
from typing import Final, Self, TypeVar, cast

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.btree import BTree, NodeReader, broken, integers, raw_values
from thinpool.metadata.mappings import BlockRange, mapping_difference, mapping_tree
from thinpool.metadata.reader import BlockReader, BlockSource, DirectFile, ReadCounters
from thinpool.metadata.spacemap import SpaceMap, data_space_map, metadata_space_map
from thinpool.metadata.superblock import Superblock, parse_superblock
from thinpool.metadata.sweep import Limits, Question, occupied
from thinpool.metadata.usage import DeviceUsage, LayerUsage, census, difference_blocks

__all__ = ["Books", "DeviceDetails", "read_books"]

_DETAILS: Final = struct.Struct("<QQII")
_POINTER_SIZE: Final = 8
_THIN_ID_MAX: Final = (1 << 24) - 1  # MAX_DEV_ID in drivers/md/dm-thin.c

T = TypeVar("T")


@attrs.frozen
class DeviceDetails:
    """What the metadata says of one device (`struct disk_device_details`).

    Attributes:
        thin_id: the device.
        mapped_blocks: data blocks that it maps, shared or not.
        transaction_id: the pool's transaction id when the device was made.
        creation_time: the pool's counter of snapshots when it was made.
        snapshotted_time: that counter when it was last the origin or the target of a snapshot.
    """

    thin_id: int
    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int


class Books:
    """One committed state of a pool's metadata, read-only, as a context manager.

    Opened plainly it is the last state that was committed when it was opened. A pool in use moves on, and reuses the
    blocks of the state before the last: what was read is sure only if `unchanged` says so afterwards, and reading in
    between may fail as if the metadata were damaged. `read_books` does that right.

    Opened with `held` it is the state that a metadata snapshot pins, safe to read until the snapshot is released.

    Nothing is written, so nothing is left behind when the process dies.
    """

    def __init__(self, source: BlockSource, *, held: bool = False) -> None:
        """Read from a source, which is closed with the books, also when this fails.

        Args:
            source: the metadata device.
            held: read the metadata snapshot that is reserved.

        Raises:
            PoolFailed: no valid superblock, or no metadata snapshot is reserved.
        """
        self._source = source
        self._reader = BlockReader(source)
        self._nodes = NodeReader(self._reader)
        self._space_maps: tuple[SpaceMap, SpaceMap] | None = None
        self._census: dict[int, int] | None = None
        try:
            self._mark = source.mark()
            self.superblock = parse_superblock(self._reader.read(0))
            self.roots = self._held_superblock() if held else self.superblock
        except BaseException:
            self._reader.close()
            raise

    @classmethod
    def open(cls, device: str | bytes | PathLike[str] | int, *, held: bool = False) -> Self:
        """Open a metadata device or an image of it, by path or file descriptor.

        Raises:
            PoolFailed: it cannot be read, holds no valid superblock, or no metadata snapshot is reserved.
        """
        return cls(DirectFile.open(device), held=held)

    def _held_superblock(self) -> Superblock:
        block = self.superblock.held_root
        if not block:
            raise PoolFailed("the pool has no metadata snapshot reserved")
        return parse_superblock(self._reader.read(block), block)

    @property
    def counters(self) -> ReadCounters:
        """What has been read so far."""
        return self._reader.counters

    @property
    def data_block_size(self) -> int:
        """Bytes of a data block."""
        return self.roots.data_block_size

    def unchanged(self) -> bool:
        """Whether the pool has committed nothing since the books were opened, so that what was read holds.

        Raises:
            PoolFailed: the superblock is not valid any more.
        """
        fresh = parse_superblock(self._reader.read_fresh(0))
        return fresh == self.superblock and self._source.mark() == self._mark

    def read_ahead(self) -> None:
        """Read the roots of the trees of devices and of their details together, before one or more look-ups."""
        self._reader.prefetch((self.roots.mapping_root, self.roots.details_root))

    def devices(self) -> Iterator[DeviceDetails]:
        """All devices, ascending by thin id.

        Raises:
            PoolFailed: the metadata is damaged.
        """
        for thin_id, value in self._details_tree().items():
            if thin_id > _THIN_ID_MAX:
                raise broken(self.roots.details_root, f"thin device {thin_id}, there can be {_THIN_ID_MAX}")
            yield DeviceDetails(thin_id, *_DETAILS.unpack(value))

    def details(self, thin_id: int) -> DeviceDetails:
        """What the metadata says of one device.

        Raises:
            PoolFailed: the metadata has no such device, or is damaged.
        """
        value = self._details_tree().lookup(thin_id)
        if value is None:
            raise _no_device(thin_id)
        return DeviceDetails(thin_id, *_DETAILS.unpack(value))

    def __contains__(self, thin_id: object) -> bool:
        return isinstance(thin_id, int) and self._details_tree().lookup(thin_id) is not None

    def mapping_root(self, thin_id: int) -> int:
        """Metadata block of the root of one device's mapping tree.

        Raises:
            PoolFailed: the metadata has no such device, or is damaged.
        """
        root = self._devices_tree().lookup(thin_id)
        if root is None:
            raise _no_device(thin_id)
        return root

    def mappings(self, thin_id: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Virtual block and data block of all mappings of one device from a virtual block on, ascending.

        Raises:
            PoolFailed: the metadata has no such device, or is damaged.
        """
        limit = self._data_blocks()
        for virtual, data in mapping_tree(self._nodes, self.mapping_root(thin_id)).items(start):
            if data >= limit:
                raise self._beyond(data, limit)
            yield virtual, data

    def mapped_blocks(self, thin_id: int) -> int:
        """How many data blocks one device maps, shared or not.

        Raises:
            PoolFailed: the metadata has no such device, or is damaged.
        """
        return self.details(thin_id).mapped_blocks

    def difference(self, old: int, new: int) -> Iterator[BlockRange]:
        """What two devices, related or not, map differently; see `mapping_difference`.

        Raises:
            PoolFailed: the metadata lacks one of them, or is damaged.
        """
        limit = self._data_blocks()
        for change in mapping_difference(self._nodes, self.mapping_root(old), self.mapping_root(new)):
            last = max(change.old or 0, change.new or 0) + change.length - 1
            if last >= limit:
                raise self._beyond(last, limit)
            yield change

    def _data_blocks(self) -> int:
        """How many data blocks the pool has; a metadata snapshot does not say, and pools only grow."""
        space_map = self.superblock.data_space_map
        if space_map is None:
            raise PoolFailed("metadata block 0 is damaged: a superblock without space maps")
        return space_map.blocks

    def _beyond(self, block: int, limit: int) -> PoolFailed:
        return broken(self.roots.mapping_root, f"data block {block} is mapped, there are {limit}")

    def difference_blocks(self, child: int, parent: int) -> int:
        """How many blocks a child maps that its parent does not map to the same data.

        Raises:
            PoolFailed: the metadata lacks one of them, or is damaged.
        """
        return difference_blocks(self._nodes, self.mapping_root(child), self.mapping_root(parent))

    def exclusive_blocks(self, thin_id: int) -> int:
        """How many data blocks one device alone maps: what its deletion frees once no metadata snapshot is left.

        Raises:
            PoolFailed: the metadata has no such device, or is damaged.
        """
        return self.exclusive([thin_id])[thin_id]

    def exclusive(self, thin_ids: Iterable[int]) -> Mapping[int, int]:
        """`exclusive_blocks` of several devices by thin id, cheaper than one at a time.

        Raises:
            PoolFailed: the metadata lacks one of them, or is damaged.
        """
        self._read_ahead_maps()
        wanted = set(thin_ids)
        roots = self._devices_tree().lookup_each(wanted)
        if wanted - roots.keys():
            raise _no_device(min(wanted - roots.keys()))
        return self._exclusive(roots)

    def layers(self, pairs: Iterable[tuple[int, int | None]], limits: Limits | None = None) -> Mapping[int, LayerUsage]:
        """What layers occupy, by thin id, from one pass over the nodes that they do not share.

        Args:
            pairs: thin ids of a layer, and of its parent (None where it has none).
            limits: of what is looked at together; None for the usual ones.

        Raises:
            PoolFailed: the metadata lacks one of them, or is damaged.
        """
        self._read_ahead_maps()
        parents = dict(pairs)
        wanted = parents.keys() | {parent for parent in parents.values() if parent is not None}
        roots = self._devices_tree().lookup_each(wanted)
        details = self._details_tree().lookup_each(parents)
        missing = (wanted - roots.keys()) | (parents.keys() - details.keys())
        if missing:
            raise _no_device(min(missing))
        questions = [
            Question(thin_id, roots[thin_id], None if parent is None else roots[parent])
            for thin_id, parent in parents.items()
        ]
        self._take_census()
        found = occupied(self._nodes, questions, None if self._census is not None else self._counts(), limits)
        return {
            thin_id: LayerUsage(
                mapped_blocks=_DETAILS.unpack(details[thin_id])[0],
                exclusive_blocks=each.exclusive if self._census is None else self._census[thin_id],
                own_blocks=each.own,
            )
            for thin_id, each in found.items()
        }

    def usage(self) -> Iterator[DeviceUsage]:
        """What each device occupies, ascending by thin id.

        Raises:
            PoolFailed: the metadata is damaged.
        """
        exclusive = self._exclusive(dict(self._devices_tree().items()))
        for device in self.devices():
            if device.thin_id not in exclusive:
                raise _no_device(device.thin_id)
            alone = exclusive[device.thin_id]
            if alone > device.mapped_blocks:
                said = f"{device.mapped_blocks} blocks mapped by thin device {device.thin_id}, which has {alone} alone"
                raise broken(self.roots.details_root, said)
            yield DeviceUsage(device.thin_id, device.mapped_blocks, alone)

    def _exclusive(self, roots: Mapping[int, int]) -> Mapping[int, int]:
        self._take_census()
        if self._census is not None:
            return {thin_id: self._census[thin_id] for thin_id in roots}
        questions = [Question(thin_id, root, None) for thin_id, root in roots.items()]
        found = occupied(self._nodes, questions, self._counts())
        return {thin_id: each.exclusive for thin_id, each in found.items()}

    def _read_ahead_maps(self) -> None:
        """Read the roots of all trees, and what the space maps begin with, together."""
        maps = (self.superblock.metadata_space_map, self.superblock.data_space_map)
        others = [self.superblock.held_root, *(each.bitmap_root for each in maps if each is not None)]
        self._reader.prefetch([self.roots.mapping_root, self.roots.details_root, *filter(None, others)])

    def _take_census(self) -> None:
        """Count references anew, once, where the kernel's counts do not serve."""
        if self._census is None and not self._counts_serve():
            self._census = census(self._nodes, dict(self._devices_tree().items()))

    def _counts(self) -> tuple[SpaceMap, SpaceMap]:
        if self._space_maps is None:
            self._space_maps = self._open_space_maps()
        return self._space_maps

    def _counts_serve(self) -> bool:
        """Whether the kernel's reference counts are those of the devices alone; `usage` tells why."""
        if self.roots is not self.superblock:
            return False
        held = self.superblock.held_root
        return not held or parse_superblock(self._reader.read(held), held).mapping_root == self.roots.mapping_root

    def _open_space_maps(self) -> tuple[SpaceMap, SpaceMap]:
        metadata, data = self.roots.metadata_space_map, self.roots.data_space_map
        if metadata is None or data is None:
            raise PoolFailed("metadata block 0 is damaged: a superblock without space maps")
        return metadata_space_map(self._reader, metadata), data_space_map(self._nodes, data)

    def _devices_tree(self) -> BTree[int]:
        return BTree(self._nodes, self.roots.mapping_root, _POINTER_SIZE, integers)

    def _details_tree(self) -> BTree[bytes]:
        return BTree(self._nodes, self.roots.details_root, _DETAILS.size, raw_values)

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_books(
    device: str | bytes | PathLike[str] | int,
    work: Callable[[Books], T],
    *,
    pinned: Callable[[], AbstractContextManager[object]] | None = None,
    attempts: int = 3,
) -> T:
    """Do some reading on the metadata of a pool that may be in use, and give back what comes of it.

    The last committed state is read as it is, without a word to the kernel, and again when the pool has moved on in the
    meantime. Where it moves on each time, a metadata snapshot is pinned for one more attempt.

    Args:
        device: the metadata device, by path or file descriptor.
        work: does the reading; called anew for each attempt, so it should have no lasting effect, and should not give
            back an iterator that reads on.
        pinned: gives a context in which a metadata snapshot is reserved, as `metadata_snapshot` does; None where that
            must not be.
        attempts: how often to try without.

    Raises:
        PoolFailed: the metadata is damaged, or kept changing and nothing could be pinned.
    """
    failure: PoolFailed | None = None
    for _ in range(attempts):
        try:
            with Books.open(device) as books:
                result, failure = _attempt(books, work)
                if books.unchanged():
                    break
        except PoolFailed as error:  # opened, or looked at again, in the middle of a commit; or damaged for good
            failure = error
    else:
        return _read_pinned(device, work, pinned, failure)
    if failure is not None:
        raise failure
    return cast("T", result)


def _attempt(books: Books, work: Callable[[Books], T]) -> tuple[T | None, PoolFailed | None]:
    try:
        return work(books), None
    except PoolFailed as error:
        return None, error


def _read_pinned(
    device: str | bytes | PathLike[str] | int,
    work: Callable[[Books], T],
    pinned: Callable[[], AbstractContextManager[object]] | None,
    failure: PoolFailed | None,
) -> T:
    if pinned is None:
        raise failure or PoolFailed("the pool's metadata changed each time while it was read")
    with pinned(), Books.open(device, held=True) as books:
        return work(books)


def _no_device(thin_id: int) -> PoolFailed:
    return PoolFailed(f"the pool's metadata has no thin device {thin_id}")
