"""Statuses of thin-pool and thin devices as values (drivers/md/dm-thin.c, pool_status and thin_status)."""

import enum
from typing import Self

import attrs


class PoolMode(enum.Enum):
    """What the kernel lets a pool do."""

    WRITE = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA_SPACE = "out_of_data_space"
    FAIL = "fail"


@attrs.frozen
class ThinPoolStatus:
    """The status of a pool; metadata blocks are 4 KiB, data blocks the pool's."""

    mode: PoolMode
    transaction_id: int = 0
    metadata_used_blocks: int = 0
    metadata_total_blocks: int = 0
    data_used_blocks: int = 0
    data_total_blocks: int = 0
    held_root: int | None = None
    error_if_no_space: bool = False
    needs_check: bool = False

    @property
    def failed(self) -> bool:
        """The kernel has given the pool up."""
        return self.mode is PoolMode.FAIL

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a status line."""
        if text in {"Fail", "Error"}:
            return cls(PoolMode.FAIL)
        fields = text.split()
        metadata_used, metadata_total = map(int, fields[1].split("/"))
        data_used, data_total = map(int, fields[2].split("/"))
        return cls(
            PoolMode(fields[4]), int(fields[0]), metadata_used, metadata_total, data_used, data_total,
            None if fields[3] == "-" else int(fields[3]), "error_if_no_space" in fields[5:], "needs_check" in fields[5:],
        )  # fmt: skip
