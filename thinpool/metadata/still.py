"""The mappings of devices that nobody writes to, read at leisure while the pool goes on.

What a pool commits never overwrites what the state before it refers to, and the nodes of a device's mapping tree are
replaced only when that device is written to, discarded or deleted: what others change of the nodes that they share
with it, they change in copies (the kernel's `dm_tm_shadow_block`, which copies whatever was not made in the same
transaction). So once the root of such a device's tree is known, from a committed state, the tree can be read for as
long as the device is neither written to nor deleted. That needs no metadata snapshot, of which a pool has one: any
number of readers work at once, nobody waits for them, and nothing is left behind when they die.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Self

from thinpool.metadata.btree import NodeReader
from thinpool.metadata.mappings import BlockRange, look_up, mapping_difference
from thinpool.metadata.reader import BlockReader, ReadCounters
from thinpool.metadata.source import BlockSource, DirectFile

__all__ = ["StillMappings"]


class StillMappings:
    """Mapping trees by the metadata blocks of their roots, as `Books.mapping_root` gives them; a context manager.

    The caller sees to it that the devices are neither written to nor deleted.
    """

    def __init__(self, source: BlockSource) -> None:
        """Read from a source, which is closed with this."""
        self._reader = BlockReader(source)
        self._nodes = NodeReader(self._reader)

    @classmethod
    def open(cls, device: str | bytes | PathLike[str] | int) -> Self:
        """Open a metadata device, or an image of it, by path or file descriptor.

        Raises:
            PoolFailed: it cannot be opened.
        """
        return cls(DirectFile.open(device))

    @property
    def counters(self) -> ReadCounters:
        """What has been read so far."""
        return self._reader.counters

    def look_up(self, root: int, blocks: Iterable[int]) -> Mapping[int, int]:
        """Where a device maps some virtual blocks to, without those that it does not map.

        Raises:
            PoolFailed: the metadata is damaged.
        """
        return look_up(self._nodes, [(root, blocks)])[0]

    def look_up_each(self, requests: Sequence[tuple[int, Iterable[int]]]) -> Sequence[Mapping[int, int]]:
        """The same for several devices at once; raises as `look_up`."""
        return look_up(self._nodes, requests)

    def difference(self, old: int, new: int) -> Iterator[BlockRange]:
        """What two devices, related or not, map differently; see `mapping_difference`.

        Raises:
            PoolFailed: the metadata is damaged.
        """
        return mapping_difference(self._nodes, old, new)

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
