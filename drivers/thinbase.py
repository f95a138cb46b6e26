"""The base: the thin device with an empty file system that every layer without a parent is a snapshot of."""

import json
from contextlib import suppress

from thinpool.dm.device import device_path
from thinpool.drivers.base import Records, Storage
from thinpool.errors import ThinPoolError
from thinpool.filesystem.formats import FileSystem, make_base
from thinpool.pool import ThinIdTaken, ThinPool

_BASE = "base"
_BEGUN = "base-begun"
_EXT4_WRITES_ZEROS = "-E assume_storage_prezeroed=0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"


class Base:
    """The base of one store.

    Args:
        records: the store's records, which name it once it is whole.
        pool: the pool it is in.
        file_system: what to make on it.
    """

    def __init__(self, records: Records, pool: ThinPool, file_system: FileSystem) -> None:
        self._records = records
        self._pool = pool
        self._file_system = file_system

    @property
    def storage(self) -> Storage:
        """Where it is."""
        found = json.loads(self._records.get(_BASE) or "{}")
        return Storage(found["handle"], found["size"], immutable=True)

    def make(self) -> None:
        """Make the base where there is none, over what a process that died had made of it.

        Its number is on record once the device is made, so that only a device of ours is ever deleted; a process that
        dies between the two leaves an empty device in a pool that others share.

        Raises:
            ToolError: mkfs is missing or failed.
            PoolFull, PoolFailed: the pool cannot take it.
        """
        if self._records.get(_BASE) is not None:
            return
        begun = self._records.get(_BEGUN)
        if begun:
            self._discard(int(begun))
        handle = self._new_thin()
        self._records.put(_BEGUN, str(handle))
        size = self._pool.options.basesize
        try:
            self._fill(handle, size)
        except BaseException:
            with suppress(ThinPoolError):
                self._discard(handle)
            raise
        self._records.claim(handle, {_BASE: json.dumps({"handle": handle, "size": size})})

    def _fill(self, handle: int, size: int) -> None:
        thins = self._pool.thins
        device = device_path(thins.activate(handle, size))
        make_base(self._file_system, device, self._mkfs_arguments())
        if not thins.deactivate(handle):
            raise thins.busy(handle)

    def _mkfs_arguments(self) -> str:
        """What is asked for; in a pool that does not zero blocks, mke2fs must write the zeros that it counts on."""
        asked = self._pool.options.mkfsarg
        if self._file_system.name == "ext4" and not self._pool.table().zeroes:
            return f"{_EXT4_WRITES_ZEROS} {asked}".rstrip()
        return asked

    def _discard(self, handle: int) -> None:
        self._pool.thins.deactivate(handle)
        self._pool.thins.delete(handle)

    def _new_thin(self) -> int:
        while True:
            handle = self._records.allot()
            try:
                self._pool.thins.create(handle)
            except ThinIdTaken:
                if self._pool.is_foreign:
                    self._records.skip(handle)
                else:  # no record names it: a process that died made it
                    self._discard(handle)
            else:
                return handle
