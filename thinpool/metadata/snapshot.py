"""Metadata snapshots: one state of a pool in use, pinned so that it can be read at leisure.

The kernel keeps one a pool. It belongs to nobody: it outlives the process that reserved it, and the kernel cannot say
who that was. So a note in a file says that it was us: written before the snapshot is reserved, with the metadata block
of the snapshot once that is known, and removed after the release. The file is locked meanwhile, by an open file
description (fcntl(2)), so that others of us, in processes and threads, wait for their turn; a note that is there and
not locked was left by a process that died.
"""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.dm import Control
from thinpool.dm.thin import pool_status, release_metadata_snap, reserve_metadata_snap
from thinpool.errors import DeviceMapperError, PoolFailed
from thinpool.metadata.books import Books
from thinpool.metadata.note import Note, NoteTaken

__all__ = ["PATIENCE_SECONDS", "metadata_snapshot", "pinned_books", "release_leftover"]

PATIENCE_SECONDS = 60.0
"""How long to wait for others of us."""

_UNKNOWN = "?"
"""What the note says while the block is not known: the process died around the reservation."""


@contextmanager
def metadata_snapshot(control: Control, pool: str, *, note: Path | None = None) -> Iterator[None]:
    """Reserve the pool's metadata snapshot for the block, and release it, however the block ends.

    The kernel commits first, so that the snapshot holds all that was written before. While it is there, nothing that is
    deleted gives space back. A process that dies in between leaves it behind; with a note, the next call (or
    `release_leftover`) sees that it was ours, and releases it.

    Args:
        control: the device-mapper control device.
        pool: device-mapper name of the pool.
        note: a file of our own to note the reservation in; while others of us have it, they are waited for, for a
            minute at the most.

    Raises:
        PoolFailed: somebody else has the metadata snapshot reserved, or released ours during the block; or others of
            us have it for too long; or the pool is in a mode in which it takes no messages.
        DeviceMapperError: there is no such pool.
    """
    with ExitStack() as held:
        mine = None if note is None else held.enter_context(Note.locked(note, PATIENCE_SECONDS))
        if mine is not None:
            _release_noted(control, pool, mine)
            mine.write(_UNKNOWN)
            point("snapshot-noted")
        try:
            _reserve(control, pool)
        except BaseException:
            _forget(mine)
            raise
        point("snapshot-reserved")
        try:
            if mine is not None:
                mine.write(f"{pool_status(control, pool).held_root}")
            point("snapshot-known")
            yield
        except BaseException:
            _release(control, pool)
            _forget(mine)
            raise
        released = _release(control, pool)
        point("snapshot-released")
        _forget(mine)
        point("snapshot-forgotten")
        if not released:
            raise PoolFailed(
                f"the metadata snapshot of pool {pool} was released by somebody else while it was read",
                hint="what was read may be wrong: try again",
            )


@contextmanager
def pinned_books(
    control: Control, pool: str, device: str | bytes | PathLike[str] | int, *, note: Path | None = None
) -> Iterator[Books]:
    """The books of a pool in use, as of now, safe to read during the block; see `metadata_snapshot`.

    Args:
        control: the device-mapper control device.
        pool: device-mapper name of the pool.
        device: its metadata device.
        note: see `metadata_snapshot`.

    Raises:
        PoolFailed: the metadata snapshot cannot be had, or the metadata is damaged.
        DeviceMapperError: there is no such pool.
    """
    with metadata_snapshot(control, pool, note=note), Books.open(device, held=True) as books:
        yield books


def release_leftover(control: Control, pool: str, *, note: Path | None = None) -> bool:
    """Release a metadata snapshot that a process of ours left behind when it died.

    Args:
        control: the device-mapper control device.
        pool: device-mapper name of the pool.
        note: the file that `metadata_snapshot` was given; what it does not speak of is left alone. None releases
            whatever is reserved: for a pool that nobody else reads, and for one that was activated just now, since no
            reader outlives that.

    Returns:
        Whether one was released; never one that a process of ours is reading.

    Raises:
        PoolFailed: the pool is in a mode in which it takes no messages.
        DeviceMapperError: there is no such pool.
    """
    if note is None:
        return pool_status(control, pool).held_root is not None and _release(control, pool)
    if not note.exists():
        return False
    try:
        with Note.locked(note, 0) as mine:
            released = _release_noted(control, pool, mine)
            _forget(mine)
            return released
    except NoteTaken:
        return False


def _release_noted(control: Control, pool: str, note: Note) -> bool:
    """Release what a note speaks of, while it is locked."""
    noted = note.read()
    held = pool_status(control, pool).held_root if noted else None
    return held is not None and noted in (_UNKNOWN, str(held)) and _release(control, pool)


def _reserve(control: Control, pool: str) -> None:
    try:
        reserve_metadata_snap(control, pool)
    except DeviceMapperError as error:
        if error.errno != errno.EBUSY:
            raise _mode_error(control, pool, error) from error
        raise PoolFailed(
            f"somebody else has the metadata snapshot of pool {pool} reserved",
            hint="thin_ls, thin_dump or thin_delta -m may be reading it; if nobody does, "
            f"`dmsetup message {pool} 0 release_metadata_snap` gives it back",
        ) from error


def _release(control: Control, pool: str) -> bool:
    """Release; False where none was reserved."""
    try:
        release_metadata_snap(control, pool)
    except DeviceMapperError as error:
        if error.errno == errno.EINVAL:
            return False
        raise _mode_error(control, pool, error) from error
    return True


def _mode_error(control: Control, pool: str, error: DeviceMapperError) -> Exception:
    if error.errno != errno.EOPNOTSUPP:
        return error
    mode = pool_status(control, pool).mode.value
    return PoolFailed(f"pool {pool} takes no messages: it is in mode {mode}", hint="see `thinpool info`")


def _forget(note: Note | None) -> None:
    if note is not None:
        note.remove()
