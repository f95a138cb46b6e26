"""Messages to a thin pool, and statuses of pools and thin devices.

The kernel carries out each message whole or not at all, and commits the pool's metadata before it answers
(process_*_mesg and pool_message in drivers/md/dm-thin.c): a call that returns is durable, and one that the caller did
not live to see return either happened or did not, which the metadata tell. Thin ids are 24-bit numbers.

All raise `DeviceMapperError`, with the errnos that are named.
"""

import errno

from thinpool.dm.control import Control
from thinpool.dm.status import ThinPoolStatus, ThinStatus
from thinpool.errors import DeviceMapperError


def create_thin(control: Control, pool: str, thin_id: int) -> None:
    """Make an empty thin device (EEXIST: there is one of that number)."""
    control.message(pool, f"create_thin {thin_id}")


def create_snap(control: Control, pool: str, thin_id: int, origin_id: int) -> None:
    """Make a snapshot of a thin device (EEXIST: there is one of that number; ENODATA: there is no such origin).

    An active origin must be suspended for the call: the kernel does not check that, and blocks that are being written
    would be shared while they still change.
    """
    control.message(pool, f"create_snap {thin_id} {origin_id}")


def delete_thin(control: Control, pool: str, thin_id: int) -> None:
    """Delete a thin device, which must not be active (EBUSY: it is; ENODATA: there is none)."""
    control.message(pool, f"delete {thin_id}")


def set_transaction_id(control: Control, pool: str, current: int, new: int) -> None:
    """Move the number that the user keeps in the metadata on (EINVAL: it is not `current`)."""
    control.message(pool, f"set_transaction_id {current} {new}")


def reserve_metadata_snap(control: Control, pool: str) -> None:
    """Pin the metadata of this moment for reading; one at a time (EBUSY: there is one).

    It stays when the process ends; `pool_status` gives its block as `held_root`.
    """
    control.message(pool, "reserve_metadata_snap")


def release_metadata_snap(control: Control, pool: str) -> None:
    """Unpin the metadata (EINVAL: none is pinned)."""
    control.message(pool, "release_metadata_snap")


def pool_status(control: Control, pool: str, *, commit: bool = False) -> ThinPoolStatus:
    """The pool's status (ENXIO: there is no such device, or it has no table in force; EINVAL: it is no pool).

    Args:
        control: the control device.
        pool: name of the pool's device.
        commit: let the kernel commit the metadata first, as the counts leave out what is not committed; it waits for
            the disk then.
    """
    return ThinPoolStatus.parse(_status(control, pool, "thin-pool", commit=commit))


def thin_status(control: Control, name: str, *, commit: bool = False) -> ThinStatus:
    """A thin device's status; arguments as of `pool_status`, with the name of the thin device."""
    return ThinStatus.parse(_status(control, name, "thin", commit=commit))


def _status(control: Control, name: str, kind: str, *, commit: bool) -> str:
    lines = control.status(name, noflush=not commit)
    if not lines:  # left so by a process that died between making it and giving it a table
        raise DeviceMapperError("DM_TABLE_STATUS", name, errno.ENXIO, f"device {name} has no table in force")
    if lines[0].kind != kind:
        raise DeviceMapperError(
            "DM_TABLE_STATUS", name, errno.EINVAL, f"device {name} is of the target {lines[0].kind}, not {kind}"
        )
    return lines[0].text
