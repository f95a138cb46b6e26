"""Metadata snapshots: one state of a pool in use, pinned so that it can be read at leisure.

The kernel keeps one a pool. It belongs to nobody: it outlives the process that reserved it, and the kernel cannot say
who that was. So a note in a file says that it was us: written before the snapshot is reserved, with the metadata block
of the snapshot once that is known, and removed after the release. Whoever reserves does so under the store's lock;
then a note that is there was left by a process that died.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from thinpool.dm import Control
from thinpool.dm.thin import pool_status, release_metadata_snap, reserve_metadata_snap
from thinpool.errors import DeviceMapperError, PoolFailed
from thinpool.metadata.books import Books

__all__ = ["metadata_snapshot", "pinned_books", "release_leftover"]


@contextmanager
def metadata_snapshot(control: Control, pool: str, *, note: Path | None = None) -> Iterator[None]:
    """Reserve the pool's metadata snapshot for the block, and release it, however the block ends.

    The kernel commits first, so that the snapshot holds all that was written before. While it is there, nothing that is
    deleted gives space back. A process that dies in between leaves it behind; with a note, the next call (or
    `release_leftover`) sees that it was ours, and releases it.

    Args:
        control: the device-mapper control device.
        pool: device-mapper name of the pool.
        note: a file of our own to note the reservation in; the caller holds a lock that keeps others of us away.

    Raises:
        PoolFailed: somebody else has the metadata snapshot reserved, or released ours during the block; or the pool is
            in a mode in which it takes no messages.
        DeviceMapperError: there is no such pool.
    """
    if note is not None:
        release_leftover(control, pool, note=note)
        note.write_bytes(b"")
    try:
        _reserve(control, pool)
    except BaseException:
        _forget(note)
        raise
    try:
        if note is not None:
            note.write_text(f"{pool_status(control, pool).held_root}\n", encoding="ascii")
        yield
    except BaseException:
        _release(control, pool)
        _forget(note)
        raise
    released = _release(control, pool)
    _forget(note)
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
        Whether one was released.

    Raises:
        PoolFailed: the pool is in a mode in which it takes no messages.
        DeviceMapperError: there is no such pool.
    """
    if note is None:
        return pool_status(control, pool).held_root is not None and _release(control, pool)
    try:
        noted = note.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return False
    held = pool_status(control, pool).held_root
    # An empty note: the process died around the reservation, before it knew the block.
    released = held is not None and noted in ("", str(held)) and _release(control, pool)
    _forget(note)
    return released


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


def _forget(note: Path | None) -> None:
    if note is not None:
        note.unlink(missing_ok=True)
