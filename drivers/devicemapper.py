"""Layers as thin devices of one pool: a child is a snapshot, a commit is a snapshot, and nothing is ever copied.

The handle of a layer is its thin id. A thin device is active only while somebody uses it; its name is
`PREFIX-HANDLE`, where the prefix comes from the root directory, so that two stores never meet.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import attrs

from thinpool.dm import Control
from thinpool.dm.device import device_path
from thinpool.drivers.base import INTENT, Context, DriverStatus, HandleTaken, Storage
from thinpool.errors import (
    ConfigError,
    DeviceMapperError,
    DriverUnsupported,
    LayerInUse,
    MountError,
    NotPermitted,
    PoolFailed,
)
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.formats import FileSystem, file_system, make_base
from thinpool.filesystem.mounts import MountEntry
from thinpool.metadata import Books, read_books
from thinpool.metadata.snapshot import metadata_snapshot
from thinpool.model import Usage
from thinpool.pool import PoolIdentity, PoolOptions, ThinIdTaken, ThinPool, reconcile
from thinpool.pool.backing import FILES

_BASE = "base"
_BEGUN = "pool-begun"
_IDENTITY = "pool"
_PAGE = 4096


def prefix(root: Path) -> str:
    """The prefix of all device names of a store: from its root's device and inode, so no two stores share it.

    It is the same for as long as the root's file system stays mounted, which the store's own loop devices see to; the
    kernel's devices do not outlive that either.
    """
    found = os.stat(root)
    text = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"
    return f"thinpool-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


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
        PoolOptions.parse(given)

    def create(self, context: Context) -> "Devicemapper":
        """Make the pool, and in it the base file system that layers without a parent start from."""
        options = PoolOptions.parse(context.given)
        context.directory.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as undo:
            undo.callback(_remove_files, context.directory)
            driver = undo.enter_context(Devicemapper(context, options, None))
            undo.callback(driver.down)
            driver.make()
            undo.pop_all()
        return driver

    def open(self, context: Context) -> "Devicemapper":
        """Take the pool up as it was recorded, with options that have changed where they can."""
        recorded = PoolOptions.parse(context.recorded)
        wanted = reconcile(recorded, context.given)
        identity = context.records.get(_IDENTITY)
        if identity is None:
            raise PoolFailed(f"the records of {context.root} name no pool")
        now = attrs.evolve(wanted, loopdatasize=recorded.loopdatasize, loopmetadatasize=recorded.loopmetadatasize)
        with ExitStack() as undo:
            driver = undo.enter_context(Devicemapper(context, now, PoolIdentity.from_json(identity)))
            if now != wanted:
                driver.up()
                driver.grow(data=wanted.loopdatasize, metadata=wanted.loopmetadatasize)
            undo.pop_all()
        return driver


TYPE = DevicemapperType()


class Devicemapper:
    """The pool of one store and its thin devices."""

    name = "devicemapper"

    def __init__(self, context: Context, options: PoolOptions, identity: PoolIdentity | None) -> None:
        self._records = context.records
        self._settings = options
        self._file_system: FileSystem = file_system(options.fs)
        self._prefix = prefix(context.root)
        self._control = Control()
        self._pool = ThinPool(self._control, context.directory, self._prefix, options, identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what this process holds; pool and devices stay."""
        self._control.close()

    @property
    def options(self) -> Mapping[str, str]:
        """The options in force, in canonical text."""
        return self._settings.in_force()

    @property
    def shares_handles(self) -> bool:
        """A pool that somebody else made holds devices of theirs."""
        return self._pool.is_foreign

    # -- the pool

    def make(self) -> None:
        """Make pool and base, or what of them a process that died had not made yet."""
        if self._records.get(_IDENTITY) is None:
            begun = self._records.get(_BEGUN) is not None
            self._records.put(_BEGUN, "yes")
            identity = self._pool.create(begun=begun)
            self._records.put(_IDENTITY, identity.to_json())
        else:
            self._pool.activate()
        if self._records.get(_BASE) is None:
            self._make_base()

    def _make_base(self) -> None:
        size = self._settings.basesize
        if size < self._file_system.minimum:
            raise ConfigError(f"dm.basesize={size}: {self._file_system.name} needs {self._file_system.minimum} bytes")
        handle = self._new_thin()
        device = device_path(self._pool.activate_thin(handle, size))
        make_base(self._file_system, device, self._settings.mkfsarg)
        self._pool.deactivate_thin(handle)
        self._records.claim(handle)
        self._records.put(_BASE, json.dumps({"handle": handle, "size": size}))

    def _new_thin(self) -> int:
        while True:
            handle = self._records.allot()
            if self.shares_handles:
                self._records.put(INTENT, str(handle))
            try:
                self._pool.create_thin(handle)
            except ThinIdTaken:
                self._records.skip(handle)
            else:
                return handle

    def up(self) -> bool:
        """Activate the pool; False where it was active."""
        return self._pool.activate()

    def down(self) -> None:
        """Deactivate every thin device of the store, then the pool, whose loop devices go with it."""
        for handle in self._pool.active_thins():
            if not self._pool.deactivate_thin(handle):
                raise LayerInUse(f"device {self._pool.thin_name(handle)} is in use by another process")
        self._pool.deactivate()

    def grow(self, *, data: int | None = None, metadata: int | None = None) -> None:
        """Extend the pool online to new total sizes in bytes."""
        self._pool.grow(data, metadata)
        sizes = self._pool.options
        self._settings = attrs.evolve(
            self._settings, loopdatasize=sizes.loopdatasize, loopmetadatasize=sizes.loopmetadatasize
        )

    # -- layers

    def create(self, handle: int, parent: Storage | None, size: int | None) -> int:
        """Snapshot the parent, or the base, and grow the copy's file system where a size asks for it."""
        origin = parent or self._base
        self._snap(handle, origin)
        if size is None or size <= origin.size:
            return origin.size
        grown = Storage(handle, size // _PAGE * _PAGE, immutable=False)
        with self._tree(grown) as root:
            self._file_system.grow(root, grown.size)
        self._pool.deactivate_thin(handle)
        return grown.size

    def snapshot(self, handle: int, active: Storage) -> None:
        """Snapshot a layer, frozen for the moment if it is in use."""
        self._snap(handle, active)

    def _snap(self, handle: int, origin: Storage) -> None:
        try:
            self._pool.create_snap(handle, origin.handle, quiesce=not origin.immutable)
        except ThinIdTaken as error:
            raise HandleTaken from error

    def flush(self, active: Storage) -> None:
        """Sync the file system, where the layer is in use; it is frozen later, and there is less to write then."""
        if not self._pool.is_open(active.handle):
            return
        with (
            suppress(LayerInUse, MountError),
            self._tree(active) as root,
        ):  # open as a device: only its user can sync it
            syscalls.syncfs(root)

    def delete(self, handle: int) -> bool:
        """Delete a thin device, deactivated first where it is active."""
        with suppress(DeviceMapperError):  # busy, as a rule
            return self._pool.delete(handle)
        if not self._pool.deactivate_thin(handle):
            raise LayerInUse(f"device {self._pool.thin_name(handle)} is in use by another process")
        return self._pool.delete(handle)

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
            if not storage.immutable or not self._pool.deactivate_thin(storage.handle):
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
        self._pool.deactivate_thin(storage.handle)

    def _activate(self, storage: Storage) -> Path:
        """The device, active, and open as a block device by nobody if it can be written."""
        info = self._pool.activate_thin(storage.handle, storage.size, read_only=storage.immutable)
        device = device_path(info)
        if info.open_count and not storage.immutable and not _is_claimed(device):
            raise LayerInUse(f"{device} is open as a block device by another process, which a mount would corrupt")
        return device

    def _mount_options(self) -> list[str]:
        return [option for option in self._settings.mountopt.split(",") if option]

    def open_device(self, storage: Storage) -> tuple[Path, int]:
        """Activate the layer's device and hold it open; refused where it is mounted and can be written."""
        info = self._pool.activate_thin(storage.handle, storage.size, read_only=storage.immutable)
        device = device_path(info)
        if info.open_count and not storage.immutable and _is_claimed(device):
            raise LayerInUse(f"{device} is mounted; a block device and a mount of it would corrupt each other")
        return device, os.open(device, os.O_RDONLY | os.O_CLOEXEC)

    def release(self, handle: int) -> bool:
        """Deactivate the device; False where somebody uses it."""
        return self._pool.deactivate_thin(handle)

    # -- looking

    @property
    def _base(self) -> Storage:
        found = json.loads(self._records.get(_BASE) or "{}")
        return Storage(found["handle"], found["size"], immutable=True)

    def usages(self, layers: Sequence[tuple[int, int | None]]) -> Mapping[int, Usage]:
        """Count blocks in the pool's metadata, where nothing that two layers share is read twice."""
        base = self._base.handle

        def count(books: Books) -> dict[int, Usage]:
            size = books.data_block_size
            return {
                handle: Usage(
                    size=books.difference_blocks(handle, parent or base) * size,
                    exclusive=books.exclusive_blocks(handle) * size,
                    referenced=books.mapped_blocks(handle) * size,
                )
                for handle, parent in layers
            }

        with self._pool.open_metadata() as device:
            return read_books(device, count, pinned=lambda: metadata_snapshot(self._control, self._pool.name))

    def handle_of(self, entry: MountEntry) -> int | None:
        """The thin id behind a mount of one of our devices."""
        return self._pool.thin_of(entry.device) if entry.source.startswith("/dev/dm-") else None

    def mend(self) -> None:
        """Resume what was left suspended."""
        self._pool.mend()

    def status(self) -> DriverStatus:
        """Options and pool, by one ioctl."""
        return DriverStatus(self.options, self._pool.status(), ())


def _remove_files(directory: Path) -> None:
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    directory.rmdir()


def _is_claimed(device: Path) -> bool:
    """Whether a mount, or whoever else opened it exclusively, has a block device (O_EXCL in open(2))."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False
