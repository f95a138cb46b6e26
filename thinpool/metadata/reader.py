"""Blocks of a pool's two devices, read past the page cache.

The kernel writes a pool's metadata through dm-bufio, and its data straight from thin devices, both past the page cache
of the block device below: a buffered read may give a block as it was long ago. So every read here is O_DIRECT.
"""

import os
import stat
import threading
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from mmap import mmap
from types import TracebackType
from typing import Literal, Protocol, Self

import attrs

from thinpool.errors import PoolFailed

__all__ = ["BLOCK_SIZE", "MAX_BLOCKS", "BlockReader", "BlockSource", "DirectFile", "ReadCounters"]

Holds = Literal["metadata", "data"]
"""What a device of a pool holds."""

BLOCK_SIZE = 4096
"""Bytes of a block: of a metadata block (`THIN_METADATA_BLOCK_SIZE` of the kernel's dm-thin-metadata.h)."""

MAX_BLOCKS = 255 * 4080 * 4
"""Most blocks that metadata can have: 255 bitmaps (`MAX_METADATA_BITMAPS`) with four counts a byte."""

_RUN_BLOCKS = 64
_GAP_BLOCKS = 16
_CACHE_BLOCKS = 2048
_WINDOW_BLOCKS = 256
_SLOW_SECONDS = 0.0005
_RECENT_READS = 5
_RECENT_BLOCKS = 320
_RECENT_BLOCKS_SLOW = 4096  # more, as more is asked for at once where a read takes long
_BEFORE, _AFTER = 12, 4  # what one commit wrote lies together, and reading some more in the same call costs little
_BLOCK_SECONDS = 0.00003  # what a block more may take without the device being called slow for it
_DEPTH = 16
_ALONE_EVERY = 4  # a read among others tells nothing of the disk: on a busy machine it waits for them

_WRITES_DONE = 4
"""Field of a block device's `stat` in sysfs (the kernel's Documentation/block/stat.rst)."""


class BlockSource(Protocol):
    """Where blocks come from."""

    @property
    def blocks(self) -> int:
        """How many blocks there are."""

    def read(self, block: int, count: int = 1) -> bytes:
        """The bytes of `count` blocks from `block` on.

        Raises:
            PoolFailed: they lie outside, or cannot be read.
        """

    def mark(self) -> int:
        """A number that is another one after a write to the source."""

    def close(self) -> None:
        """Let go of what the source holds."""


class DirectFile:
    """A metadata or data device, or an image of one in a file, opened read-only with O_DIRECT.

    A regular file on a file system without O_DIRECT (tmpfs of older kernels) is read through the page cache, which is
    all there is of it; a block device never is. Reads may come from several threads at once.
    """

    def __init__(self, fd: int, name: str, holds: Holds = "metadata") -> None:
        """Take over a file descriptor, to be closed by `close`."""
        self._fd = fd
        self._name = name
        self._holds = holds
        self._local = threading.local()
        blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK_SIZE
        self.blocks = min(blocks, MAX_BLOCKS) if holds == "metadata" else blocks

    @classmethod
    def open(cls, device: str | bytes | os.PathLike[str] | int, holds: Holds = "metadata") -> Self:
        """Open a device or image by path, or anew by a file descriptor that the caller keeps.

        Args:
            device: the device or image.
            holds: what it is a device of.

        Raises:
            PoolFailed: it cannot be opened, or is neither block device nor regular file.
        """
        name = f"file descriptor {device}" if isinstance(device, int) else os.fsdecode(device)
        path = f"/proc/self/fd/{device}" if isinstance(device, int) else device
        try:
            fd = cls._open_direct(path)
        except OSError as error:
            raise PoolFailed(f"cannot open {holds} device {name}: {error.strerror}") from error
        try:
            _check_kind(fd, name, holds)
            return cls(fd, name, holds)
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def _open_direct(path: str | bytes | os.PathLike[str]) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise
        return os.open(path, flags)

    def read(self, block: int, count: int = 1) -> bytes:
        """The bytes of `count` blocks (64 at the most) from `block` on.

        Raises:
            PoolFailed: they lie beyond the end, or the device gives an error.
        """
        if not 0 <= block <= self.blocks - count:
            raise PoolFailed(
                f"{self._holds} block {block + count - 1} lies outside the {self.blocks} blocks of {self._name}"
            )
        size = count * BLOCK_SIZE
        buffer = memoryview(self._buffer())[:size]
        try:
            got = os.preadv(self._fd, [buffer], block * BLOCK_SIZE)
        except OSError as error:
            raise PoolFailed(f"{self._holds} block {block} of {self._name} cannot be read: {error.strerror}") from error
        if got != size:
            raise PoolFailed(
                f"{self._holds} block {block} of {self._name}: {got} bytes read where {size} were asked for"
            )
        return bytes(buffer)

    def mark(self) -> int:
        """A number that is another one after a write: writes done (of a block device), or the time of the last one.

        0 where the kernel keeps no statistics of the device, so it tells of changes, and never that there was none.
        """
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_mtime_ns
        numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        try:
            with open(f"/sys/dev/block/{numbers}/stat", encoding="ascii") as file:
                return int(file.read().split()[_WRITES_DONE])
        except OSError:
            return 0

    def _buffer(self) -> mmap:
        buffer: mmap | None = getattr(self._local, "buffer", None)
        if buffer is None:  # anonymous memory is page-aligned, as O_DIRECT wants it
            buffer = self._local.buffer = mmap(-1, _RUN_BLOCKS * BLOCK_SIZE)
        return buffer

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


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
    """Blocks through a bounded cache, with read-ahead that suits the disk.

    Blocks that lie close together are read in one call. Where all but one of the last five reads that were timed took
    longer than half a millisecond, not counting what their size takes, read-ahead keeps up to 16 calls under way at
    once. On a faster device threads would only cost, and on a busy machine some reads take long on any. Some reads are
    still made alone, to see whether that goes on.
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
        self._latencies: deque[float] = deque(maxlen=_RECENT_READS)
        self._recent: deque[tuple[int, memoryview]] = deque()
        self._recent_blocks: dict[int, tuple[int, memoryview]] = {}
        self._reads = 0
        self._blocks_read = 0
        self._executor: ThreadPoolExecutor | None = None
        self._together = 0

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
        recent = sorted(self._latencies)
        return _DEPTH if recent and recent[min(1, len(recent) - 1)] > _SLOW_SECONDS else 1

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
            data, seconds = self._timed_read((block, 1))
            self._account(seconds, 1)
            self._keep(block, data)
        else:
            self._cache.move_to_end(block)
        return data

    def read_each(self, blocks: Iterable[int]) -> Iterator[bytes]:
        """The bytes of several blocks; raises as `read`."""
        get = self._cache.get
        for block in blocks:
            yield get(block) or self.read(block)

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
        limit = self.window
        for block in blocks:
            if block not in self._cache and 0 <= block < self.blocks:
                wanted.add(block)
                if len(wanted) >= limit:
                    break
        if len(wanted) < 2:
            return
        runs = _runs(sorted(wanted))
        for run, result in zip(runs, self._read_runs(runs), strict=True):
            if result is None:
                continue
            data, seconds = result
            start, count = run
            self._account(seconds, count)
            for index in range(count):
                if start + index in wanted:
                    self._keep(start + index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])

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
                at = (block - run[0]) * BLOCK_SIZE
                yield block, run[1][at : at + BLOCK_SIZE]
        runs = self._runs_around(missing)
        for first in range(0, len(runs), _DEPTH):
            some = runs[first : first + _DEPTH]
            for (start, count, wanted), result in zip(some, self._read_runs([run[:2] for run in some]), strict=True):
                if result is None:  # some of it cannot be read, which matters only where that is wanted
                    yield from ((block, memoryview(self.read(block))) for block in wanted)
                    continue
                self._account(result[1], count)
                data = memoryview(result[0])
                self._remember(start, data)
                for block in wanted:
                    at = (block - start) * BLOCK_SIZE
                    yield block, data[at : at + BLOCK_SIZE]

    def _remember(self, start: int, data: memoryview) -> None:
        count = len(data) // BLOCK_SIZE
        run = (start, data)
        self._recent.append(run)
        self._recent_blocks.update(dict.fromkeys(range(start, start + count), run))
        kept = _RECENT_BLOCKS if self.depth == 1 else _RECENT_BLOCKS_SLOW
        while len(self._recent_blocks) > kept:
            start, data = run = self._recent.popleft()
            for block in range(start, start + len(data) // BLOCK_SIZE):
                if self._recent_blocks.get(block) is run:
                    del self._recent_blocks[block]

    def _runs_around(self, blocks: Sequence[int]) -> list[tuple[int, int, Sequence[int]]]:
        """Runs that hold sorted blocks, with some of what lies around: (start, count, wanted)."""
        found = []
        index, taken = 0, 0
        runs = _runs(blocks, _RUN_BLOCKS - _BEFORE - _AFTER) if blocks else []
        for (start, count), following in zip(runs, [*(start for start, _ in runs[1:]), self.blocks], strict=False):
            upto = bisect_left(blocks, start + count, index)
            low, end = start, start + count
            if start >= 0 and end <= self.blocks:  # else it is for the read to complain about
                low, end = max(taken, start - _BEFORE), min(self.blocks, following, end + _AFTER)
            found.append((low, end - low, blocks[index:upto]))
            index, taken = upto, end
        return found

    def _read_runs(self, runs: Sequence[tuple[int, int]]) -> Iterable[tuple[bytes, float | None] | None]:
        """Read runs, several at once on a slow disk; the first one may tell how long a read takes that is alone."""
        if self.depth == 1 or len(runs) == 1:
            return chain(map(self._try_read, runs[:1]), map(self._try_unclocked, runs[1:]))
        self._together += 1
        if self._together % _ALONE_EVERY == 0:
            first = self._try_read(runs[0])
            if first is not None and first[1] - runs[0][1] * _BLOCK_SECONDS <= _SLOW_SECONDS:
                self._latencies.clear()
            return chain([first], self._read_runs(runs[1:]) if self._latencies else map(self._try_unclocked, runs[1:]))
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_DEPTH, thread_name_prefix="metadata-read")
        return self._executor.map(self._try_unclocked, runs)

    def _try_read(self, run: tuple[int, int]) -> tuple[bytes, float] | None:
        try:
            return self._timed_read(run)
        except PoolFailed:
            return None

    def _try_unclocked(self, run: tuple[int, int]) -> tuple[bytes, None] | None:
        try:
            return self._source.read(*run), None
        except PoolFailed:
            return None

    def _timed_read(self, run: tuple[int, int]) -> tuple[bytes, float]:
        start = self._clock()
        return self._source.read(*run), self._clock() - start

    def _account(self, seconds: float | None, blocks: int) -> None:
        self._reads += 1
        self._blocks_read += blocks
        if seconds is not None:
            self._latencies.append(seconds - blocks * _BLOCK_SECONDS)

    def _keep(self, block: int, data: bytes) -> None:
        self._cache[block] = data
        if len(self._cache) > self._cache_blocks:
            self._cache.popitem(last=False)

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


def _check_kind(fd: int, name: str, holds: Holds) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise PoolFailed(f"{holds} device {name} is neither a block device nor a regular file")


def _runs(blocks: Sequence[int], most: int = _RUN_BLOCKS) -> list[tuple[int, int]]:
    """Group sorted block numbers into (start, count), reading through small gaps."""
    runs: list[tuple[int, int]] = []
    start = end = blocks[0]
    for block in blocks[1:]:
        if block - end > _GAP_BLOCKS or block - start >= most:
            runs.append((start, end - start + 1))
            start = block
        end = block
    runs.append((start, end - start + 1))
    return runs
