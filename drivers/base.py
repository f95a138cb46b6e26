"""What a driver is: the storage below a store, with layers known by number.

Everything that is the same for all drivers (names, kinds, records, locks, where things are mounted, archives) sits
above, in `thinpool.store`. A driver knows only *handles*: positive integers below 2**24 that the store allots, each
the number of one layer's storage. The store holds its writer lock around `create`, `snapshot` and `delete`, and the
layer's lock around `attach` and `release`, so a driver needs no lock of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs

from thinpool.model import Usage


@attrs.frozen
class PoolStatus:
    """The state of a thin pool; sizes in bytes.

    Attributes:
        name: the device-mapper name of the pool.
        mode: `rw`, `ro`, `out_of_data_space`, `fail`, or `inactive`.
        needs_check: the kernel marked the metadata as needing a check.
        transaction_id: the user-space counter in the metadata.
        data_used: bytes of data in use.
        data_total: size of the data device.
        metadata_used: bytes of metadata in use.
        metadata_total: size of the metadata device.
        block_size: the pool's data block size.
    """

    name: str
    mode: str
    needs_check: bool
    transaction_id: int
    data_used: int
    data_total: int
    metadata_used: int
    metadata_total: int
    block_size: int


@attrs.frozen
class DriverStatus:
    """What `info` shows of a driver: its options in force, its pool (if it has one), and warnings for people."""

    options: Mapping[str, str]
    pool: PoolStatus | None = None
    warnings: Sequence[str] = ()


class Records(Protocol):
    """The durable records of the store, as a driver sees them.

    `get` and `put` keep a driver's own few values; a `put` outside a transaction is durable when it returns, inside
    one it becomes durable with the transaction.
    """

    def get(self, key: str) -> str | None:
        """The value kept under the key, or None."""

    def put(self, key: str, value: str) -> None:
        """Keep a value under the key."""

    def allot(self) -> int:
        """A handle that was never given out before, or is known to be free again."""


class Driver(Protocol):
    """The storage of a store's layers.

    A method that raises leaves nothing behind but, at worst, the handle it was given, half made: the store then calls
    `delete` on it, now or after a crash.
    """

    @property
    def name(self) -> str:
        """The driver's name, as in `-s NAME`."""

    def up(self) -> None:
        """Make the storage ready for use; nothing happens where it is."""

    def down(self) -> None:
        """Let go of all kernel objects of the store; nothing of it may be mounted."""

    def create(self, handle: int, parent: int | None, size: int | None) -> int:
        """Make writable storage: a copy-on-write child of an immutable parent, or an empty file system.

        Args:
            handle: the new storage's number; whatever was half made under it before is gone.
            parent: the parent's number, or None for an empty file system.
            size: bytes the file system shall hold, at least the parent's; None keeps the parent's or the default.

        Returns:
            The size of the file system in bytes, 0 where the driver sets none.

        Raises:
            HandleTaken: somebody else's storage has that number.
        """

    def snapshot(self, handle: int, active: int) -> None:
        """Copy the state of this instant of writable storage, mounted or not; its writers go on afterwards.

        The copy is a clean file system: what was written before the call is in it, without a journal to replay.
        """

    def settle(self, handle: int) -> None:
        """Make writable storage that nobody uses ready to become immutable (replay a journal that a crash left)."""

    def delete(self, handle: int) -> bool:
        """Remove storage that nobody uses; False where there was none.

        Raises:
            LayerInUse: somebody uses it.
        """

    def attach(self, handle: int, *, read_only: bool, immutable: bool = False) -> int:
        """Give the file system as a detached mount: a file descriptor as of fsmount(2), for move_mount(2).

        Args:
            handle: the storage's number.
            read_only: nothing can be written through this mount.
            immutable: nothing can be written through any mount of it (committed layers and views).
        """

    def release(self, handle: int) -> bool:
        """Let go of what `attach` took, after an unmount; False while somebody still uses it."""

    def usage(self, handle: int, parent: int | None) -> Usage:
        """What the storage occupies, against its parent (None: against the empty file system)."""

    def device_numbers(self, handle: int) -> Sequence[tuple[int, int]]:
        """The (major, minor) pairs under which mounts of the handle appear in mountinfo; empty when inactive."""

    def status(self) -> DriverStatus:
        """Options, pool and warnings; cheap, without a fork."""

    def close(self) -> None:
        """Let go of what this process holds; the kernel's objects stay."""


@runtime_checkable
class BlockDevices(Protocol):
    """A driver whose layers are block devices."""

    def open_device(self, handle: int, *, immutable: bool = False) -> tuple[Path, int]:
        """Activate the layer's device: its path, and a file descriptor that keeps it active."""


@runtime_checkable
class Growable(Protocol):
    """A driver whose storage can be extended online."""

    def grow(self, *, data: int | None = None, metadata: int | None = None) -> None:
        """Extend to new total sizes in bytes; nothing happens where that is the size already."""


class HandleTaken(Exception):  # noqa: N818 - says what is the case, as errors of the standard library do
    """The number is in use by somebody else; the store skips it."""
