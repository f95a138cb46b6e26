"""What a pool lies on: two sparse files on loop devices, or two block devices.

Files are the way to try thinpool out: sparse, made by truncate, so they take what is written and nothing before. The
loop devices clear themselves when the pool that holds them is gone, so neither a crash nor a kill leaves one behind.
"""

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpool import loop
from thinpool.crashpoints import point
from thinpool.dm.device import block_device_size
from thinpool.errors import ConfigError, PoolFailed, PoolFull
from thinpool.metadata.superblock import Superblock
from thinpool.pool.advice import space_map_size
from thinpool.pool.health import METADATA_BLOCK
from thinpool.pool.options import METADATA_MIN, PoolOptions
from thinpool.units import format_size, human_size

FILES = ("data", "metadata")
_DATA_BLOCKS_MIN = 256


class Backing:
    """The devices below a pool, held open while the value is open.

    Attributes:
        data: path of the data device.
        metadata: path of the metadata device.
    """

    def __init__(self, data: Path, metadata: Path, held: ExitStack) -> None:
        self.data = data
        self.metadata = metadata
        self._held = held

    def sizes(self) -> tuple[int, int]:
        """Bytes of data and metadata device."""
        return block_device_size(self.data), block_device_size(self.metadata)

    def check_new(self, block_size: int) -> None:
        """Raise ConfigError where a device is too small for a new pool."""
        data, metadata = self.sizes()
        if data < _DATA_BLOCKS_MIN * block_size:
            raise ConfigError(
                f"{self.data} has {format_size(data)}; a pool needs at least"
                f" {format_size(_DATA_BLOCKS_MIN * block_size)} of data"
            )
        if metadata < METADATA_MIN:
            raise ConfigError(
                f"{self.metadata} has {format_size(metadata)}; metadata needs {format_size(METADATA_MIN)}"
            )
        counts = space_map_size(data, block_size)
        if metadata < 2 * counts:
            raise ConfigError(
                f"{self.metadata} has {format_size(metadata)}; {human_size(data)} of data need at least"
                f" {human_size(2 * counts)} of metadata"
            )

    def check_holds(self, superblock: Superblock) -> None:
        """Raise PoolFailed where a device is smaller than the pool that is on it."""
        for path, size, counts, block in (
            (self.data, block_device_size(self.data), superblock.data_space_map, superblock.data_block_size),
            (self.metadata, block_device_size(self.metadata), superblock.metadata_space_map, METADATA_BLOCK),
        ):
            if counts is not None and size < counts.blocks * block:
                what = "data" if path == self.data else "metadata"
                raise PoolFailed(
                    f"the {what} device {path} has {human_size(size)}, and the pool on it has"
                    f" {human_size(counts.blocks * block)}: it was cut, or is another device"
                )

    def close(self) -> None:
        """Let go of the devices; a pool on top keeps them."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_files(directory: Path, options: PoolOptions) -> None:
    """Make the two sparse files, where they are not; neither holds anything yet.

    Raises:
        PoolFull: the file system cannot take them.
        ConfigError: it cannot hold a file of that size.
    """
    for name, size in zip(FILES, (options.loopdatasize, options.loopmetadatasize), strict=True):
        path = directory / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        point("pool-file-made")
        try:
            if os.fstat(fd).st_size == 0:
                os.ftruncate(fd, size)
                point("pool-file-sized")
                os.fsync(fd)
                point("pool-file-synced")
        except OSError as error:
            raise _cannot(f"make {path} of", size, error) from error
        finally:
            os.close(fd)


def _cannot(what: str, size: int, error: OSError) -> ConfigError | PoolFull:
    if error.errno == errno.EFBIG:
        return ConfigError(f"cannot {what} {human_size(size)}: the file system takes no file of that size")
    return PoolFull(f"cannot {what} {human_size(size)}: {error.strerror}")


def open_backing(directory: Path, options: PoolOptions) -> Backing:
    """Open the devices of a pool: the two block devices that were named, or its files on loop devices.

    Raises:
        PoolFailed: a file is missing or smaller than it was made.
        ConfigError: a device is missing, or is none.
    """
    with ExitStack() as held:
        if options.datadev and options.metadatadev:
            paths = [_block_device("dm.datadev", options.datadev), _block_device("dm.metadatadev", options.metadatadev)]
        else:
            wanted = (options.loopdatasize, options.loopmetadatasize)
            paths = [
                held.enter_context(_loop(directory / name, size)).path for name, size in zip(FILES, wanted, strict=True)
            ]
        return Backing(paths[0], paths[1], held.pop_all())


def at_rest(directory: Path, options: PoolOptions) -> tuple[Path, Path]:
    """What a pool lies on, data and metadata, as it can be looked at without a loop device."""
    if options.datadev and options.metadatadev:
        return Path(options.datadev), Path(options.metadatadev)
    data, metadata = (directory / name for name in FILES)
    return data, metadata


def size_at_rest(path: Path) -> int:
    """Bytes of a file or block device; 0 where it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _block_device(key: str, path: str) -> Path:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror}") from error
    if not stat.S_ISBLK(mode):
        raise ConfigError(f"{key}={path} is not a block device")
    return Path(path)


def _loop(file: Path, size: int) -> loop.LoopDevice:
    try:
        found = file.stat().st_size
    except OSError as error:
        raise PoolFailed(f"the pool's {file.name} file {file} cannot be used: {error.strerror}") from error
    if found < size:
        raise PoolFailed(f"the pool's {file.name} file {file} has {found} bytes, and {size} were recorded: it was cut")
    found_device = loop.attach(file, autoclear=True)
    point("loop-attached")
    return found_device


def grow_file(file: Path, size: int, device: Path) -> None:
    """Extend a sparse file, durably, and then its loop device; a larger file stays as it is.

    Raises:
        PoolFailed: the file is gone.
        ConfigError: its file system cannot hold one of that size.
    """
    try:
        found = os.stat(file, follow_symlinks=False).st_size
    except OSError as error:
        raise PoolFailed(f"the pool's {file.name} file {file} cannot be used: {error.strerror}") from error
    if found < size:
        resize_file(file, size, device)
    else:
        loop.refresh_size(device)


def resize_file(file: Path, size: int, device: Path) -> None:
    """Give a file and its loop device a size; what is cut off must be unused. Raises as `grow_file`."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(fd, size)
        point("pool-file-resized")
        os.fsync(fd)
        point("pool-file-resize-synced")
    except OSError as error:
        raise _cannot(f"extend {file} to", size, error) from error
    finally:
        os.close(fd)
    loop.refresh_size(device)
    point("loop-resized")
