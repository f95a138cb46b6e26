"""Statuses of thin-pool and thin devices as values (drivers/md/dm-thin.c, pool_status and thin_status)."""

import enum
import re
from typing import Self

import attrs

from thinpool.errors import DriverUnsupported


class PoolMode(enum.Enum):
    """What the kernel lets a pool do; the value is the kernel's word for it."""

    WRITE = "rw"
    READ_ONLY = "ro"
    OUT_OF_DATA_SPACE = "out_of_data_space"
    FAIL = "fail"
    """The kernel has given the pool up (it prints `Fail`, and nothing else)."""
    ERROR = "error"
    """The kernel could not read the pool's counters (it prints `Error`, and nothing else)."""


class Discards(enum.Enum):
    """What a pool does with the discards of its thin devices; the value is the kernel's word for it."""

    PASSED_DOWN = "discard_passdown"
    NOT_PASSED_DOWN = "no_discard_passdown"
    IGNORED = "ignore_discard"


_COUNT = r"(0|[1-9][0-9]{0,19})"
_POOL = re.compile(
    rf"{_COUNT} {_COUNT}/{_COUNT} {_COUNT}/{_COUNT} (?:-|{_COUNT}) (rw|ro|out_of_data_space)"
    r" (discard_passdown|no_discard_passdown|ignore_discard) (error|queue)_if_no_space (-|needs_check)"
    rf"(?: {_COUNT})?"
)
_THIN = re.compile(rf"{_COUNT} (?:-|{_COUNT})")


@attrs.frozen
class ThinPoolStatus:
    """The status of a pool; metadata blocks are 4 KiB, data blocks the pool's.

    Attributes:
        mode: what the kernel lets it do; with `FAIL` and `ERROR` nothing else is known, and all else is as if unset.
        transaction_id: the number that its user keeps in it.
        metadata_used_blocks: metadata blocks in use.
        metadata_total_blocks: metadata blocks that there are.
        data_used_blocks: data blocks in use.
        data_total_blocks: data blocks that there are.
        held_root: metadata block of the reserved metadata snapshot, or None.
        error_if_no_space: a full pool fails writes; else it holds them back.
        needs_check: the metadata has to be checked before anything is written again.
        discards: what happens to discards.
        metadata_low_watermark_blocks: free metadata blocks at which the kernel raises an event; None before Linux 4.20,
            which did not tell.
    """

    mode: PoolMode
    transaction_id: int = 0
    metadata_used_blocks: int = 0
    metadata_total_blocks: int = 0
    data_used_blocks: int = 0
    data_total_blocks: int = 0
    held_root: int | None = None
    error_if_no_space: bool = False
    needs_check: bool = False
    discards: Discards = Discards.PASSED_DOWN
    metadata_low_watermark_blocks: int | None = None

    @property
    def failed(self) -> bool:
        """The kernel has given the pool up, or cannot read its own books."""
        return self.mode in {PoolMode.FAIL, PoolMode.ERROR}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a status line.

        Raises:
            DriverUnsupported: it has a form that this version of thinpool does not know.
        """
        line = text.removesuffix(" ")
        if line in {"Fail", "Error"}:
            return cls(PoolMode(line.lower()))
        match = _POOL.fullmatch(line)
        if match is None:
            raise DriverUnsupported(f"the kernel gives a thin-pool status of an unknown form: {text!r}")
        transaction, metadata_used, metadata_total, data_used, data_total, held, mode = match.groups()[:7]
        discards, when_full, needs_check, low_watermark = match.groups()[7:]
        return cls(
            PoolMode(mode), int(transaction), int(metadata_used), int(metadata_total), int(data_used), int(data_total),
            None if held is None else int(held), when_full == "error", needs_check == "needs_check",
            Discards(discards), None if low_watermark is None else int(low_watermark),
        )  # fmt: skip

    def render(self) -> str:
        """As the kernel prints it, without the space at the end."""
        if self.failed:
            return "Fail" if self.mode is PoolMode.FAIL else "Error"
        fields = [
            str(self.transaction_id),
            f"{self.metadata_used_blocks}/{self.metadata_total_blocks}",
            f"{self.data_used_blocks}/{self.data_total_blocks}",
            "-" if self.held_root is None else str(self.held_root),
            self.mode.value,
            self.discards.value,
            "error_if_no_space" if self.error_if_no_space else "queue_if_no_space",
            "needs_check" if self.needs_check else "-",
        ]
        if self.metadata_low_watermark_blocks is not None:
            fields.append(str(self.metadata_low_watermark_blocks))
        return " ".join(fields)


class ThinMode(enum.Enum):
    """Whether the kernel can say how much a thin device maps; the value is the kernel's word where it cannot."""

    KNOWN = ""
    FAIL = "Fail"
    """The pool has been given up."""
    ERROR = "Error"
    """The counters could not be read."""
    NO_DEVICE = "-"
    """The device has no thin device open, as its pool was not there when it was loaded."""


@attrs.frozen
class ThinStatus:
    """The status of a thin device, in sectors of 512 bytes.

    Attributes:
        mode: whether the rest is known.
        mapped_sectors: how much has blocks in the pool.
        highest_mapped_sector: the last sector that has one; None where nothing has.
    """

    mode: ThinMode
    mapped_sectors: int = 0
    highest_mapped_sector: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a status line.

        Raises:
            DriverUnsupported: it has a form that this version of thinpool does not know.
        """
        if text in {"Fail", "Error", "-"}:
            return cls(ThinMode(text))
        match = _THIN.fullmatch(text)
        if match is None:
            raise DriverUnsupported(f"the kernel gives a thin status of an unknown form: {text!r}")
        return cls(ThinMode.KNOWN, int(match[1]), None if match[2] is None else int(match[2]))

    def render(self) -> str:
        """As the kernel prints it."""
        if self.mode is not ThinMode.KNOWN:
            return str(self.mode.value)
        highest = "-" if self.highest_mapped_sector is None else str(self.highest_mapped_sector)
        return f"{self.mapped_sectors} {highest}"
