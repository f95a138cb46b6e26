"""One thin pool: made, activated, grown, deactivated.

The pool zeroes each block it provisions (no `skip_block_zeroing`): no layer ever reads what another one deleted, and a
fresh thin device reads as zeros, which the base file system is made on. Discards of layers are passed down to what the
pool lies on, unless dm.blkdiscard is off. A full pool fails writes (`error_if_no_space`) instead of holding them back,
which would hang the host; dm.error_if_no_space chooses.

A pool that somebody else made is only looked at: it is never made, resized or removed here, and its transaction id,
which LVM keeps in step with its own records, is never set.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from thinpool.crashpoints import point
from thinpool.dm import Control, DeviceInfo, TableEntry, thin
from thinpool.dm import ThinPool as ThinPoolTarget
from thinpool.dm.device import block_device_size, create_device, remove_device, swap_table
from thinpool.dm.status import ThinPoolStatus
from thinpool.errors import ConfigError, DeviceMapperError, PoolFailed
from thinpool.filesystem.holders import in_use, of_device
from thinpool.metadata import Books, read_superblock
from thinpool.metadata.snapshot import metadata_snapshot, release_leftover
from thinpool.metadata.superblock import Superblock
from thinpool.pool.advice import room_to_count
from thinpool.pool.backing import Backing, at_rest, grow_file, make_files, open_backing, resize_file, size_at_rest
from thinpool.pool.devices import PoolTable, find_device, pool_table
from thinpool.pool.health import METADATA_BLOCK, PoolStatus, shortage, trouble
from thinpool.pool.holding import Holder
from thinpool.pool.identity import PoolIdentity
from thinpool.pool.options import BLOCK_SIZE_STEP, PoolOptions, Way, reconcile
from thinpool.pool.superblock import write_uuid, zero_first_block
from thinpool.pool.thins import ThinDevices
from thinpool.pool.written import WriteNotes
from thinpool.units import format_size, human_size, to_sectors

_GROWN_AS = {"data": "dm.loopdatasize", "metadata": "dm.loopmetadatasize"}


WRITTEN = "written"
"""File with the notes of the devices that much was written to; see `thinpool.pool.written`."""

NOTE = "metadata-snapshot"
"""File in which it is noted that a metadata snapshot of ours may be reserved; see `thinpool.metadata.snapshot`."""

HELD = "held"
"""File that says which thin device is being held for its copy; see `thinpool.pool.holding`."""


def _forget(_: PoolIdentity) -> None:
    """Record nothing."""


class ThinPool:
    """One pool, by the names that a prefix gives it.

    Args:
        control: the device-mapper control device.
        directory: where loop files lie.
        prefix: of all device names, as in `thinpool-3f9a1c02b7aa`.
        options: the pool's options.
        identity: what was recorded of it; None where it is to be made.
        remember: records a new identity durably; the next activation wants the one that was recorded last.

    Attributes:
        name: the pool's device-mapper name.
        uuid: its device-mapper uuid, if it is not foreign.
        note: the file that says that a metadata snapshot of ours may be reserved.
        options: its options.
        identity: what it is known by.
        thins: its thin devices.
        is_foreign: somebody else made it.
    """

    def __init__(
        self,
        control: Control,
        directory: Path,
        prefix: str,
        options: PoolOptions,
        identity: PoolIdentity | None,
        *,
        remember: Callable[[PoolIdentity], None] = _forget,
    ) -> None:
        self._control = control
        self._directory = directory
        self.uuid = f"THINPOOL-{prefix.removeprefix('thinpool-')}-pool"
        self._remember = remember
        self.note = directory / NOTE
        self._block_size = 0 if options.way is Way.FOREIGN else options.blocksize
        self.options = options
        self.identity = identity
        self.is_foreign = options.way is Way.FOREIGN
        self.name = options.thinpooldev or f"{prefix}-pool"
        self.thins = ThinDevices(
            control,
            self.name,
            prefix,
            Holder(control, directory / HELD),
            lambda: self.options.use_deferred_removal,
            notes=WriteNotes(directory / WRITTEN) if options.blkdiscard else None,
            block_size=self._block_size or BLOCK_SIZE_STEP,
        )

    # -- made

    def create(self, *, begun: bool) -> PoolIdentity:
        """Make the pool, or look at the one that somebody else made.

        A process that dies half-way leaves devices or files that the next `create` starts over on.

        Args:
            begun: it is on record that a `create` on these devices was begun before, so that a pool without any
                device in it is what that one left.

        Raises:
            DeviceUnsafe: a device carries something.
            ConfigError: a device is too small, or two are one.
        """
        if self.is_foreign:
            self.table()
            self.identity = PoolIdentity("", 0)
            return self.identity
        self._remove_half_made()
        if self.options.way is Way.FILES:
            make_files(self._directory, self.options)
        with open_backing(self._directory, self.options) as backing:
            if self.options.way is Way.DEVICES and not (begun and _is_pristine(backing.metadata)):
                from thinpool.pool.vetting import vet  # noqa: PLC0415 - slow to load, and needed once in a pool's life

                vet({"dm.datadev": backing.data, "dm.metadatadev": backing.metadata})
            backing.check_new(self.options.blocksize)
            zero_first_block(backing.metadata)
            point("pool-cleared")
            size = block_device_size(backing.data)
            self._activate_on(backing, size)
            remove_device(self._control, self.name)
            name = uuid.uuid4()
            write_uuid(backing.metadata, name.bytes)
            point("pool-named")
            self.identity = PoolIdentity(name.hex, 0)
            self._activate_on(backing, size)
        return self.identity

    def _remove_half_made(self) -> None:
        info = find_device(self._control, self.name)
        if info is not None:
            self._refuse_others(info)
            remove_device(self._control, self.name)

    def _refuse_others(self, info: DeviceInfo) -> None:
        if info.uuid != self.uuid:
            raise PoolFailed(f"a device named {self.name} exists and is not ours (its uuid is {info.uuid!r})")

    # -- active or not

    def activate(self) -> bool:
        """Activate the pool; False where it is active.

        Its transaction id is moved on then, see `thinpool.pool.identity`. A pool that a process left suspended, as it
        died while it put another table in force, goes on.

        Raises:
            PoolFailed: its devices or files are gone, or their metadata is not the recorded one.
        """
        info = find_device(self._control, self.name)
        if self.is_foreign:
            if info is None or not info.active:
                raise PoolFailed(f"pool {self.name} is not active", hint="activate it, e.g. with lvchange -ay")
            return False
        if info is not None:
            self._refuse_others(info)
            if info.active and self._stays(info):
                if info.suspended:
                    self._control.resume(self.name)
                    point("pool-resumed")
                return False
            if not info.active:
                remove_device(self._control, self.name)
        with open_backing(self._directory, self.options) as backing:
            found = self._check_metadata(backing)
            self._activate_on(backing, _countable(found, block_device_size(backing.data)))
        with suppress(PoolFailed, DeviceMapperError):  # nobody who reserved it can be left; a pool that failed keeps it
            release_leftover(self._control, self.name)
        self._move_on(found.transaction_id)
        return True

    def _activate_on(self, backing: Backing, data_size: int) -> None:
        entry = self._entry(backing.data, backing.metadata, data_size)
        create_device(self._control, self.name, [entry], uuid=self.uuid)

    def _entry(self, data: Path, metadata: Path, data_size: int) -> TableEntry:
        """The pool's table on so many bytes of a data device, with the features in the kernel's order."""
        options = self.options
        blocks = data_size // options.blocksize
        low_water = blocks * (100 - options.thinp_autoextend_threshold) // 100
        features = {"no_discard_passdown": not options.blkdiscard, "error_if_no_space": options.error_if_no_space}
        block_sectors = to_sectors(options.blocksize)
        target = ThinPoolTarget(
            _number(metadata),
            _number(data),
            block_sectors,
            low_water,
            tuple(word for word in features if features[word]),
        )
        return TableEntry(0, blocks * block_sectors, target)

    def _check_metadata(self, backing: Backing) -> Superblock:
        """Compare the metadata with the records and the devices."""
        if self.identity is None:
            raise PoolFailed("the pool was never made")
        found = read_superblock(backing.metadata)
        self.identity.check(found.uuid.hex(), found.transaction_id, str(backing.metadata))
        backing.check_holds(found)
        return found

    def _move_on(self, current: int) -> None:
        def put(old: int, new: int) -> bool:
            point("transaction-move")
            try:
                thin.set_transaction_id(self._control, self.name, old, new)
            except DeviceMapperError:
                return False
            point("transaction-moved")
            return True

        if self.identity is not None:
            self.identity = self.identity.move(current, self._remember, put)

    def deactivate(self, *, deferred: bool = False) -> None:
        """Deactivate the pool, its transaction id moved on; nothing happens where it is inactive.

        Args:
            deferred: where it is in use, it goes when its last user lets go, with the transaction id that it has.

        Raises:
            LayerInUse: it is in use, and the message names by whom.
        """
        info = None if self.is_foreign else find_device(self._control, self.name)
        if info is None:
            return
        self._refuse_others(info)
        if info.active and not info.open_count:
            status = thin.pool_status(self._control, self.name)
            if trouble(self.name, status) is None:
                self._move_on(status.transaction_id)
        try:
            remove_device(self._control, self.name, deferred=deferred)
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO and deferred:  # gone just now, with its last user
                return
            if error.errno != errno.EBUSY:
                raise
            raise in_use(f"pool {self.name} is in use", of_device((info.major, info.minor))) from error

    def _stays(self, info: DeviceInfo) -> bool:
        """Whether a pool that is active goes on: one that was to go with its last user stays, if it is there still."""
        if not info.deferred_remove:
            return True
        try:
            self._control.message(self.name, "@cancel_deferred_remove")
        except DeviceMapperError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True

    # -- larger

    def grow(self, data: int | None, metadata: int | None) -> None:
        """Extend the active pool online, to new total sizes in bytes; block devices, to the size that they have.

        The metadata grow first, as data need metadata to count their blocks. Of each, the file grows, durably, then its
        loop device, then the pool's table; the caller records the options last. Wherever a process dies between these,
        the pool takes the whole file when it is activated next or grown again, and records of a smaller size are
        accepted. What the kernel refuses is undone.

        Raises:
            ConfigError: smaller than it is, larger than there can be, or a pool made elsewhere.
            PoolFailed: the pool is inactive, or the kernel refuses.
        """
        if self.is_foreign:
            raise ConfigError(f"pool {self.name} was made elsewhere; grow it there", hint="lvextend")
        table = self.table()
        after_metadata = self._sized(self.options, "metadata", table.metadata, metadata)
        after_both = self._sized(after_metadata, "data", table.data, data)
        if data is not None:
            self._check_counts(data, metadata)
        if metadata is not None:
            self._extend(table, "metadata", metadata, table.data_size)
            self.options = after_metadata
        if data is not None:
            self._extend(table, "data", data, data)
            self.options = after_both

    def _extend(self, table: PoolTable, name: str, size: int, data_size: int) -> None:
        """Extend one of the two devices, if it is a file, and let the kernel look at its size."""
        device = getattr(table, name)
        with ExitStack() as undo:
            if self.options.way is Way.FILES:
                undo.callback(resize_file, self._directory / name, block_device_size(device), device)
                grow_file(self._directory / name, size, device)
            self._swap(self._entry(table.data, table.metadata, data_size))
            undo.pop_all()

    def _sized(self, options: PoolOptions, name: str, device: Path, size: int | None) -> PoolOptions:
        """The options with one new size, if there is one, which must be one that the device can have."""
        if size is None:
            return options
        have = block_device_size(device)
        if options.way is Way.DEVICES and size != have:
            raise ConfigError(
                f"{name} size {format_size(size)} is not the {format_size(have)} of {device}; a pool takes the whole of"
                " its devices"
            )
        if size < have:
            raise ConfigError(f"{name} size {format_size(size)} is less than the {format_size(have)} there are")
        return options if options.way is Way.DEVICES else reconcile(options, {_GROWN_AS[name]: format_size(size)})

    def _check_counts(self, data: int, metadata: int | None) -> None:
        """Raise ConfigError where the metadata have no room to count the blocks of more data.

        The kernel would find out half-way, and leave a pool that needs a check.
        """
        status = self.status()
        room = max(metadata or 0, status.metadata_total) - status.metadata_used
        need = room_to_count(status.data_total, data, status.block_size)
        if need > room:
            raise ConfigError(
                f"{format_size(data)} of data need {human_size(need)} more metadata to count their blocks, and"
                f" {human_size(room)} are free",
                hint="grow the metadata too",
            )

    def apply(self) -> None:
        """Put the options in force, where the active pool's table has others.

        Raises:
            PoolFailed: the pool is inactive, or the kernel refuses.
        """
        if self.is_foreign:
            return
        table = self.table()
        entry = self._entry(table.data, table.metadata, table.data_size)
        if entry.target != table.target:
            self._swap(entry)

    def _swap(self, entry: TableEntry) -> None:
        try:  # without a flush, as a full pool has writes that end only when it is larger
            swap_table(self._control, self.name, [entry], flush=False, lockfs=False)
        except DeviceMapperError as error:
            raise PoolFailed(f"pool {self.name} goes on as it was: {error.message}") from error

    # -- looking

    def table(self) -> PoolTable:
        """What the table of the active pool says.

        Raises:
            PoolFailed: it is inactive.
        """
        return pool_table(self._control, self.name)

    def is_active(self) -> bool:
        """Whether the pool is active."""
        info = find_device(self._control, self.name)
        return info is not None and info.active

    def kernel_status(self) -> ThinPoolStatus | None:
        """What the kernel says of the pool, by one ioctl; None where it is inactive."""
        try:
            lines = self._control.status(self.name, noflush=True)
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        return ThinPoolStatus.parse(lines[0].text) if lines else None

    def status(self) -> PoolStatus:
        """The state of the pool, by one ioctl; of an inactive one, what its devices or files say."""
        found = self.kernel_status()
        if found is None:
            return self._at_rest()
        if self.is_foreign and not self._block_size:
            self._block_size = self.table().block_size
        return PoolStatus.of(self.name, found, self._block_size)

    def check_room(self) -> None:
        """Raise where nothing new may be begun, by one ioctl.

        Raises:
            PoolFull: less than dm.min_free_space of data or metadata is free.
            PoolFailed: the pool is inactive, or takes no changes.
        """
        found = self.kernel_status()
        if found is None:
            raise PoolFailed(f"pool {self.name} is not active", hint="thinpool up")
        problem = trouble(self.name, found)
        if problem is None and self.options.min_free_space:
            problem = shortage(self.name, found, self.options.min_free_space)
        if problem is not None:
            raise problem

    def _at_rest(self) -> PoolStatus:
        data, metadata = (None, None) if self.is_foreign else at_rest(self._directory, self.options)
        status = PoolStatus(
            name=self.name,
            mode="inactive",
            needs_check=False,
            transaction_id=0 if self.identity is None else self.identity.transaction_id,
            data_used=0,
            data_total=size_at_rest(data) if data else 0,
            metadata_used=0,
            metadata_total=size_at_rest(metadata) if metadata else 0,
            block_size=self._block_size,
        )
        if metadata is None:
            return status
        with suppress(PoolFailed):
            found = read_superblock(metadata)
            return attrs.evolve(
                status,
                needs_check=found.needs_check,
                transaction_id=found.transaction_id,
                data_used=found.data_space_map.allocated * self._block_size if found.data_space_map else 0,
                metadata_used=found.metadata_space_map.allocated * METADATA_BLOCK if found.metadata_space_map else 0,
            )
        return status

    @contextmanager
    def open_metadata(self) -> Iterator[Path]:
        """The device that the metadata is on, for reading; an inactive pool stays so.

        Raises:
            PoolFailed: the device is gone, or holds other metadata than was recorded.
        """
        if self.is_foreign or find_device(self._control, self.name) is not None:
            yield self.table().metadata
            return
        with open_backing(self._directory, self.options) as backing:
            self._check_metadata(backing)
            yield backing.metadata

    def release_metadata_snapshot(self) -> None:
        """Release the metadata snapshot that a process of ours left reserved, and nobody else's."""
        with suppress(PoolFailed, DeviceMapperError):
            release_leftover(self._control, self.name, note=self.note)

    @contextmanager
    def metadata_snapshot(self) -> Iterator[None]:
        """Reserve a metadata snapshot for the block."""
        with metadata_snapshot(self._control, self.name, note=self.note):
            yield


def _countable(found: Superblock, device_size: int) -> int:
    """How much of a data device a pool can use: all of it, unless it grew by more than the metadata can count."""
    data, metadata = found.data_space_map, found.metadata_space_map
    if data is None or metadata is None:
        return device_size
    size = data.blocks * found.data_block_size
    room = (metadata.blocks - metadata.allocated) * METADATA_BLOCK
    grown = device_size // found.data_block_size > data.blocks
    return device_size if grown and room_to_count(size, device_size, found.data_block_size) <= room else size


def _number(device: Path) -> str:
    found = os.stat(device).st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


def _is_pristine(metadata: Path) -> bool:
    """Whether a device holds metadata of a pool that nothing was ever made in."""
    try:
        with Books.open(metadata) as books:
            return books.superblock.transaction_id == 0 and not list(books.devices())
    except PoolFailed:
        return False
