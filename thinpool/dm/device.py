"""Whole devices: made with their table, suspended for a while, taken away."""

import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from thinpool.dm.control import Control, DeviceInfo
from thinpool.dm.targets import TableEntry
from thinpool.errors import DeviceMapperError

_BLKGETSIZE64 = 0x80081272


def create_device(
    control: Control, name: str, table: Sequence[TableEntry], *, uuid: str = "", read_only: bool = False
) -> DeviceInfo:
    """Make a device with its table in force; a process that dies half-way leaves one without a table."""
    control.create(name, uuid, read_only=read_only)
    try:
        control.load(name, table, read_only=read_only)
        info = control.resume(name)
    except BaseException:
        with suppress(DeviceMapperError):
            control.remove(name)
        raise
    return info


@contextmanager
def suspended(control: Control, name: str, *, flush: bool = True, lockfs: bool = True) -> Iterator[None]:
    """Hold back a device's I/O for the block; it is always resumed."""
    try:
        control.suspend(name, flush=flush, lockfs=lockfs)
        yield
    finally:
        control.resume(name)


def swap_table(control: Control, name: str, table: Sequence[TableEntry], *, read_only: bool = False) -> DeviceInfo:
    """Put another table in force: load, suspend, resume."""
    control.load(name, table, read_only=read_only)
    try:
        control.suspend(name)
    except BaseException:
        control.clear(name)
        raise
    return control.resume(name)


def remove_device(control: Control, name: str, *, deferred: bool = False) -> DeviceInfo:
    """Take a device away."""
    return control.remove(name, deferred=deferred)


def device_path(info: DeviceInfo) -> Path:
    """The device's node."""
    return Path(f"/dev/dm-{info.minor}")


def block_device_size(path: Path) -> int:
    """Size of a block device in bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size: int = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    finally:
        os.close(fd)
    return size
