"""What a pool lies on: two sparse files on loop devices, or two block devices.

Files are the way to try thinpool out: sparse, made by truncate, so they take what is written and nothing before. The
loop devices clear themselves when the pool that holds them is gone, so neither a crash nor a kill leaves one behind.
"""

import os
import stat
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpool import loop
from thinpool.dm.device import block_device_size
from thinpool.errors import ConfigError, PoolFailed, PoolFull
from thinpool.pool.options import PoolOptions
from thinpool.units import human_size

FILES = ("data", "metadata")


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
    """Make the two sparse files, where they are not; neither holds anything yet."""
    for name, size in zip(FILES, (options.loopdatasize, options.loopmetadatasize), strict=True):
        fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size == 0:
                os.ftruncate(fd, size)
                os.fsync(fd)
        except OSError as error:
            raise PoolFull(f"cannot make {directory / name} of {human_size(size)}: {error.strerror}") from error
        finally:
            os.close(fd)


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
    return loop.attach(file, autoclear=True)


def grow_file(file: Path, size: int) -> None:
    """Extend a sparse file; it is durable when the call returns."""
    fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
