"""Notes of the thin devices that much was written to: a byte each in one sparse file, lost without harm.

Where a note is missing, as after a power cut, a deletion gives nothing back to the device below, and no more.
"""

import os
from contextlib import suppress
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.units import MIB, SECTOR

WORTHWHILE = 16 * MIB
"""Bytes of data below which it is not worth while to discard them."""

_WRITES, _SECTORS_WRITTEN = 4, 6  # Documentation/block/stat.rst
_MUCH, _LITTLE = b"1", b"\0"


class WriteNotes:
    """The notes of one pool.

    Args:
        path: the file, made with the first note. A byte that is not there says the same as a zero.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def observe(self, thin_id: int, device: tuple[int, int], block_size: int) -> None:
        """Note a device that is active, by (major, minor), if what was written since it is may have taken much.

        Each write may have taken a block at both its ends.
        """
        try:
            with open(f"/sys/dev/block/{device[0]}:{device[1]}/stat", "rb") as file:
                fields = file.read().split()
        except OSError:  # gone just now, as its last user let go
            return
        if int(fields[_SECTORS_WRITTEN]) * SECTOR + 2 * int(fields[_WRITES]) * block_size >= WORTHWHILE:
            self.note(thin_id)

    def note(self, thin_id: int) -> None:
        """Note that much may have been written to a device."""
        with suppress(OSError):  # as where there is no space for it
            os.pwrite(self._open(os.O_CREAT), _MUCH, thin_id)
            point("write-noted")

    def has(self, thin_id: int) -> bool:
        """Whether that was noted."""
        with suppress(OSError):
            return os.pread(self._open(), 1, thin_id) == _MUCH
        return False

    def forget(self, thin_id: int) -> None:
        """Drop the note of a device that is gone."""
        if self.has(thin_id):
            with suppress(OSError):
                os.pwrite(self._open(), _LITTLE, thin_id)

    def _open(self, flags: int = 0) -> int:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | flags | os.O_CLOEXEC, 0o600)
        return self._fd
