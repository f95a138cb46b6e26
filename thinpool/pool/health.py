"""The state of a pool as people and programs read it, and what it means for those who want to change something."""

import attrs

from thinpool.dm.status import PoolMode, ThinPoolStatus
from thinpool.errors import PoolFailed, PoolFull

METADATA_BLOCK = 4096
"""Bytes of a metadata block (THIN_METADATA_BLOCK_SIZE, drivers/md/dm-thin-metadata.h)."""

_REPAIR = "thinpool down, then check the metadata with thin_check"
_GROW = "thinpool grow, rm layers that are not needed"


@attrs.frozen
class PoolStatus:
    """The state of a thin pool; sizes in bytes.

    Attributes:
        name: the device-mapper name of the pool.
        mode: `rw`, `ro`, `out_of_data_space`, `fail`, or `inactive`.
        needs_check: the kernel marked the metadata as needing a check.
        transaction_id: the user-space counter in the metadata.
        data_used: bytes of data in use.
        data_total: size of the data device.
        metadata_used: bytes of metadata in use.
        metadata_total: size of the metadata device.
        block_size: the pool's data block size.
    """

    name: str
    mode: str
    needs_check: bool
    transaction_id: int
    data_used: int
    data_total: int
    metadata_used: int
    metadata_total: int
    block_size: int

    @classmethod
    def of(cls, name: str, found: ThinPoolStatus, block_size: int) -> "PoolStatus":
        """What the kernel says of an active pool, in bytes."""
        return cls(
            name=name,
            mode=found.mode.value,
            needs_check=found.needs_check,
            transaction_id=found.transaction_id,
            data_used=found.data_used_blocks * block_size,
            data_total=found.data_total_blocks * block_size,
            metadata_used=found.metadata_used_blocks * METADATA_BLOCK,
            metadata_total=found.metadata_total_blocks * METADATA_BLOCK,
            block_size=block_size,
        )


def trouble(name: str, status: ThinPoolStatus) -> PoolFailed | PoolFull | None:
    """Why a pool takes no changes, as an error to raise; None where it does. What it holds can mostly still be read."""
    if status.failed:
        return PoolFailed(
            f"pool {name} has failed: the kernel gave it up after an error on its metadata",
            hint=f"dmesg tells which error; {_REPAIR}",
        )
    if status.needs_check:
        return PoolFailed(f"pool {name} needs a check after an error on its metadata, and is read-only", hint=_REPAIR)
    if status.mode is PoolMode.READ_ONLY:
        return PoolFailed(
            f"pool {name} is read-only: its metadata is full, or could not be written",
            hint="dmesg tells which; thinpool grow --metadata SIZE, or " + _REPAIR,
        )
    if status.mode is PoolMode.OUT_OF_DATA_SPACE:
        return PoolFull(f"pool {name} is out of data space: {_total(status)} are in use", hint=_GROW)
    return None


def _total(status: ThinPoolStatus) -> str:
    return f"all {status.data_total_blocks} blocks"


def shortage(name: str, status: ThinPoolStatus, least_percent: int) -> PoolFull | None:
    """Why nothing new may be begun in a pool that has less than some percentage free, as an error to raise."""
    for what, used, total in (
        ("data", status.data_used_blocks, status.data_total_blocks),
        ("metadata", status.metadata_used_blocks, status.metadata_total_blocks),
    ):
        free = total - used
        if free * 100 < total * least_percent:
            return PoolFull(
                f"pool {name} has {100 * free // total} % of its {what} free ({free} of {total} blocks), and"
                f" dm.min_free_space is {least_percent}%",
                hint=f"rm layers that are not needed, thinpool grow --{what} SIZE, or lower dm.min_free_space",
            )
    return None
