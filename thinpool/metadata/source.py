"""A pool's two devices as they are read: past the page cache.

The kernel writes a pool's metadata through dm-bufio, and its data straight from thin devices, both past the page cache
of the block device below: a buffered read may give a block as it was long ago. So every read here is O_DIRECT.
"""

import os
import stat
import threading
from collections.abc import Sequence
from mmap import mmap
from types import TracebackType
from typing import Literal, Protocol, Self

from thinpool.errors import PoolFailed

__all__ = ["BLOCK_SIZE", "MAX_BLOCKS", "RUN_BLOCKS", "BlockSource", "DirectFile"]

Holds = Literal["metadata", "data"]
"""What a device of a pool holds."""

BLOCK_SIZE = 4096
"""Bytes of a block: of a metadata block (`THIN_METADATA_BLOCK_SIZE` of the kernel's dm-thin-metadata.h)."""

MAX_BLOCKS = 255 * 4080 * 4
"""Most blocks that metadata can have: 255 bitmaps (`MAX_METADATA_BITMAPS`) with four counts a byte."""

RUN_BLOCKS = 64
"""Most blocks of one read."""

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

    def read_each(self, block: int, count: int) -> Sequence[bytes]:
        """The same, each block for itself."""

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
        return self._fill(block, count)[: count * BLOCK_SIZE]

    def read_each(self, block: int, count: int) -> Sequence[bytes]:
        """The same, each block for itself; raises as `read`."""
        buffer = self._fill(block, count)
        return [buffer[at : at + BLOCK_SIZE] for at in range(0, count * BLOCK_SIZE, BLOCK_SIZE)]

    def _fill(self, block: int, count: int) -> mmap:
        """Read into this thread's buffer."""
        if not 0 <= block <= self.blocks - count:
            raise PoolFailed(
                f"{self._holds} block {block + count - 1} lies outside the {self.blocks} blocks of {self._name}"
            )
        size = count * BLOCK_SIZE
        buffer = self._buffer()
        try:
            got = os.preadv(self._fd, [memoryview(buffer)[:size]], block * BLOCK_SIZE)
        except OSError as error:
            raise PoolFailed(f"{self._holds} block {block} of {self._name} cannot be read: {error.strerror}") from error
        if got != size:
            raise PoolFailed(
                f"{self._holds} block {block} of {self._name}: {got} bytes read where {size} were asked for"
            )
        return buffer

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
            buffer = self._local.buffer = mmap(-1, RUN_BLOCKS * BLOCK_SIZE)
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


def _check_kind(fd: int, name: str, holds: Holds) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise PoolFailed(f"{holds} device {name} is neither a block device nor a regular file")
