"""Notes of the thin devices that much was written to: an empty file each, lost without harm.

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


class WriteNotes:
    """The notes of one pool.

    Args:
        folder: where they lie; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            os.close(os.open(self._path(thin_id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            point("write-noted")

    def has(self, thin_id: int) -> bool:
        """Whether that was noted."""
        return os.path.exists(self._path(thin_id))

    def forget(self, thin_id: int) -> None:
        """Drop the note of a device that is gone."""
        with suppress(OSError):
            os.unlink(self._path(thin_id))

    def _path(self, thin_id: int) -> str:
        return f"{self._folder}/{thin_id}"
