"""Device-mapper devices looked up: by name, by number, and what a pool's table says."""

import errno
import os
from pathlib import Path

import attrs

from thinpool.dm import Control, DeviceInfo, ThinPool
from thinpool.errors import DeviceMapperError, PoolFailed


def find_device(control: Control, name: str) -> DeviceInfo | None:
    """The state of a device by its name; None where there is none."""
    try:
        return control.info(name)
    except DeviceMapperError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def find_number(control: Control, device: tuple[int, int]) -> DeviceInfo | None:
    """The state of a device by (major, minor); None where that is no device-mapper device."""
    try:
        return control.info(dev=device)
    except DeviceMapperError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


@attrs.frozen
class PoolTable:
    """What the table of an active pool says; sizes in bytes.

    Attributes:
        data: node of the data device.
        metadata: node of the metadata device.
        block_size: the data block size.
        data_size: how much of the data device the pool uses.
        zeroes: new blocks are zeroed before their first use.
        target: the target as it is.
    """

    data: Path
    metadata: Path
    block_size: int
    data_size: int
    zeroes: bool
    target: ThinPool


def pool_table(control: Control, name: str) -> PoolTable:
    """The table of an active pool.

    Raises:
        PoolFailed: there is no pool of that name, or it is inactive.
    """
    info = find_device(control, name)
    table = control.table(name) if info is not None and info.active else []
    if len(table) != 1 or not isinstance(table[0].target, ThinPool):
        raise PoolFailed(f"pool {name} is not active", hint="thinpool up")
    target = table[0].target
    return PoolTable(
        data=node_of(target.data),
        metadata=node_of(target.metadata),
        block_size=target.block_size_sectors * 512,
        data_size=table[0].length_sectors * 512,
        zeroes="skip_block_zeroing" not in target.features,
        target=target,
    )


def node_of(device: str) -> Path:
    """The node of a block device that the kernel names as major:minor."""
    return Path("/dev") / os.path.basename(os.readlink(f"/sys/dev/block/{device}")).replace("!", "/")
