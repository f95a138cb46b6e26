"""Layers in use: mounted on a directory, mounted nowhere for a look inside, or open as a block device.

Mounts and active devices are the kernel's to remember: they end with a reboot, so no record of them could be stale.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PosixPath
from types import TracebackType
from typing import Self

import attrs

from thinpool import volumes
from thinpool.crashpoints import point
from thinpool.drivers.base import BlockDevices, Joining, Looking, Storage
from thinpool.errors import DriverUnsupported, LayerInUse, LayerNotFound, MountError
from thinpool.filesystem import mounts, namespaces
from thinpool.filesystem.syscalls import is_mount_root
from thinpool.locks import WriterMark
from thinpool.model import Kind, Volume
from thinpool.session import Session, storage
from thinpool.state import LayerRecord


class Mount:
    """A mounted layer.

    It is mounted when the value is made. `with` gives the directory and unmounts at the end; without `with` the mount
    stays until `Store.unmount`. Leaving the block after somebody unmounted it already is no error.

    Attributes:
        name: the layer's name.
        target: the directory it is mounted on.
    """

    def __init__(self, name: str, target: Path, end: Callable[[], None]) -> None:
        self.name = name
        self.target = target
        self._end = end

    def __enter__(self) -> Path:
        return self.target

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __fspath__(self) -> str:
        return str(self.target)

    def __repr__(self) -> str:
        return f"Mount(name={self.name!r}, target={str(self.target)!r})"


class BlockDevice(PosixPath):
    """The path of a layer's block device, kept active until `close` or the end of its `with` block.

    The kernel keeps an open device, so nothing that the store does takes it away meanwhile; when the process dies it
    is let go.
    """

    _end: Callable[[], None]

    @classmethod
    def opened(cls, path: Path, end: Callable[[], None]) -> Self:
        """A device that `end` lets go of."""
        device = cls(path)
        device._end = end
        return device

    def close(self) -> None:
        """Let go of the device; it is deactivated when nobody else uses it."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def attached(session: Session, record: LayerRecord, *, read_only: bool) -> Iterator[int]:
    """A layer's file system as a detached mount, begun under the layer's lock, for as long as the block lasts.

    It is in nobody's mount table, and gone if we die; whoever asks finds the layer in use.
    """
    with session.locks.use(record.handle):
        driver = session.driver
        fd = driver.attach(storage(record), read_only=read_only)
        try:
            yield fd
            if isinstance(driver, Joining) and record.kind is not Kind.VIEW and not read_only:
                driver.join(record.handle, fd)
        finally:
            os.close(fd)


@contextmanager
def _look(session: Session, found: Storage) -> Iterator[int]:
    """The same for reading, of storage that nobody writes to."""
    driver = session.driver
    with session.locks.use(found.handle):
        fd = driver.look(found) if isinstance(driver, Looking) else driver.attach(found, read_only=True)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def tree(mount_fd: int) -> Iterator[int]:
    """The root directory of a detached mount, open for listing."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def looked_into(session: Session, name: str) -> Iterator[tuple[Storage, int]]:
    """A layer's storage and its root directory, for reading, mounted nowhere; let go at the end.

    Of an active layer that somebody uses it is the state of this instant, a snapshot that goes when it was looked at
    (and that the next writer removes if this process dies).
    """
    with ExitStack() as used:
        with session.locked(name) as record:
            found = storage(record)
            busy = record.kind is Kind.ACTIVE and not session.release(record.handle)
            if not busy:
                fd = used.enter_context(in_use(session, record.handle, _look(session, found)))
        if busy:
            session.driver.flush(found)
            found, fd = _look_at_instant(session, name, used)
        with tree(fd) as root:
            yield found, root


@contextmanager
def in_use(session: Session, handle: int, mount: AbstractContextManager[int]) -> Iterator[int]:
    """What makes use of storage, entered under the layer's lock; the storage is let go at the end."""
    used = ExitStack()
    fd = used.enter_context(mount)
    try:
        yield fd
    finally:
        used.close()
        session.let_go(handle)


def _look_at_instant(session: Session, name: str, used: ExitStack) -> tuple[Storage, int]:
    """Snapshot an active layer, and look into the snapshot."""
    with session.writer() as mark:
        _, instant = _snapshot(session, name, mark)
        return instant, used.enter_context(in_use(session, instant.handle, _look(session, instant)))


def _snapshot(session: Session, name: str, mark: WriterMark) -> tuple[LayerRecord, Storage]:
    """Snapshot an active layer, under the writer lock, into storage that is doomed from the start."""
    with session.state.transaction():
        record = session.record(name)
        mark.begin()
        handle = session.snapshot(storage(record))
        copy = attrs.evolve(record, handle=handle, name=None, parent=None, phase="doomed")
        session.state.add(copy)
    return record, Storage(handle, record.size, immutable=True)


@contextmanager
def kept(session: Session, name: str) -> Iterator[tuple[LayerRecord, Storage]]:
    """A layer and its storage, mounted nowhere, which nobody writes to and nobody deletes for as long as this lasts.

    Of an active layer it is the state of this instant: a snapshot, as in `looked_into`.
    """
    with ExitStack() as used:
        with session.locked(name) as record:
            found = storage(record)
            if found.immutable:
                used.enter_context(in_use(session, record.handle, _held(session, record.handle)))
        if not found.immutable:
            session.driver.flush(found)
            with session.writer() as mark:
                record, found = _snapshot(session, name, mark)
                used.enter_context(in_use(session, found.handle, _held(session, found.handle)))
        yield record, found


@contextmanager
def _held(session: Session, handle: int) -> Iterator[int]:
    with session.locks.use(handle):
        yield handle


@contextmanager
def look(session: Session, found: Storage) -> Iterator[int]:
    """The root directory of kept storage, for reading, mounted nowhere; let go at the end."""
    with ExitStack() as used:
        with session.locks.layer(found.handle):
            fd = used.enter_context(in_use(session, found.handle, _look(session, found)))
        with tree(fd) as root:
            yield root


def mount(
    session: Session,
    name: str,
    target: Path | None,
    *,
    read_only: bool,
    own: Sequence[Volume] = (),
    others: Sequence[str] = (),
) -> Mount:
    """Mount a layer on a directory, or on a private one below the root."""
    session.ready()
    with remembered(session, name, own, others) as inside, session.locked(name) as record:
        made = target or _private_directory(session.root.mounts, record.handle)
        directory = mounts.open_target(made)
        try:
            if is_mount_root(directory) and _is_there(session, record, made):
                _refuse_other_volumes(name, made, inside)
                return Mount(name, made, lambda: None)
            with attached(session, record, read_only=read_only) as fd, with_volumes(session, fd, inside) as whole:
                point("mount-attach")
                mounts.attach(whole, directory, made)
                point("mount-attached")
        except BaseException:
            if target is None:
                os.rmdir(made)
            raise
        finally:
            os.close(directory)
    return Mount(name, made, partial(_end_mount, session, record.handle, made))


@contextmanager
def remembered(session: Session, name: str, own: Sequence[Volume], others: Sequence[str]) -> Iterator[Sequence[Volume]]:
    """The volumes to mount in a layer, on its record before they are, and not any more if that fails.

    The record holds every target that was ever asked for, so that whoever unmounts the layer knows where to look.

    Args:
        session: the store.
        name: the layer.
        own: its own.
        others: layers whose volumes it gets too; its own come first where two have one target.
    """
    wanted = {volume.target: volume for other in others for volume in session.record(other).volumes}
    wanted |= {volume.target: volume for volume in own}
    if not wanted:
        yield ()
        return
    with session.writer():
        before = session.record(name)
        known = {volume.target: volume for volume in before.volumes} | wanted
        session.state.set_volumes(before.handle, list(known.values()))
    try:
        yield sorted(wanted.values(), key=lambda volume: volume.target)
    except BaseException:
        with session.writer():
            session.state.set_volumes(before.handle, before.volumes)
        raise


@contextmanager
def with_volumes(session: Session, fd: int, inside: Sequence[Volume]) -> Iterator[int]:
    """A detached mount with volumes in it, for as long as the block lasts."""
    if not inside:
        yield fd
        return
    whole = volumes.assemble(fd, session.root.mounts, inside)
    try:
        yield whole
    finally:
        os.close(whole)


def _refuse_other_volumes(name: str, target: Path, inside: Sequence[Volume]) -> None:
    missing = len(inside) - len(volumes.mounted_in(target, inside))
    if missing:
        raise LayerInUse(
            f"layer {name} is mounted on {target} without {missing} of the volumes", hint=f"thinpool umount {target}"
        )


def _is_there(session: Session, record: LayerRecord, target: Path) -> bool:
    """Whether a layer is what is mounted on a directory; LayerInUse where another layer is."""
    holder = _topmost(session, target)
    if holder not in {None, record.handle}:
        raise LayerInUse(f"another layer is mounted on {target}")
    return holder is not None


def unmount(session: Session, given: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Unmount a layer everywhere in this mount namespace, or what is mounted on one directory.

    Args:
        session: the store.
        given: the layer's name, or the directory.
        lazy: detach what is busy.
    """
    text = os.fspath(given)
    if isinstance(given, str) and not text.startswith("/"):
        record = session.state.layer(text)
        if record is not None:
            found = targets(session, record.handle)
            if not found:
                raise MountError(f"layer {text} is not mounted")
            for place in reversed(found):
                _unmount(session, record.handle, place, lazy=lazy)
            return
        if not os.path.lexists(text):
            raise LayerNotFound(f"no layer and no directory is named {text!r}")
    place = Path(os.path.abspath(text))
    handle = mounted_at(session, place)
    if handle is None:
        raise MountError(f"no layer of this store is mounted on {place}")
    _unmount(session, handle, place, lazy=lazy)


def unmount_all(session: Session, *, lazy: bool = False) -> list[LayerInUse]:
    """Unmount every layer of the store in this mount namespace, last mounted first: what could not be, each named.

    Args:
        session: the store.
        lazy: detach what is busy.
    """
    busy: list[LayerInUse] = []
    for entry in reversed(list(mounts.mount_table())):
        handle = session.driver.handle_of(entry)
        if handle is None:
            continue
        try:
            _take_off(session, handle, entry.target, lazy=lazy)
        except LayerInUse as error:
            busy.append(error)
        except MountError:
            if any(other.mount_id == entry.mount_id for other in mounts.mount_table()):
                raise  # else it went with a mount that was detached, or somebody was faster
        else:
            _drop_private(session, entry.target)
    return busy


def detach_elsewhere(session: Session) -> None:
    """Detach the layers of the store in all other mount namespaces that can be entered; what cannot be stays."""

    def take_off(entry: mounts.MountEntry) -> bool:
        if session.driver.handle_of(entry) is None:
            return False
        with suppress(MountError):
            mounts.detach(entry.target)
            return True
        return False

    for namespace in namespaces.mount_namespaces():
        if not namespace.is_own:
            with suppress(OSError):  # it ended, or keeps us out
                namespaces.entries_inside(namespace, take_off)


def targets(session: Session, handle: int) -> list[Path]:
    """Where a layer is mounted, in this mount namespace."""
    return [entry.target for entry in mounts.mount_table() if session.driver.handle_of(entry) == handle]


def mounted_at(session: Session, target: Path) -> int | None:
    """The handle of the layer that is mounted on a directory, topmost; None where there is none of this store.

    Raises:
        MountError: the directory is missing, or is none.
    """
    directory = mounts.open_target(target)
    try:
        return _topmost(session, target) if is_mount_root(directory) else None
    finally:
        os.close(directory)


def _topmost(session: Session, target: Path) -> int | None:
    real = os.path.realpath(target)
    found = [entry for entry in mounts.mount_table() if str(entry.target) == real]
    return session.driver.handle_of(found[-1]) if found else None


def open_device(session: Session, name: str) -> BlockDevice:
    """Open a layer's block device."""
    driver = session.driver
    if not isinstance(driver, BlockDevices):
        raise DriverUnsupported(f"layers of the {driver.name} driver are no block devices")
    session.ready()
    with session.locked(name) as record:
        path, fd = driver.open_device(storage(record))
        point("device-opened")
    held = [fd]

    def end() -> None:
        while held:
            os.close(held.pop())
            session.let_go(record.handle)

    return BlockDevice.opened(path, end)


def _end_mount(session: Session, handle: int, target: Path) -> None:
    try:
        _take_off(session, handle, target)
    except MountError:
        _drop_private(session, target)  # somebody unmounted it before us
        return
    _drop_private(session, target)
    session.let_go(handle)


def _unmount(session: Session, handle: int, target: Path, *, lazy: bool) -> None:
    _take_off(session, handle, target, lazy=lazy)
    _drop_private(session, target)
    session.let_go(handle)


def _take_off(session: Session, handle: int, target: Path, *, lazy: bool = False) -> None:
    """Unmount a layer with its volumes, or neither; with `lazy`, detach them if they are busy."""
    try:
        _take_off_whole(session, handle, target)
    except LayerInUse:
        if not lazy:
            raise
        mounts.detach(target)


def _take_off_whole(session: Session, handle: int, target: Path) -> None:
    record = session.state.by_handle(handle)
    if record is not None and record.kind is Kind.ACTIVE and isinstance(session.driver, Joining):
        with suppress(LayerInUse):  # hidden by another mount: that must not keep anybody from unmounting
            session.driver.join(handle, None)
    inside = () if record is None else record.volumes
    point("mount-take-off")
    if not inside or _topmost(session, target) != handle:
        mounts.unmount(target)
    else:
        with volumes.taken_out(target, inside):
            mounts.unmount(target)
    point("mount-taken-off")


def _private_directory(parent: Path, handle: int) -> Path:
    while True:
        target = parent / f"{handle}-{os.urandom(4).hex()}"
        with suppress(FileExistsError):
            os.mkdir(target, 0o700)
            point("mount-directory-made")
            return target


def _drop_private(session: Session, target: Path) -> None:
    if target.parent == session.root.mounts:
        with suppress(FileNotFoundError):
            os.rmdir(target)
        point("mount-directory-dropped")
