"""One thin pool: made, activated, grown, deactivated; its thin devices.

The pool zeroes each block it provisions: no layer ever reads what another one deleted, and a fresh thin device reads
as zeros, which the base file system is made on. A full pool fails writes (`error_if_no_space`) instead of holding them
back, which would hang the host.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import attrs

from thinpool import loop
from thinpool.dm import Control, DeviceInfo, TableEntry, Thin, thin
from thinpool.dm import ThinPool as ThinPoolTarget
from thinpool.dm.device import create_device, device_path, remove_device, suspended, swap_table
from thinpool.errors import ConfigError, DeviceMapperError, PoolFailed, PoolFull
from thinpool.metadata import Books, read_superblock
from thinpool.pool.backing import Backing, grow_file, make_files, open_backing
from thinpool.pool.health import PoolStatus
from thinpool.pool.options import METADATA_MIN, PoolOptions
from thinpool.pool.superblock import write_uuid, zero_first_block
from thinpool.pool.vetting import vet
from thinpool.units import format_size, to_sectors

_BLOCK = 4096
_DATA_BLOCKS_MIN = 256


class ThinIdTaken(Exception):
    """A thin device of that number exists."""


@attrs.frozen
class PoolIdentity:
    """What a pool is known by: the uuid in its metadata, and the transaction id that was set last."""

    uuid: str
    transaction_id: int

    def to_json(self) -> str:
        """As it is recorded."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As it was recorded."""
        return cls(**json.loads(text))


class ThinPool:
    """One pool, by the names that a prefix gives it.

    Args:
        control: the device-mapper control device.
        directory: where loop files lie.
        prefix: of all device names, as in `thinpool-3f9a1c02b7aa`.
        options: the pool's options.
        identity: what was recorded of it; None where it is to be made.
    """

    def __init__(
        self, control: Control, directory: Path, prefix: str, options: PoolOptions, identity: PoolIdentity | None
    ) -> None:
        self._control = control
        self._directory = directory
        self._prefix = prefix
        self.options = options
        self.identity = identity
        self.is_foreign = options.thinpooldev is not None
        self.name = options.thinpooldev or f"{prefix}-pool"
        self._uuid = f"THINPOOL-{prefix.removeprefix('thinpool-')}"
        self._device: Path | None = None

    # -- the pool

    def create(self, *, begun: bool) -> PoolIdentity:
        """Make the pool; a process that dies half-way leaves devices or files that the next `create` starts over on.

        Args:
            begun: it is on record that a `create` on these devices was begun before, so that a pool without any
                device in it is what that one left.

        Raises:
            DeviceUnsafe: a device carries something.
            ConfigError: a device is too small.
        """
        if self.is_foreign:
            self.identity = PoolIdentity("", 0)
            return self.identity
        self._remove_half_made()
        if self.options.datadev is None:
            make_files(self._directory, self.options)
        with open_backing(self._directory, self.options) as backing:
            if self.options.datadev is not None and not (begun and _is_pristine(backing.metadata)):
                vet({"dm.datadev": backing.data, "dm.metadatadev": backing.metadata})
            _check_sizes(backing, self.options)
            zero_first_block(backing.metadata)
            self._activate_on(backing)
            remove_device(self._control, self.name)
            name = uuid.uuid4()
            write_uuid(backing.metadata, name.bytes)
            self.identity = PoolIdentity(name.hex, 0)
            self._activate_on(backing)
        return self.identity

    def _remove_half_made(self) -> None:
        info = self._info(self.name)
        if info is not None:
            self._refuse_foreign(info)
            remove_device(self._control, self.name)

    def _refuse_foreign(self, info: DeviceInfo) -> None:
        if info.uuid != f"{self._uuid}-pool":
            raise PoolFailed(f"a device named {self.name} exists and is not ours (its uuid is {info.uuid!r})")

    def activate(self) -> bool:
        """Activate the pool; False where it is active.

        Raises:
            PoolFailed: its devices or files are gone, or their metadata is not the recorded one.
        """
        info = self._info(self.name)
        if self.is_foreign:
            if info is None:
                raise PoolFailed(f"pool {self.name} is not active", hint="activate it, e.g. with lvchange -ay")
            return False
        if info is not None and info.active:
            self._refuse_foreign(info)
            return False
        if info is not None:
            remove_device(self._control, self.name)
        with open_backing(self._directory, self.options) as backing:
            self._check_identity(backing.metadata)
            self._activate_on(backing)
        return True

    def _activate_on(self, backing: Backing) -> None:
        info = create_device(self._control, self.name, [self._entry(backing)], uuid=f"{self._uuid}-pool")
        self._device = device_path(info)

    def _entry(self, backing: Backing) -> TableEntry:
        data, _ = backing.sizes()
        blocks = data // self.options.blocksize
        low_water = blocks * (100 - self.options.thinp_autoextend_threshold) // 100
        features = ("error_if_no_space",) if self.options.error_if_no_space else ()
        block_sectors = to_sectors(self.options.blocksize)
        target = ThinPoolTarget(str(backing.metadata), str(backing.data), block_sectors, low_water, features)
        return TableEntry(0, blocks * block_sectors, target)

    def _check_identity(self, metadata: Path) -> None:
        if self.identity is None:
            raise PoolFailed("the pool was never made")
        found = read_superblock(metadata)
        if found.uuid.hex() != self.identity.uuid:
            raise PoolFailed(f"the metadata on {metadata} is of another pool: its uuid is {found.uuid.hex()}")
        if found.transaction_id != self.identity.transaction_id:
            age = "older" if found.transaction_id < self.identity.transaction_id else "newer"
            raise PoolFailed(
                f"the metadata on {metadata} is {age} than the records: transaction id {found.transaction_id},"
                f" and {self.identity.transaction_id} was recorded"
            )

    def deactivate(self) -> None:
        """Deactivate the pool; nothing happens where it is inactive."""
        if not self.is_foreign and self._info(self.name) is not None:
            remove_device(self._control, self.name)
        self._device = None

    def grow(self, data: int | None, metadata: int | None) -> None:
        """Extend the pool online to new total sizes in bytes."""
        if self.is_foreign:
            raise ConfigError(f"pool {self.name} was made elsewhere; grow it there", hint="lvextend")
        for key, given, have in (
            ("data", data, self.options.loopdatasize),
            ("metadata", metadata, self.options.loopmetadatasize),
        ):
            if given is not None and given < have:
                raise ConfigError(f"{key} size {format_size(given)} is less than the {format_size(have)} there are")
        entry = self._control.table(self.name)[0]
        assert isinstance(entry.target, ThinPoolTarget)
        devices = {"data": entry.target.data, "metadata": entry.target.metadata}
        for name, size in {"data": data, "metadata": metadata}.items():
            if size is not None and not self.options.datadev:
                grow_file(self._directory / name, size)
                loop.refresh_size(_node(devices[name]))
        self.options = attrs.evolve(
            self.options,
            loopdatasize=data or self.options.loopdatasize,
            loopmetadatasize=metadata or self.options.loopmetadatasize,
        )
        with ExitStack() as held:
            backing = Backing(_node(devices["data"]), _node(devices["metadata"]), held)
            swap_table(self._control, self.name, [self._entry(backing)])

    # -- thin devices

    def thin_name(self, thin_id: int) -> str:
        """The name of a thin device."""
        return f"{self._prefix}-{thin_id}"

    def activate_thin(self, thin_id: int, size: int, *, read_only: bool = False) -> DeviceInfo:
        """Activate a thin device of a size in bytes, or find it active."""
        name = self.thin_name(thin_id)
        entry = TableEntry(0, to_sectors(size), Thin(str(self.device), thin_id))
        for _ in range(3):
            try:
                return create_device(self._control, name, [entry], uuid=f"{self._uuid}-{thin_id}", read_only=read_only)
            except DeviceMapperError as error:
                if error.errno not in {errno.EBUSY, errno.EEXIST}:
                    raise _explained(error) from error
            info = self._info(name)
            if info is not None and info.active:
                return info
            if info is not None:
                remove_device(self._control, name)  # left without a table by a process that died
        raise PoolFailed(f"device {name} cannot be activated")

    def deactivate_thin(self, thin_id: int) -> bool:
        """Deactivate a thin device; False where somebody uses it (it then goes when they let go, by option)."""
        name = self.thin_name(thin_id)
        try:
            info = remove_device(self._control, name, deferred=self.options.use_deferred_removal)
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO:
                return True
            if error.errno == errno.EBUSY:
                return False
            raise
        return not info.deferred_remove

    def create_thin(self, thin_id: int) -> None:
        """Make an empty thin device."""
        self._message(f"create_thin {thin_id}")

    def create_snap(self, thin_id: int, origin: int, *, quiesce: bool) -> None:
        """Make a snapshot of a thin device.

        Args:
            thin_id: the snapshot's number.
            origin: the number of the device to copy.
            quiesce: suspend the origin for the moment, if it is active, which freezes its file system; needed where
                anybody can write to it.
        """
        name = self.thin_name(origin)
        if not quiesce or self._info(name) is None:
            self._message(f"create_snap {thin_id} {origin}")
            return
        with suspended(self._control, name):
            self._message(f"create_snap {thin_id} {origin}")

    def delete(self, thin_id: int) -> bool:
        """Delete a thin device; False where there is none."""
        try:
            thin.delete_thin(self._control, self.name, thin_id)
        except DeviceMapperError as error:
            if error.errno == errno.ENODATA:
                return False
            raise _explained(error) from error
        return True

    def _message(self, text: str) -> None:
        try:
            self._control.message(self.name, text)
        except DeviceMapperError as error:
            if error.errno == errno.EEXIST:
                raise ThinIdTaken(text) from error
            raise _explained(error) from error

    # -- looking

    @property
    def device(self) -> Path:
        """The pool's device node."""
        if self._device is None:
            self._device = device_path(self._control.info(self.name))
        return self._device

    def active_thins(self) -> list[int]:
        """The thin devices that are active."""
        start = f"{self._prefix}-"
        names = [entry.name for entry in self._control.devices() if entry.name.startswith(start)]
        return [int(name.removeprefix(start)) for name in names if name.removeprefix(start).isdigit()]

    def is_open(self, thin_id: int) -> bool:
        """Whether a thin device is active and somebody uses it."""
        info = self._info(self.thin_name(thin_id))
        return info is not None and info.open_count > 0

    def thin_of(self, device: tuple[int, int]) -> int | None:
        """The number of the thin device at (major, minor), or None."""
        try:
            info = self._control.info(dev=device)
        except DeviceMapperError:
            return None
        number = info.uuid.removeprefix(f"{self._uuid}-")
        return int(number) if number != info.uuid and number.isdigit() else None

    def status(self) -> PoolStatus:
        """The state of the pool, by one ioctl."""
        try:
            found = thin.pool_status(self._control, self.name)
        except DeviceMapperError as error:
            if error.errno != errno.ENXIO:
                raise
            return self._inactive()
        size = self.options.blocksize
        return PoolStatus(
            name=self.name,
            mode=found.mode.value,
            needs_check=found.needs_check,
            transaction_id=found.transaction_id,
            data_used=found.data_used_blocks * size,
            data_total=found.data_total_blocks * size,
            metadata_used=found.metadata_used_blocks * _BLOCK,
            metadata_total=found.metadata_total_blocks * _BLOCK,
            block_size=size,
        )

    def _inactive(self) -> PoolStatus:
        return PoolStatus(
            name=self.name,
            mode="inactive",
            needs_check=False,
            transaction_id=0 if self.identity is None else self.identity.transaction_id,
            data_used=0,
            data_total=self.options.loopdatasize,
            metadata_used=0,
            metadata_total=self.options.loopmetadatasize,
            block_size=self.options.blocksize,
        )

    @contextmanager
    def open_metadata(self) -> Iterator[Path]:
        """The device that the metadata is on, for reading; an inactive pool stays so."""
        if self.is_foreign or self._info(self.name) is not None:
            target = self._control.table(self.name)[0].target
            assert isinstance(target, ThinPoolTarget)
            yield _node(target.metadata)
            return
        with open_backing(self._directory, self.options) as backing:
            yield backing.metadata

    def _info(self, name: str) -> DeviceInfo | None:
        try:
            return self._control.info(name)
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def mend(self) -> None:
        """Resume the thin devices that a process that died left suspended."""
        for thin_id in self.active_thins():
            name = self.thin_name(thin_id)
            info = self._info(name)
            if info is not None and info.suspended and info.active:
                self._control.resume(name)


def _explained(error: DeviceMapperError) -> PoolFailed | PoolFull | DeviceMapperError:
    if error.errno == errno.ENOSPC:
        return PoolFull(error.message)
    if error.errno in {errno.EIO, errno.EOPNOTSUPP, errno.ENXIO, errno.EROFS}:
        return PoolFailed(error.message)
    return error


def _node(device: str) -> Path:
    """The node of a device that the kernel names as major:minor."""
    return Path("/dev") / Path(os.readlink(f"/sys/dev/block/{device}")).name


def _is_pristine(metadata: Path) -> bool:
    """Whether a device holds metadata of a pool that nothing was ever made in."""
    try:
        with Books.open(metadata) as books:
            return books.superblock.transaction_id == 0 and not list(books.devices())
    except PoolFailed:
        return False


def _check_sizes(backing: Backing, options: PoolOptions) -> None:
    data, metadata = backing.sizes()
    if data < _DATA_BLOCKS_MIN * options.blocksize:
        raise ConfigError(
            f"{backing.data} has {format_size(data)}; a pool needs at least"
            f" {format_size(_DATA_BLOCKS_MIN * options.blocksize)} of data"
        )
    if metadata < METADATA_MIN:
        raise ConfigError(f"{backing.metadata} has {format_size(metadata)}; metadata needs {format_size(METADATA_MIN)}")
