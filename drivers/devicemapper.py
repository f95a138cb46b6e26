"""Layers as thin devices of one pool: a child is a snapshot, a commit is a snapshot, and nothing is ever copied.

The handle of a layer is its thin id. A thin device is active only while somebody uses it; its name is
`PREFIX-HANDLE`, where the prefix comes from the root directory, so that two stores never meet.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import attrs

from thinpool.crashpoints import point
from thinpool.dm import Control
from thinpool.dm.device import device_path
from thinpool.drivers.base import INTENT, Ancestor, Compared, Context, DriverStatus, HandleTaken, Storage, Unsure
from thinpool.drivers.naming import store_prefix
from thinpool.drivers.thinbase import Base
from thinpool.drivers.thinnames import NAMES, ManifestFolder
from thinpool.drivers.thinuse import is_claimed, settle
from thinpool.errors import (
    ConfigError,
    DeviceMapperError,
    DriverUnsupported,
    LayerInUse,
    MountError,
    NotPermitted,
    PoolFailed,
)
from thinpool.filesystem import mounts
from thinpool.filesystem.formats import FileSystem, file_system
from thinpool.filesystem.holders import Holder, Why, all_in_use, in_use
from thinpool.filesystem.mounts import MountEntry
from thinpool.findings import Finding
from thinpool.metadata import Books, read_books
from thinpool.model import Usage
from thinpool.pool import PoolIdentity, PoolOptions, PoolStatus, ThinIdTaken, ThinPool, advice, foreign, reconcile
from thinpool.pool.backing import FILES
from thinpool.pool.discard import give_back
from thinpool.pool.options import Way
from thinpool.pool.pool import HELD, NOTE, WRITTEN
from thinpool.units import format_size

_BEGUN = "pool-begun"
_IDENTITY = "pool"
_PAGE = 4096
_AT_WORK = {Why.CWD, Why.ROOT, Why.FILE, Why.PROGRAM, Why.MAPPED}
_LATER = "the pool stays active until they let go; thinpool down --lazy lets it go with them"
_FOREIGN_FIRST = 1 << 22
_FOREIGN_LAST = 15 << 20

T = TypeVar("T")


class DevicemapperType:
    """How the driver is found and opened."""

    name = "devicemapper"

    def probe(self, root: Path) -> str | None:  # noqa: ARG002 - a pool works below any root
        """Ask the kernel for device-mapper and its thin-pool target, loading the modules if they can be."""
        if os.geteuid() != 0:
            return "needs root, to control devices"
        try:
            with Control() as control:
                control.require_target("thin-pool")
        except (DriverUnsupported, NotPermitted) as error:
            return error.message
        return None

    def check(self, given: Mapping[str, str]) -> None:
        """Read the options, to see whether they can be."""
        _check_base(PoolOptions.parse(given))

    def create(self, context: Context) -> "Devicemapper":
        """Make the pool, and in it the base file system that layers without a parent start from."""
        options = PoolOptions.parse(context.given)
        _check_base(options)
        with ExitStack() as undo:
            if options.thinpooldev is not None:
                with Control() as control:
                    options = attrs.evolve(options, thinpooldev=foreign.resolve(control, options.thinpooldev))
            context.directory.mkdir(mode=0o700, exist_ok=True)
            point("driver-directory-made")
            undo.callback(_remove_files, context.directory)
            driver = undo.enter_context(Devicemapper(context, options, None, created=True))
            undo.callback(driver.down)
            driver.make()
            undo.pop_all()
        return driver

    def open(self, context: Context) -> "Devicemapper":
        """Take the pool up as it was recorded, with options that have changed where they can."""
        recorded = PoolOptions.parse(context.recorded)
        wanted = reconcile(recorded, _same_devices(recorded, context.given))
        identity = context.records.get(_IDENTITY)
        if identity is None:
            raise PoolFailed(f"the records of {context.root} name no pool")
        now = attrs.evolve(wanted, loopdatasize=recorded.loopdatasize, loopmetadatasize=recorded.loopmetadatasize)
        with ExitStack() as undo:
            driver = undo.enter_context(Devicemapper(context, now, PoolIdentity.from_json(identity)))
            driver.change(recorded, wanted)
            undo.pop_all()
        return driver


def _check_base(options: PoolOptions) -> None:
    fs = file_system(options.fs)
    if options.basesize < fs.minimum:
        raise ConfigError(
            f"dm.basesize={format_size(options.basesize)}: {fs.name} needs at least {format_size(fs.minimum)}"
        )


def _same_devices(recorded: PoolOptions, given: Mapping[str, str]) -> dict[str, str]:
    """The options that are given, where another path of the recorded device is that device."""
    found = dict(given)
    for key, known in (
        ("dm.datadev", recorded.datadev),
        ("dm.metadatadev", recorded.metadatadev),
        ("dm.thinpooldev", recorded.thinpooldev),
    ):
        named = given.get(key, "").strip()
        if known and named and named != known and _is_same(key, named, known):
            found[key] = known
    return found


def _is_same(key: str, named: str, known: str) -> bool:
    if key == "dm.thinpooldev":
        with suppress(ConfigError), Control() as control:
            return foreign.resolve(control, named) == known
        return False
    with suppress(OSError):
        return os.stat(named).st_rdev == os.stat(known).st_rdev != 0
    return False


TYPE = DevicemapperType()


class Devicemapper:
    """The pool of one store and its thin devices."""

    name = "devicemapper"

    def __init__(
        self, context: Context, options: PoolOptions, identity: PoolIdentity | None, *, created: bool = False
    ) -> None:
        self._records = context.records
        self._directory = context.directory
        self._created = created
        self._file_system: FileSystem = file_system(options.fs)
        self._control = Control()
        self._pool = ThinPool(
            self._control, context.directory, store_prefix(context.root), options, identity, remember=self._remember
        )
        self._thins = self._pool.thins
        self._base = Base(context.records, self._pool, self._file_system)
        self._manifests = ManifestFolder(context.directory / NAMES)

    def _remember(self, identity: PoolIdentity) -> None:
        self._records.put(_IDENTITY, identity.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what this process holds; pool and devices stay."""
        self._thins.close()
        self._control.close()

    @property
    def options(self) -> Mapping[str, str]:
        """The options in force, in canonical text."""
        return self._pool.options.in_force()

    @property
    def shares_handles(self) -> bool:
        """A pool that somebody else made holds devices of theirs."""
        return self._pool.is_foreign

    # -- the pool

    def make(self) -> None:
        """Make pool and base, or what of them a process that died had not made yet."""
        if self._records.get(_IDENTITY) is None:
            begun = self._records.get(_BEGUN) is not None
            if not begun:
                self._records.put(_BEGUN, "yes")
                if self.shares_handles:  # away from the numbers of LVM, which begin at 1, and of other stores
                    self._records.skip(_FOREIGN_FIRST + secrets.randbelow(_FOREIGN_LAST - _FOREIGN_FIRST))
            self._remember(self._pool.create(begun=begun))
        else:
            self._pool.activate()
        self._base.make()

    def up(self) -> bool:
        """Activate the pool; False where it was active."""
        return self._pool.activate()

    def down(self) -> None:
        """Deactivate every thin device of the store, then the pool, whose loop devices go with it."""
        busy = [handle for handle in self._thins.active() if not self._thins.deactivate(handle)]
        if busy:
            raise all_in_use([self._thins.busy(handle) for handle in busy], hint=_LATER)
        self._pool.deactivate()

    def down_later(self) -> None:
        """Let the kernel take devices, pool and loop devices down when their last user lets go."""
        if not self._pool.options.use_deferred_removal:
            self.down()
            return
        for handle in self._thins.active():
            self._thins.deactivate(handle)
        self._pool.deactivate(deferred=True)

    def users(self, handle: int) -> Iterator[Holder]:
        """Who uses a thin device."""
        return self._thins.users(handle)

    def defers(self, handle: int) -> bool:
        """Whether it is mounted elsewhere and nobody works in it, or detached everywhere, and goes by itself."""
        options = self._pool.options
        if not options.use_deferred_removal or not options.use_deferred_deletion:
            return False
        info = self._thins.in_use(handle)
        if info is None:
            return True
        with suppress(FileNotFoundError):  # gone just now
            ways = {holder.why for holder in self.users(handle)}
            return is_claimed(device_path(info)) and (ways <= {Why.MOUNT} or ways <= _AT_WORK)
        return True

    def grow(self, *, data: int | None = None, metadata: int | None = None) -> None:
        """Extend the pool online to new total sizes in bytes."""
        self._pool.grow(data, metadata)

    def change(self, before: PoolOptions, after: PoolOptions) -> None:
        """Put changed options in force: sizes at once, others where the pool is active, else with its activation."""
        data = None if after.loopdatasize == before.loopdatasize else after.loopdatasize
        metadata = None if after.loopmetadatasize == before.loopmetadatasize else after.loopmetadatasize
        if data is not None or metadata is not None:
            self.up()
            self.grow(data=data, metadata=metadata)
        elif before != after and self._pool.is_active():
            self._pool.apply()

    # -- layers

    def create(self, handle: int, parent: Storage | None, size: int | None) -> int:
        """Snapshot the parent, or the base, and grow the copy's file system where a size asks for it."""
        self._pool.check_room()
        origin = parent or self._base.storage
        if parent is None and size is None:  # dm.basesize may have grown since the base was made
            size = self._pool.options.basesize
        self._snap(handle, origin)
        if size is None or size <= origin.size:
            return origin.size
        grown = Storage(handle, size // _PAGE * _PAGE, immutable=False)
        with self._tree(grown) as root:
            self._file_system.grow(root, grown.size)
            point("file-system-grown")
        self._thins.deactivate(handle)
        return grown.size

    def snapshot(self, handle: int, active: Storage) -> None:
        """Snapshot a layer, frozen for the moment if it is in use."""
        self._pool.check_room()
        self._snap(handle, active)

    def _snap(self, handle: int, origin: Storage) -> None:
        try:
            self._thins.snapshot(handle, origin.handle, quiesce=not origin.immutable)
        except ThinIdTaken as error:
            raise HandleTaken from error

    def flush(self, active: Storage) -> None:
        """Sync the file system, where the layer is in use; it is frozen later, and there is less to write then."""
        with suppress(PoolFailed):
            self.vouch(active)

    def vouch(self, active: Storage) -> bool:
        """The same, and say what a copy would be worth."""
        return settle(self._thins, active.handle, self._file_system.name)

    def delete(self, handle: int) -> bool:
        """Delete a thin device, deactivated first where it is active."""
        if self.shares_handles and self._records.get(INTENT) == str(handle) and not self._is_ours(handle):
            return False
        self._manifests.forget(handle)
        if self._thins.notes is not None and self._thins.notes.has(handle):
            self._give_back(handle)
        with suppress(DeviceMapperError):  # busy, as a rule
            return self._thins.delete(handle)
        if not self._thins.deactivate(handle):
            raise LayerInUse(f"device {self._thins.name(handle)} is in use")  # caught, as it is tried again later
        return self._thins.delete(handle)

    def _give_back(self, handle: int) -> None:
        with suppress(PoolFailed):
            give_back(self._thins, self._pool.table().metadata, handle)

    def _is_ours(self, handle: int) -> bool:
        """Whether the device of a number that was only intended came to be: a descendant shares blocks with the base.

        Where a process died after it found the number taken by somebody else, the records look the same.
        """
        base = self._base.storage.handle

        def shares(books: Books) -> bool:
            return handle in books and books.difference_blocks(handle, base) < books.mapped_blocks(handle)

        return self._read(shares)

    def _read(self, work: Callable[[Books], T]) -> T:
        with self._pool.open_metadata() as device:
            return read_books(device, work, pinned=self._pool.metadata_snapshot)

    def attach(self, storage: Storage, *, read_only: bool) -> int:
        """Activate the device and mount it nowhere.

        A journal that was left dirty by a crash is replayed first where the storage is immutable, so that it can be
        mounted read-only.
        """
        options = [*self._file_system.options(immutable=storage.immutable), *self._mount_options()]
        device = self._activate(storage)
        try:
            return mounts.detached_mount(self._file_system.name, str(device), options, read_only=read_only)
        except MountError:
            if not storage.immutable or not self._thins.deactivate(storage.handle):
                raise
        self._settle(storage)
        device = self._activate(storage)
        return mounts.detached_mount(self._file_system.name, str(device), options, read_only=read_only)

    @contextmanager
    def _tree(self, storage: Storage) -> Iterator[int]:
        """The root directory of storage that is mounted nowhere else for it."""
        fd = self.attach(storage, read_only=False)
        try:
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            os.close(fd)

    def _settle(self, storage: Storage) -> None:
        writable = attrs.evolve(storage, immutable=False)
        os.close(self.attach(writable, read_only=False))
        self._thins.deactivate(storage.handle)

    def _activate(self, storage: Storage) -> Path:
        """The device, active, and open as a block device by nobody if it can be written."""
        info = self._thins.activate(storage.handle, storage.size, read_only=storage.immutable)
        device = device_path(info)
        if info.open_count and not storage.immutable and not is_claimed(device):
            what = f"{device} is open as a block device, which a mount would corrupt"
            raise in_use(what, self.users(storage.handle))
        return device

    def _mount_options(self) -> list[str]:
        return [option for option in self._pool.options.mountopt.split(",") if option]

    def open_device(self, storage: Storage) -> tuple[Path, int]:
        """Activate the layer's device and hold it open; refused where it is mounted and can be written."""
        info = self._thins.activate(storage.handle, storage.size, read_only=storage.immutable)
        device = device_path(info)
        if info.open_count and not storage.immutable and is_claimed(device):
            what = f"{device} is mounted, and a block device and a mount of it would corrupt each other"
            raise in_use(what, self.users(storage.handle))
        return device, os.open(device, os.O_RDONLY | os.O_CLOEXEC)

    def release(self, handle: int) -> bool:
        """Deactivate the device; False where somebody uses it."""
        return self._thins.deactivate(handle)

    def active(self) -> Sequence[int]:
        """The thin devices that are active, or that a process left without a table as it died."""
        return self._thins.active()

    def has_users(self, handle: int) -> bool:
        """Whether the device is open, or mounted."""
        return self._thins.in_use(handle) is not None

    # -- looking

    def stored(self) -> frozenset[int] | None:
        """All thin devices of the pool, by its metadata."""
        try:
            return self._read(lambda books: frozenset(device.thin_id for device in books.devices()))
        except PoolFailed:
            return None

    def findings(self) -> Iterator[Finding]:
        """What is wrong with the pool and its devices; see `thinpool.drivers.thincheck`."""
        from thinpool.drivers import thincheck  # noqa: PLC0415 - only where a store is checked

        return thincheck.findings(self._pool, self._control, self._directory)

    def usages(self, layers: Sequence[tuple[int, int | None]]) -> Mapping[int, Usage]:
        """Count blocks in the pool's metadata, where nothing that two layers share is read twice."""
        base = self._base.storage.handle

        def count(books: Books) -> dict[int, Usage]:
            size = books.data_block_size
            found = books.layers((handle, parent or base) for handle, parent in layers)
            return {
                handle: Usage(
                    size=usage.own_blocks * size,
                    exclusive=usage.exclusive_blocks * size,
                    referenced=usage.mapped_blocks * size,
                )
                for handle, usage in found.items()
            }

        return self._read(count)

    def exclusive(self, handles: Sequence[int]) -> Mapping[int, int]:
        """Count the blocks that each of some layers alone maps, which takes no look at any parent."""

        def count(books: Books) -> dict[int, int]:
            size = books.data_block_size
            return {handle: blocks * size for handle, blocks in books.exclusive(handles).items()}

        return self._read(count)

    def compared(
        self,
        older: Sequence[Ancestor],
        newer: Sequence[Ancestor],
        alone: Callable[[], AbstractContextManager[object]],
    ) -> AbstractContextManager[Compared]:
        """Read two layers on the pool's devices; see `thinpool.drivers.thincompare`. Layers of xfs are not."""
        from thinpool.drivers import thincompare  # noqa: PLC0415 - only where trees are compared

        if self._file_system.name != "ext4":
            raise Unsure(f"layers of {self._file_system.name} are compared by their mounted trees alone")
        return thincompare.compared(self._pool, self._manifests, self._base.storage, older, newer, alone)

    def handle_of(self, entry: MountEntry) -> int | None:
        """The thin id behind a mount of one of our devices."""
        return self._thins.number_of(entry.device) if entry.source.startswith("/dev/dm-") else None

    def mend(self) -> None:
        """Resume what was left held, and release the metadata snapshot that was left reserved."""
        self._thins.resume_held()
        self._pool.release_metadata_snapshot()
        self._manifests.clear(parts_only=True)

    def status(self) -> DriverStatus:
        """Options and pool, by one ioctl."""
        status = self._pool.status()
        return DriverStatus(self.options, status, tuple(self._warnings(status)))

    def _warnings(self, status: PoolStatus) -> Iterator[str]:
        options = self._pool.options
        if self._created and options.way is Way.FILES:
            yield advice.TRIAL
        yield from advice.warnings(
            status, data_percent=options.thinp_autoextend_threshold, least_free_percent=options.min_free_space
        )
        if options.way is Way.FILES and status.mode != "fail":
            below = os.statvfs(self._directory)
            said = advice.promise_warning(status.data_total - status.data_used, below.f_bavail * below.f_frsize)
            if said is not None:
                yield said
        if options.way is Way.FOREIGN and self._pool.is_active() and not self._pool.table().zeroes:
            yield advice.NOT_ZEROED


def _remove_files(directory: Path) -> None:
    shutil.rmtree(directory / NAMES, ignore_errors=True)
    for name in (*FILES, NOTE, HELD, WRITTEN):
        (directory / name).unlink(missing_ok=True)
    directory.rmdir()
