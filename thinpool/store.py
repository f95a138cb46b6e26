"""The front door: layers by name, over any driver."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self

from thinpool import layers, mounting, stopping
from thinpool.drivers.base import CountsExclusive, Growable
from thinpool.errors import DriverUnsupported, LayerNotFound
from thinpool.filesystem.mounts import mount_table
from thinpool.info import StoreInfo
from thinpool.model import Changes, Kind, Layer, Usage, Volume
from thinpool.mounting import BlockDevice, Mount
from thinpool.opening import keep_options, open_store
from thinpool.root import DEFAULT
from thinpool.session import Session
from thinpool.units import parse_size

if TYPE_CHECKING:
    from thinpool.findings import Finding, Recovered
    from thinpool.images import ImageResult
    from thinpool.layer.archive import ArchiveResult
    from thinpool.layer.limits import Limits
    from thinpool.quiescing import Hook

Progress = Callable[[int], None]
Compression = Literal["none", "gzip", "zstd", "xz"]
ImageCompression = Literal["none", "gzip", "zstd"]
Labels = Mapping[str, str]


class Store:
    """A store of layers in one root directory: made by `open`, a context manager, safe to use from threads.

    A failed call leaves the store as it was before the call.

    Attributes:
        root: the root directory.
        driver: the driver's name.
        created: whether this `open` made the store.
    """

    def __init__(self, session: Session, *, created: bool) -> None:
        self.root = session.root.path
        self.driver = session.driver.name
        self.created = created
        self._session = session

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str] = DEFAULT,
        driver: str | None = None,
        options: Mapping[str, str] | None = None,
        *,
        create: bool = True,
    ) -> Self:
        """Open the store at a root, and make it where there is none.

        Args:
            root: the root directory.
            driver: a driver's name; by default the one whose state is there, or the first that works of aufs, btrfs
                and devicemapper.
            options: driver options, as in `{"dm.basesize": "20G"}`; they replace the recorded ones where that can be.
            create: make the store if it is missing.

        Raises:
            StoreNotFound: there is none, and `create` is false.
            ConfigError: the root or an option cannot be used.
            DriverUnsupported: the driver, or every driver, cannot work here; `reasons` says why.
            DeviceUnsafe: a device that was named carries something.
            NotPermitted: not root, or the root cannot be written.
        """
        opened = open_store(Path(root), driver, options or {}, create=create)
        return cls(opened.session, created=opened.created)

    def close(self) -> None:
        """Let go of what this process holds. Pool, devices and mounts stay as they are; see `down`."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- looking

    def info(self) -> StoreInfo:
        """The store, its driver and its pool; costs one ioctl."""
        status = self._session.driver.status()
        count = self._session.state.count()
        return StoreInfo(self.root, self.driver, status.options, count, status.pool, tuple(status.warnings))

    def stat(self, name: str) -> Layer:
        """One layer.

        Raises:
            LayerNotFound: there is none of that name.
        """
        return self._session.record(name).layer()

    def layer_of(self, number: int) -> Layer:
        """The layer whose storage has that number (its thin id, with devicemapper).

        Raises:
            LayerNotFound: no layer has it.
        """
        record = self._session.state.by_handle(number)
        if record is None or record.phase != "ready":
            raise LayerNotFound(f"no layer has the number {number}")
        return record.layer()

    def walk(self) -> Iterator[Layer]:
        """All layers, by name."""
        for record in self._session.state.layers():
            yield record.layer()

    def usage(self, name: str) -> Usage:
        """What a layer occupies, in bytes.

        Raises:
            LayerNotFound: there is none of that name.
            PoolFailed: the pool's books cannot be read.
        """
        record = self._session.record(name)
        return self._session.driver.usages([(record.handle, record.parent)])[record.handle]

    def usages(self) -> Mapping[str, Usage]:
        """What every layer occupies, by name, in one reading of the driver's books."""
        records = self._session.state.layers()
        found = self._session.driver.usages([(record.handle, record.parent) for record in records])
        return {record.name or "": found[record.handle] for record in records}

    def exclusive(self) -> Mapping[str, int]:
        """What removing each layer would free, in bytes, by name: of `usages` this alone, for less work.

        Raises:
            PoolFailed: the pool's books cannot be read.
        """
        driver, records = self._session.driver, self._session.state.layers()
        if not isinstance(driver, CountsExclusive):
            return {name: usage.exclusive for name, usage in self.usages().items()}
        found = driver.exclusive([record.handle for record in records])
        return {record.name or "": found[record.handle] for record in records}

    def mounts(self, name: str) -> Sequence[Path]:
        """Where a layer is mounted, in this process's mount namespace."""
        return mounting.targets(self._session, self._session.record(name).handle)

    def mounted(self) -> frozenset[str]:
        """The names of the layers that are mounted in this process's mount namespace."""
        handles = {self._session.driver.handle_of(entry) for entry in mount_table()}
        return frozenset(record.name or "" for record in self._session.state.layers() if record.handle in handles)

    # -- making and removing

    def prepare(
        self, name: str, parent: str | None = None, *, size: int | str | None = None, labels: Labels | None = None
    ) -> Layer:
        """Make an active (writable) layer on a committed one, or an empty one.

        Args:
            name: the new layer's name.
            parent: a committed layer, or None.
            size: bytes (or text as in `20G`) that its file system shall hold, at least the parent's.
            labels: free-form strings.

        Raises:
            LayerExists, InvalidName: the name.
            LayerNotFound, WrongKind: the parent is missing, or not committed.
            ConfigError: the size.
            PoolFull, PoolFailed: the storage cannot take it.
        """
        return layers.derive(self._session, name, parent, Kind.ACTIVE, _bytes(size), labels)

    def view(self, name: str, parent: str, *, labels: Labels | None = None) -> Layer:
        """Make a read-only, temporary layer on a committed one; raises as `prepare`."""
        return layers.derive(self._session, name, parent, Kind.VIEW, None, labels)

    def commit(self, name: str, active: str, *, labels: Labels | None = None) -> Layer:
        """End an active layer as a committed one of another name; its labels are replaced.

        Mounted, its state of this instant is committed: the mount can be used on, but what is written to it then
        belongs to no layer, and is gone when it is unmounted. Who writes to it is held for the moment of a snapshot,
        and let go after 10 seconds whatever becomes of this process, unless the pool's own disks hold them up: see
        `thinpool.pool.holding`. In use as a block device, the layer is what a power cut would have left of it
        (`Layer.crash_consistent`); see `checkpoint`.

        Raises:
            LayerExists, InvalidName: the name.
            LayerNotFound, WrongKind: `active` is missing, or no active layer.
            LayerInUse: somebody else holds the layer's file system frozen.
            PoolFull, PoolFailed: the storage cannot take it, or the layer's file system has failed; or the copy could
                not be made in time.
        """
        return layers.commit(self._session, name, active, labels, live=False)

    def checkpoint(
        self,
        name: str,
        active: str,
        *,
        labels: Labels | None = None,
        freeze: "Hook | None" = None,
        freeze_seconds: float = 30.0,
    ) -> Layer:
        """Commit an active layer's state of this instant; the active layer goes on, also while it is used.

        Where a file system that is mounted here is copied, the copy is clean. Of a layer whose device is open, as by a
        microVM (`device`), it is what a power cut would have left: whole, with a journal that is replayed when it is
        mounted first, and without what the guest has only in its memory. `Layer.crash_consistent` tells. To have it
        clean, let the guest's agent freeze its file system around the moment, by `freeze`.

        Args:
            name: the new layer's name.
            active: the active layer.
            labels: the new layer's.
            freeze: called with `freeze` just before the copy and with `thaw` just after it, always: a function, or the
                words of a command, which gets that as one more. It must not use this store: the writer lock is held.
                Where this process dies or is stuck in between, a command is still called with `thaw`; a function
                cannot be.
            freeze_seconds: how long a command may take each time; it is ended then.

        Raises:
            HookFailed: the hook failed, before or after the copy; there is no new layer then.
            ConfigError: the hook is neither, or has no time.
            Otherwise as `commit`.
        """
        from thinpool.quiescing import Quiesce  # noqa: PLC0415 - only where there is a hook

        quiesce = None if freeze is None else Quiesce(freeze, freeze_seconds)
        return layers.commit(self._session, name, active, labels, live=True, quiesce=quiesce)

    def remove(self, name: str) -> None:
        """Remove a layer that has no children and is in nobody's use.

        Raises:
            LayerNotFound: there is none of that name.
            LayerInUse: names its children, or where it is mounted.
        """
        layers.remove(self._session, name)

    def update_labels(self, name: str, labels: Labels) -> Layer:
        """Replace a layer's labels.

        Raises:
            LayerNotFound: there is none of that name.
        """
        with self._session.writer():
            record = self._session.record(name)
            self._session.state.relabel(record.handle, self._session.now(), labels)
        return self.stat(name)

    # -- using

    def mount(
        self,
        name: str,
        target: str | os.PathLike[str] | None = None,
        *,
        read_only: bool = False,
        volumes: Sequence[Volume] = (),
        volumes_from: Sequence[str] = (),
    ) -> Mount:
        """Mount a layer: a context manager that gives the directory and unmounts at its end.

        Args:
            name: the layer; committed layers and views are mounted read-only, always.
            target: an existing directory; by default a private one below the root. Mounting a layer where it is
                mounted already gives that mount, and leaves unmounting to whoever made it.
            read_only: also for an active layer.
            volumes: directories and files of the host to mount inside, each with what is mounted below it; they are
                kept in the layer's record, and are no part of what is committed, compared or exported. A target that is
                missing is made in the layer, and stays there. Symbolic links lead nowhere out of the layer.
            volumes_from: layers whose volumes are mounted too, as their records have them.

        Raises:
            LayerNotFound: there is none of that name.
            MountError: the target is missing, no directory, or cannot be mounted on; likewise a volume's.
            LayerInUse: another layer is mounted on the target, or the layer's device is held.
            PoolFailed: the storage does not answer.
        """
        where = None if target is None else Path(os.path.abspath(target))
        return mounting.mount(self._session, name, where, read_only=read_only, own=volumes, others=volumes_from)

    def unmount(self, name_or_target: str | os.PathLike[str], *, lazy: bool = False) -> None:
        """Unmount a layer everywhere in this mount namespace, or what is mounted on one directory.

        Args:
            name_or_target: the layer's name, or the directory.
            lazy: detach what is busy, with all that is mounted inside: it is gone from the directory at once, and
                unmounted when the last one who has something of it lets go.

        Raises:
            LayerNotFound: it is the name of neither.
            LayerInUse: a process works in it, or something is mounted inside; the message names what.
            MountError: the layer is not mounted, or no layer of this store is mounted there.
        """
        mounting.unmount(self._session, name_or_target, lazy=lazy)

    def device(self, name: str) -> BlockDevice:
        """The layer's block device, for a microVM: a path that is also a context manager, active until it is closed.

        The device of a committed layer or a view is read-only.

        Raises:
            LayerNotFound: there is none of that name.
            DriverUnsupported: the driver has no block devices.
            PoolFailed: the storage does not answer.
        """
        return mounting.open_device(self._session, name)

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        cwd: str = "/",
        volumes: Sequence[Volume] = (),
        volumes_from: Sequence[str] = (),
    ) -> int:
        """Run a command in a layer, changed root, in mount and process namespaces of its own.

        Args:
            name: the layer.
            argv: the command and its arguments.
            environ: its environment; by default PATH, HOME and TERM as at a login.
            cwd: its working directory in the layer.
            volumes: as for `mount`.
            volumes_from: as for `mount`.

        Returns:
            Its exit status; 128 + n after signal n, 127 where the command is missing, 126 where it cannot be run.
        """
        from thinpool.sandbox import run_in  # noqa: PLC0415 - only where a command runs

        session = self._session
        session.ready()
        with mounting.remembered(session, name, volumes, volumes_from) as inside, ExitStack() as used:
            with session.locked(name) as record:
                mount = mounting.attached(session, record, read_only=False)
                fd = used.enter_context(mounting.in_use(session, record.handle, mount))
            with mounting.with_volumes(session, fd, inside) as whole:
                return run_in(whole, session.root.mounts, argv, environ=environ, cwd=cwd)

    # -- comparing and carrying

    def changes(
        self, name: str, base: str | None = None, *, method: Literal["auto", "fast", "walk"] = "auto"
    ) -> Changes:
        """The differences of a layer to its parent, or to any other layer of the store.

        Args:
            name: the newer layer.
            base: the older one; by default the parent, or an empty tree where there is none.
            method: `walk` compares both trees entry by entry; `auto` takes the fastest that is sure.

        Raises:
            LayerNotFound: one of the two is missing.
            DriverUnsupported: `fast`, where the driver has no such way.
        """
        from thinpool import comparing  # noqa: PLC0415 - only where trees are compared

        return comparing.changes(self._session, name, base, method)

    def export_layer(
        self,
        name: str,
        fileobj: IO[bytes],
        base: str | None = None,
        *,
        compress: Compression = "none",
        progress: Progress | None = None,
    ) -> "ArchiveResult":
        """Write the difference of a layer to its parent (or to `base`) as an OCI layer tar.

        Args:
            name: the layer.
            fileobj: takes bytes by `write`.
            base: any other layer of the store.
            compress: how the tar is compressed.
            progress: called with the number of bytes of tar written so far.

        Raises:
            LayerNotFound: one of the two is missing.
        """
        from thinpool import comparing  # noqa: PLC0415 - only where trees are compared

        return comparing.export(self._session, name, fileobj, base, compress=compress, progress=progress)

    def import_layer(
        self,
        name: str,
        fileobj: IO[bytes],
        *,
        parent: str | None = None,
        labels: Labels | None = None,
        limits: "Limits | None" = None,
        devices: bool = True,
        progress: Progress | None = None,
    ) -> Layer:
        """Make a committed layer from a layer tar (plain, gzip, zstd or xz), on a parent.

        The layer appears, complete and durable, when the call returns; a process that dies before leaves nothing.

        Args:
            name: the new layer's name.
            fileobj: gives bytes by `read`; need not seek.
            parent: a committed layer, or None.
            labels: free-form strings.
            limits: what the archive may ask for.
            devices: make device nodes; False leaves them out, with a warning in the log.
            progress: called with the number of bytes read so far.

        Raises:
            ArchiveError: empty, cut short, damaged or no tar; UnsafeArchive where it tries to escape.
            LayerExists, InvalidName: the name.
            LayerNotFound, WrongKind: the parent is missing, or not committed.
            PoolFull, PoolFailed: the storage cannot take it.
        """
        from thinpool.filling import Handling, fill  # noqa: PLC0415 - heavy, and only for imports

        fill(self._session, name, fileobj, parent, labels, Handling.of(limits, progress, devices=devices))
        return self.stat(name)

    def export_image(
        self,
        name: str,
        directory: str | os.PathLike[str],
        *,
        tag: str = "latest",
        compress: ImageCompression = "gzip",
        progress: Progress | None = None,
    ) -> "ImageResult":
        """Write a layer and its ancestors as an image into an OCI image layout, always as the same bytes.

        The index names it when all is on disk. A process that dies before leaves blobs that nothing refers to.

        Args:
            name: the layer; its labels become the image's.
            directory: the layout, which may hold other images; made where it is missing.
            tag: the image's name in the index; what has it already is replaced.
            compress: how the layers are compressed.
            progress: as in `export_layer`.

        Raises:
            LayerNotFound: there is none of that name.
            ConfigError: the tag, or a directory that holds something else. ThinPoolError: it cannot be written.
        """
        from thinpool import images  # noqa: PLC0415 - heavy, and only for images

        return images.export_image(self._session, name, directory, tag=tag, compress=compress, progress=progress)

    def import_image(
        self,
        name: str,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        tag: str | None = None,
        labels: Labels | None = None,
        limits: "Limits | None" = None,
        devices: bool = True,
        progress: Progress | None = None,
    ) -> Layer:
        """Make committed layers from all layers of an image, each verified against its digest and diff id.

        They appear together. The topmost has the given name and the image's labels; those below have their chain ids
        for names, `sha256:...`, and those that the store has from an image are used again.

        Args:
            name: the topmost layer's name.
            source: the directory of an OCI image layout, or a tar archive of one or of `docker save` (a path or file).
            tag: which image, where there are several.
            labels: more labels for the topmost layer.
            limits: what the layers may ask for, together.
            devices: as in `import_layer`.
            progress: likewise.

        Raises:
            ArchiveError: no image, or not what its digests say; the rest as in `import_layer`.
        """
        from thinpool import filling, images  # noqa: PLC0415 - heavy, and only for images

        how = filling.Handling.of(limits, progress, devices=devices)
        images.import_image(self._session, name, source, tag=tag, labels=labels, how=how)
        return self.stat(name)

    # -- the whole store

    def up(self) -> None:
        """Activate the storage, and end what a crash left half done."""
        self._session.ready(again=True)

    def down(self, *, lazy: bool = False, force: bool = False, timeout: float = 0.0) -> None:
        """Unmount every layer in this mount namespace, and let go of all kernel objects of the store.

        What is mounted inside a layer goes before it if it is a layer or a volume; what others mounted there is theirs,
        and in the way. Nobody is sent a signal, and whoever has a file open keeps it.

        Args:
            lazy: detach what is busy; devices, pool and loop devices go when their last user lets go, unless
                dm.use_deferred_removal is off.
            force: the same, and the layers are detached in all other mount namespaces too.
            timeout: seconds to wait for those who hold something to let go, before that, or before giving up.

        Raises:
            LayerInUse: something is in use; the message names all of it, and by whom. What is not is down.
        """
        stopping.stop(self._session, lazy=lazy, force=force, timeout=timeout)

    def check(self) -> "Sequence[Finding]":
        """Look for what is not as it should be: records against storage, kernel, mounts and the pool's metadata.

        Nothing is changed, and an inactive pool stays so; what is found may have been left by a process that died.
        Every changing call ends such leftovers by itself; `recover` does it now.

        Raises:
            StateError: the records cannot be read.
        """
        from thinpool.checking import check  # noqa: PLC0415 - seldom asked for

        return check(self._session)

    def recover(self) -> "Recovered":
        """Mend what `check` finds, where it can be mended; what may be somebody's data is kept, and named."""
        from thinpool.checking import recover  # noqa: PLC0415 - seldom asked for

        return recover(self._session)

    def grow(self, *, data: int | str | None = None, metadata: int | str | None = None) -> None:
        """Extend the storage online, to new total sizes in bytes.

        Raises:
            ConfigError: smaller than it is, or more than there can be.
            DriverUnsupported: the driver has no size of its own.
        """
        driver = self._session.driver
        if not isinstance(driver, Growable):
            raise DriverUnsupported(f"the {self.driver} driver has no storage to grow")
        self._session.ready()
        with self._session.writer():
            driver.grow(data=_bytes(data), metadata=_bytes(metadata))
            keep_options(self._session.state, driver)


def _bytes(size: int | str | None) -> int | None:
    return parse_size(size) if isinstance(size, str) else size
