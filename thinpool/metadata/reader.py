"""Blocks of a pool's devices through a bounded cache, with read-ahead that suits the disk."""

import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Self, TypeVar, cast

import attrs

from thinpool.errors import PoolFailed
from thinpool.metadata.pace import DEPTH, TIMED, Pace
from thinpool.metadata.source import BLOCK_SIZE, RUN_BLOCKS, BlockSource

__all__ = ["BlockReader", "ReadCounters"]

_GAP_BLOCKS = 16
_CACHE_BLOCKS = 2048
_WINDOW_BLOCKS = 256
_RECENT_BLOCKS = 320
_RECENT_BLOCKS_SLOW = 4096  # more, as more is asked for at once where a read takes long
_BEFORE, _AFTER = 12, 4  # what one commit wrote lies together, and reading some more in the same call costs little

T = TypeVar("T")
Run = tuple[int, int]


@attrs.frozen
class ReadCounters:
    """What has been read so far.

    Attributes:
        reads: read calls to the source.
        bytes: bytes they gave.
    """

    reads: int
    bytes: int


class BlockReader:
    """Blocks through a bounded cache, with read-ahead that suits the disk (`thinpool.metadata.pace`).

    Blocks that lie close together are read in one call.
    """

    def __init__(
        self,
        source: BlockSource,
        *,
        cache_blocks: int = _CACHE_BLOCKS,
        window_blocks: int = _WINDOW_BLOCKS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Read from a source, which is closed with the reader.

        Args:
            source: the device.
            cache_blocks: how many blocks are kept, at least 1.
            window_blocks: how many blocks are read ahead at once, at the most.
            clock: seconds, to measure the source's latency with.
        """
        self._source = source
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cache_blocks = max(1, cache_blocks)
        self._window_blocks = window_blocks
        self._clock = clock
        self._pace = Pace()
        self._recent: deque[tuple[int, memoryview]] = deque()
        self._recent_blocks: dict[int, tuple[int, memoryview]] = {}
        self._reads = 0
        self._blocks_read = 0
        self._executor: ThreadPoolExecutor | None = None

    @property
    def blocks(self) -> int:
        """How many blocks the source has."""
        return self._source.blocks

    @property
    def counters(self) -> ReadCounters:
        """What was read from the source since the reader was made."""
        return ReadCounters(self._reads, self._blocks_read * BLOCK_SIZE)

    @property
    def depth(self) -> int:
        """How many reads read-ahead keeps under way, by the latency measured so far."""
        return self._pace.depth

    @property
    def window(self) -> int:
        """How many blocks are worth reading ahead at once; never more than the cache holds."""
        return min(self._cache_blocks, self._window_blocks)

    def read(self, block: int) -> bytes:
        """The bytes of one block.

        Raises:
            PoolFailed: it lies outside the device, or cannot be read.
        """
        data = self._cache.get(block)
        if data is None:
            (data,) = self._timed((block, 1), self._source.read_each)
            self._keep(block, (data,))
        else:
            self._cache.move_to_end(block)
        return data

    def read_run(self, block: int, count: int) -> bytes:
        """The bytes of some blocks in a row, which are read ahead first; raises as `read`."""
        found = list(map(self._cache.get, range(block, block + count)))
        if None in found:
            self.prefetch(range(block, block + count))
            return b"".join(map(self.read, range(block, block + count)))
        return b"".join(cast("list[bytes]", found))

    def uncached(self, blocks: Iterable[int]) -> list[int]:
        """Those of some blocks that cannot be had without a read, in order."""
        cache = self._cache
        return sorted(block for block in blocks if block not in cache)

    def cached(self, block: int) -> bool:
        """Whether the block can be had without a read."""
        return block in self._cache

    def read_fresh(self, block: int) -> bytes:
        """The bytes of one block as they are on the device now, whatever the cache holds.

        Raises:
            PoolFailed: it lies outside the device, or cannot be read.
        """
        self._cache.pop(block, None)
        return self.read(block)

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Bring blocks into the cache; at most `window` of them, the first ones.

        What cannot be read is left for `read` to complain about.
        """
        wanted: set[int] = set()
        limit, cache, end = self.window, self._cache, self.blocks
        for block in blocks:
            if block not in cache and 0 <= block < end:
                wanted.add(block)
                if len(wanted) >= limit:
                    break
        if len(wanted) < 2:
            return
        runs = _runs(sorted(wanted))
        for (start, _), data in zip(runs, self._read_runs(runs, self._source.read_each), strict=True):
            if data is not None:
                self._keep(start, data, wanted)

    def stream(self, blocks: Iterable[int]) -> Iterator[tuple[int, memoryview]]:
        """Each of some blocks once with its bytes, in no certain order, for those that are not needed for long.

        What is read stays at hand for a short while only, with what lies around it, so that memory is soon used again.

        Raises:
            PoolFailed: one lies outside the device, or cannot be read.
        """
        missing = []
        for block in sorted(set(blocks)):
            run = self._recent_blocks.get(block)
            if run is None:
                missing.append(block)
            else:
                yield block, _part(run, block)
        found = self._runs_around(missing)
        for first in range(0, len(found), DEPTH):
            some = found[first : first + DEPTH]
            results = self._read_runs([run for run, _ in some], self._source.read)
            for ((start, _), wanted), data in zip(some, results, strict=True):
                if data is None:  # some of it cannot be read, which matters only where that is wanted
                    yield from ((block, memoryview(self.read(block))) for block in wanted)
                    continue
                run = (start, memoryview(data))
                self._remember(run)
                yield from ((block, _part(run, block)) for block in wanted)

    def _remember(self, run: tuple[int, memoryview]) -> None:
        self._recent.append(run)
        self._recent_blocks.update(dict.fromkeys(_blocks_of(run), run))
        kept = _RECENT_BLOCKS if self.depth == 1 else _RECENT_BLOCKS_SLOW
        while len(self._recent_blocks) > kept:
            oldest = self._recent.popleft()
            for block in _blocks_of(oldest):
                if self._recent_blocks.get(block) is oldest:
                    del self._recent_blocks[block]

    def _runs_around(self, blocks: Sequence[int]) -> list[tuple[Run, Sequence[int]]]:
        """Runs that hold sorted blocks, with some of what lies around, each with those that are wanted."""
        found = []
        index, taken = 0, 0
        runs = _runs(blocks, RUN_BLOCKS - _BEFORE - _AFTER) if blocks else []
        for (start, count), following in zip(runs, [*(start for start, _ in runs[1:]), self.blocks], strict=False):
            upto = bisect_left(blocks, start + count, index)
            low, end = start, start + count
            if start >= 0 and end <= self.blocks:  # else it is for the read to complain about
                low, end = max(taken, start - _BEFORE), min(self.blocks, following, end + _AFTER)
            found.append(((low, end - low), blocks[index:upto]))
            index, taken = upto, end
        return found

    def _read_runs(self, runs: Sequence[Run], read: Callable[[int, int], T]) -> Iterable[T | None]:
        """What is read of each run, None where it cannot be read; several at once on a slow disk."""

        def alone(run: Run) -> T | None:
            try:
                return self._timed(run, read)
            except PoolFailed:
                return None

        def among_others(run: Run) -> T | None:
            try:
                return read(*run)
            except PoolFailed:
                return None

        if self.depth > 1 and len(runs) > 1 and self._pace.wants_proof():
            return chain([alone(runs[0])], self._read_runs(runs[1:], read))
        if self.depth == 1 or len(runs) == 1:
            self._count(runs[TIMED:])
            return chain(map(alone, runs[:TIMED]), map(among_others, runs[TIMED:]))
        self._count(runs)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(DEPTH, thread_name_prefix="metadata-read")
        return self._executor.map(among_others, runs)

    def _timed(self, run: Run, read: Callable[[int, int], T]) -> T:
        begun = self._clock()
        data = read(*run)
        self._pace.note(self._clock() - begun, run[1])
        self._count([run])
        return data

    def _count(self, runs: Sequence[Run]) -> None:
        self._reads += len(runs)
        self._blocks_read += sum(count for _, count in runs)

    def _keep(self, start: int, data: Iterable[bytes], wanted: Container[int] | None = None) -> None:
        """Keep blocks in a row, all or those that are wanted."""
        cache = self._cache
        for block, content in enumerate(data, start):
            if wanted is None or block in wanted:
                cache[block] = content
        while len(cache) > self._cache_blocks:
            cache.popitem(last=False)

    def close(self) -> None:
        """Let go of the source, the cache and the threads; a second call does nothing."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        self._cache.clear()
        self._recent.clear()
        self._recent_blocks.clear()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _blocks_of(run: tuple[int, memoryview]) -> range:
    return range(run[0], run[0] + len(run[1]) // BLOCK_SIZE)


def _part(run: tuple[int, memoryview], block: int) -> memoryview:
    at = (block - run[0]) * BLOCK_SIZE
    return run[1][at : at + BLOCK_SIZE]


def _runs(blocks: Sequence[int], most: int = RUN_BLOCKS) -> list[Run]:
    """Group sorted block numbers into (start, count), reading through small gaps."""
    runs: list[Run] = []
    start = end = blocks[0]
    for block in blocks[1:]:
        if block - end > _GAP_BLOCKS or block - start >= most:
            runs.append((start, end - start + 1))
            start = block
        end = block
    runs.append((start, end - start + 1))
    return runs
