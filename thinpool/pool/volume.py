"""The bytes of thin devices, by the pool's books and its data device, without activating anything.

A thin device maps its virtual blocks to blocks of the data device. `DataDevice` keeps pages of 4096 bytes of the data
device in one cache, so that what two snapshots share is read once for both of them; `ThinVolume` puts them together to
what the thin device would show.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator
from itertools import chain
from os import PathLike
from types import TracebackType
from typing import Final, Self

from thinpool.errors import PoolFailed
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.metadata.reader import BlockReader, ReadCounters
from thinpool.metadata.source import BLOCK_SIZE, DirectFile
from thinpool.metadata.still import StillMappings

__all__ = ["DataDevice", "ThinVolume"]

_CACHE_PAGES: Final = 5120
_MOST_MAPPINGS: Final = 1 << 16
_WINDOW_PAGES: Final = 1024
_FIRST_PAGES: Final = 16
_MOST_AHEAD: Final = _CACHE_PAGES // 3 * 2
_ZEROS: Final = bytes(BLOCK_SIZE)


class DataDevice:
    """A pool's data device, or an image of it, read past the page cache and past the pool; a context manager.

    What it gives is right for blocks of devices that nobody writes to. Reads of neighbouring pages are joined, and
    read-ahead keeps several under way where the device was seen to be slow (`thinpool.metadata.reader`). 20 MiB are
    kept at most.
    """

    def __init__(self, reader: BlockReader) -> None:
        """Read through a reader of its pages, which is closed with this."""
        self.pages = reader

    @classmethod
    def open(cls, device: str | bytes | PathLike[str] | int) -> Self:
        """Open by path or file descriptor.

        Raises:
            PoolFailed: it cannot be opened.
        """
        return cls(BlockReader(DirectFile.open(device, "data"), cache_blocks=_CACHE_PAGES, window_blocks=_WINDOW_PAGES))

    @property
    def counters(self) -> ReadCounters:
        """What has been read so far."""
        return self.pages.counters

    def close(self) -> None:
        """Let go of the device; a second call does nothing."""
        self.pages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ThinVolume:
    """The bytes of one thin device that nobody writes to.

    Attributes:
        size: bytes of the device.
    """

    def __init__(self, mappings: StillMappings, root: int, data: DataDevice, block_size: int, size: int) -> None:
        """Read through what stays the caller's.

        Args:
            mappings: the pool's mappings.
            root: metadata block of the root of the device's mapping tree.
            data: the pool's data device.
            block_size: bytes of the pool's data blocks.
            size: bytes of the device.
        """
        self.size = size
        self._mappings = mappings
        self._root = root
        self._pages = data.pages
        self._block_size = block_size
        self._block_pages = block_size // BLOCK_SIZE
        self._known: dict[int, int | None] = {}

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from an offset on; what was never written is zeros.

        Raises:
            Unreadable: they lie beyond the end, the metadata is damaged, or a device gives an error.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Unreadable(f"{length} bytes at {offset} lie outside the {self.size} of a thin device")
        if not length:
            return b""
        page, start = divmod(offset, BLOCK_SIZE)
        if start + length <= BLOCK_SIZE:
            data = self._page(page)
            return data if length == BLOCK_SIZE else data[start : start + length]
        pages = range(page, (offset + length - 1) // BLOCK_SIZE + 1)
        whole = b"".join(self._parts(pages))
        return whole if length == len(whole) else whole[start : start + length]

    def _page(self, page: int) -> bytes:
        block, within = divmod(page, self._block_pages)
        if block not in self._known:
            self._learn((block,))
        place = self._known[block]
        try:
            return _ZEROS if place is None else self._pages.read(place * self._block_pages + within)
        except PoolFailed as error:
            raise Unreadable(error.message) from error

    def _parts(self, pages: range) -> Iterator[bytes]:
        window = self._pages.window
        try:
            for start in range(pages.start, pages.stop, window):
                portion = range(start, min(start + window, pages.stop))
                self._learn(self._blocks(portion))
                pieces = list(self._pieces(portion))
                if len(pieces) > 1:
                    self._pages.prefetch(chain.from_iterable(place for place, _ in pieces if place is not None))
                for place, count in pieces:
                    yield _ZEROS * count if place is None else self._pages.read_run(place.start, count)
        except PoolFailed as error:
            raise Unreadable(error.message) from error

    def _blocks(self, pages: range) -> range:
        """The virtual blocks that some pages lie in."""
        return range(pages.start // self._block_pages, (pages.stop - 1) // self._block_pages + 1)

    def _pieces(self, pages: range) -> Iterator[tuple[range | None, int]]:
        """The pages of the data device that some pages are, None for holes, with their number; all are known."""
        per_block, known = self._block_pages, self._known
        start = pages.start
        while start < pages.stop:
            block, within = divmod(start, per_block)
            count = min(per_block - within, pages.stop - start)
            place = known[block]
            first = 0 if place is None else place * per_block + within
            yield None if place is None else range(first, first + count), count
            start += count

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Bring offsets and lengths into the cache, many reads at once where that helps.

        What cannot be read is left for `read` to complain about; so is what lies behind more than 13 MiB.
        """
        wanted = list(self._wanted(ranges))
        try:
            self._learn({block for pages in wanted for block in self._blocks(pages)})
        except Unreadable:
            return
        places: set[int] = set()
        for pages in wanted:
            for place, _ in self._pieces(pages):
                if place is not None:
                    places.update(place)
        missing = self._pages.uncached(places)
        window = self._pages.window
        for start in range(0, len(missing), window):
            self._pages.prefetch(missing[start : start + window])

    def _wanted(self, ranges: Iterable[tuple[int, int]]) -> Iterator[range]:
        """The pages of some ranges, as many as are read ahead at once."""
        budget = _MOST_AHEAD
        for offset, length in ranges:
            if offset >= 0 and length > 0 and offset + length <= self.size:
                start, end = offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE + 1
                yield range(start, min(end, start + budget))
                budget -= end - start
                if budget <= 0:
                    return

    def know(self, block: int, place: int | None) -> range:
        """Take in where a virtual block is, None where it is not mapped; the pages of its first 64 KiB."""
        self._known[block] = place
        first = 0 if place is None else place * self._block_pages
        return range(first, first + (0 if place is None else min(self._block_pages, _FIRST_PAGES)))

    def stored_at(self, offset: int) -> tuple[Hashable, int]:
        """Where a byte is stored, and for how many bytes from there on the storage goes on in the same way.

        Bytes of any two thin devices of one pool that are stored at equal places are equal; what was never written is
        stored nowhere, which is one place too.

        Raises:
            Unreadable: the metadata is damaged.
        """
        block, within = divmod(offset, self._block_size)
        if block not in self._known:
            self._learn((block,))
        place = self._known[block]
        return None if place is None else place * self._block_size + within, self._block_size - within

    def _learn(self, blocks: Collection[int]) -> None:
        """Look virtual blocks up, as far as they are not known yet."""
        known = self._known
        missing = [block for block in blocks if block not in known]
        if not missing:
            return
        if len(known) > _MOST_MAPPINGS:
            kept = {block: known[block] for block in blocks if block in known}
            known.clear()
            known.update(kept)
        try:
            found = self._mappings.look_up(self._root, missing)
        except PoolFailed as error:
            raise Unreadable(error.message) from error
        known.update((block, found.get(block)) for block in missing)
