"""Messages to a thin pool, and its status."""

from thinpool.dm.control import Control
from thinpool.dm.status import ThinPoolStatus


def create_thin(control: Control, pool: str, thin_id: int) -> None:
    """Make an empty thin device."""
    control.message(pool, f"create_thin {thin_id}")


def create_snap(control: Control, pool: str, thin_id: int, origin_id: int) -> None:
    """Make a snapshot; an origin in use must be suspended."""
    control.message(pool, f"create_snap {thin_id} {origin_id}")


def delete_thin(control: Control, pool: str, thin_id: int) -> None:
    """Delete a thin device."""
    control.message(pool, f"delete {thin_id}")


def set_transaction_id(control: Control, pool: str, current: int, new: int) -> None:
    """Move the transaction id on from `current`."""
    control.message(pool, f"set_transaction_id {current} {new}")


def reserve_metadata_snap(control: Control, pool: str) -> None:
    """Pin the metadata of this moment."""
    control.message(pool, "reserve_metadata_snap")


def release_metadata_snap(control: Control, pool: str) -> None:
    """Unpin it."""
    control.message(pool, "release_metadata_snap")


def pool_status(control: Control, pool: str) -> ThinPoolStatus:
    """The pool's status, without a commit first."""
    return ThinPoolStatus.parse(control.status(pool, noflush=True)[0].text)
