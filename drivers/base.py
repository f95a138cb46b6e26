"""What a driver is: the storage below a store, with layers known by number.

Everything that is the same for all drivers (names, kinds, records, locks, where things are mounted, archives) sits
above, in `thinpool.store`. A driver knows only *handles*: positive integers below 2**24 that the store allots, each
the number of one layer's storage. The store holds its writer lock around `create`, `snapshot` and `delete`, and the
layer's lock around `attach` and `release`, so a driver needs no lock of its own. The store also knows who has a
detached mount of a layer, and releases or deletes none of those.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs

from thinpool.filesystem.holders import Holder
from thinpool.filesystem.mounts import MountEntry
from thinpool.findings import Finding
from thinpool.layer.scope import Scope
from thinpool.layer.view import View
from thinpool.model import Usage
from thinpool.pool.health import PoolStatus

__all__ = [
    "INTENT", "Activating", "Ancestor", "BlockDevices", "Checking", "Compared", "Comparing", "Context",
    "CountsExclusive", "Deferring", "Driver", "DriverStatus", "DriverType", "Growable", "HandleTaken", "Joining",
    "Looking", "Naming", "Noting", "PoolStatus", "Records", "Reserving", "Sealing", "Storage", "Tracking", "Unsure",
    "Vouching",
]  # fmt: skip

INTENT = "intent"
"""Key of the handle that is about to be used, where others make storage in the same number space."""


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

    def skip(self, handle: int) -> None:
        """Pass by a handle that somebody else uses."""

    def claim(self, handle: int, values: Mapping[str, str]) -> None:
        """Name the storage of an allotted handle as the driver's own, and keep values with it, in one durable step."""

    def is_named(self, handle: int) -> bool:
        """Whether a record has that storage, in whatever phase; what none has may be deleted under the writer lock."""

    def offspring(self, handle: int) -> Sequence[int]:
        """The storage of the layers whose parent has that handle."""


@attrs.frozen
class Storage:
    """One layer's storage, as the records know it.

    Attributes:
        handle: its number.
        size: bytes that its file system holds, 0 where the driver sets none.
        immutable: nothing may ever be written to it (committed layers and views).
    """

    handle: int
    size: int
    immutable: bool


class Driver(Protocol):
    """The storage of a store's layers.

    A method that raises leaves nothing behind but, at worst, the handle it was given, half made: the store then calls
    `delete` on it, now or after a crash.
    """

    @property
    def name(self) -> str:
        """The driver's name, as in `-s NAME`."""

    @property
    def options(self) -> Mapping[str, str]:
        """The options in force, in canonical text, defaults included."""

    @property
    def shares_handles(self) -> bool:
        """Whether others make storage in the same number space, so that an unknown number may be theirs."""

    def up(self) -> bool:
        """Make the storage ready for use; False where it was."""

    def down(self) -> None:
        """Let go of all kernel objects of the store; nothing of it may be mounted.

        Raises:
            LayerInUse: something is in use; the message names all of it. The rest was let go.
        """

    def create(self, handle: int, parent: Storage | None, size: int | None) -> int:
        """Make writable storage: a copy-on-write child of an immutable parent, or an empty file system.

        Args:
            handle: the new storage's number; whatever was half made under it before is gone.
            parent: the parent's storage, or None for an empty file system.
            size: bytes the file system shall hold, at least the parent's; None keeps the parent's or the default.

        Returns:
            The size of the file system in bytes, 0 where the driver sets none.

        Raises:
            HandleTaken: somebody else's storage has that number.
        """

    def snapshot(self, handle: int, active: Storage) -> None:
        """Copy the state of this instant of writable storage, mounted or not; its writers go on afterwards.

        The copy is a clean file system: what was written before the call is in it, without a journal to replay.
        """

    def flush(self, active: Storage) -> None:
        """Write out what is dirty in storage in use, so that a snapshot soon after holds its writers briefly.

        Called once more when nobody uses storage that is about to be committed: what was written to it is durable then.
        """

    def delete(self, handle: int) -> bool:
        """Remove storage that nobody uses; False where there was none.

        Raises:
            LayerInUse: somebody uses it.
        """

    def attach(self, storage: Storage, *, read_only: bool) -> int:
        """Give the file system as a detached mount: a file descriptor as of fsmount(2), for move_mount(2).

        Args:
            storage: what to mount.
            read_only: nothing can be written through this mount; always so where the storage is immutable.
        """

    def release(self, handle: int) -> bool:
        """Let go of what `attach` took, after an unmount; False while somebody still uses it."""

    def usages(self, layers: Sequence[tuple[int, int | None]]) -> Mapping[int, Usage]:
        """What storage occupies, by handle.

        Args:
            layers: pairs of a handle and its parent's (None: compared with the empty file system).
        """

    def handle_of(self, entry: MountEntry) -> int | None:
        """The handle whose file system a line of the mount table shows; None where it is none of this store."""

    def mend(self) -> None:
        """Undo what a process that died left half-way in the kernel (a suspended device)."""

    def status(self) -> DriverStatus:
        """Options, pool and warnings; cheap, without a fork."""

    def close(self) -> None:
        """Let go of what this process holds; the kernel's objects stay."""


@runtime_checkable
class Activating(Protocol):
    """A driver whose storage is made ready for its users by `attach`, and stays so until `release`."""

    def active(self) -> Iterable[int]:
        """The handles of the storage that is ready, in use or not."""


@runtime_checkable
class Checking(Protocol):
    """A driver that can say what storage there is, and what is wrong with it, without changing anything."""

    def stored(self) -> Collection[int] | None:
        """The handles of all storage, others' included where they share the numbers; None where it cannot be told."""

    def has_users(self, handle: int) -> bool:
        """Whether the kernel knows of anybody who uses storage."""

    def findings(self) -> Iterable[Finding]:
        """What is wrong with the driver's own objects; a remedy that it names is what `up` and `mend` do."""


@runtime_checkable
class CountsExclusive(Protocol):
    """A driver that tells sooner what each layer alone occupies than all that `usages` says."""

    def exclusive(self, handles: Sequence[int]) -> Mapping[int, int]:
        """Bytes that removing storage would free, by handle."""


@runtime_checkable
class BlockDevices(Protocol):
    """A driver whose layers are block devices."""

    def open_device(self, storage: Storage) -> tuple[Path, int]:
        """Activate the layer's device: its path, and a file descriptor that keeps it active."""


@runtime_checkable
class Naming(Protocol):
    """A driver that can tell who uses a layer's storage."""

    def users(self, handle: int) -> Iterable[Holder]:
        """Who uses it: for an error, so it may cost what it costs."""


@runtime_checkable
class Deferring(Protocol):
    """A driver whose kernel objects go by themselves when their last user lets go."""

    def defers(self, handle: int) -> bool:
        """Whether storage that is in use will be let go so, and nobody is hindered if its layer goes.

        That is so where others have a mount of it, as by a copy of their mount namespace, and nobody has a file of it
        open or works in it; and where it is detached from all directories, whoever still works in it. It is not so
        where somebody works in a mount of it, or has it open as a block device.
        """

    def down_later(self) -> None:
        """As `down`, but what is in use goes when its last user lets go.

        Raises:
            LayerInUse: an option forbids that.
        """


@runtime_checkable
class Growable(Protocol):
    """A driver whose storage can be extended online."""

    def grow(self, *, data: int | None = None, metadata: int | None = None) -> None:
        """Extend to new total sizes in bytes; nothing happens where that is the size already."""


@runtime_checkable
class Reserving(Protocol):
    """A driver whose layers share the space of the records, and need some of it even to be removed."""

    def make_room(self) -> None:
        """Give up a reserve that is kept for when there is no room; the next layer that is begun takes it again."""


@runtime_checkable
class Sealing(Protocol):
    """A driver that keeps immutable storage immutable itself, so that no user whom it cannot see writes to it.

    What `snapshot` makes is immutable from its first instant, so every commit is a snapshot; what an import filled is
    sealed.
    """

    def seal(self, handle: int) -> None:
        """Make storage that nobody uses immutable, durably."""


@runtime_checkable
class Joining(Protocol):
    """A driver of whose writable mounts some of what is seen is nowhere else yet."""

    def join(self, handle: int, mount: int | None) -> None:
        """Write that to the storage, before a mount ends.

        Args:
            handle: the layer.
            mount: the mount, where it is a detached one; None for one that is in a mount table.
        """


@runtime_checkable
class Noting(Protocol):
    """A driver whose mounts cannot do all that its storage can: an import notes the rest (`thinpool.layer.notes`)."""

    def carry_out_notes(self, handle: int) -> None:
        """Do what is noted in storage that nobody uses, durably."""


@runtime_checkable
class Looking(Protocol):
    """A driver that can show storage without making it ready to be written."""

    def look(self, storage: Storage) -> int:
        """A detached mount as of `attach`, for reading only, of storage that nobody writes to.

        Whoever mounts and writes the storage meanwhile is not hindered; what is seen of that is not said.
        """


@runtime_checkable
class Vouching(Protocol):
    """A driver that can tell beforehand what a snapshot of a layer in use would be worth."""

    def vouch(self, active: Storage) -> bool:
        """Do as `flush` does, and say whether a snapshot of this moment will be a clean file system.

        Returns:
            False where the layer is in use as a block device, so that a snapshot is what a power cut would leave.

        Raises:
            PoolFailed: the file system has failed, so that a snapshot would lack what was written to it.
        """


@runtime_checkable
class Tracking(Protocol):
    """A driver that knows where two layers differ without walking over their trees."""

    def scope(self, older: Storage, newer: Storage, common: Storage) -> Scope:
        """Where the trees of two layers may differ, in time and memory that grow with what differs.

        Args:
            older: one layer's storage, to which nothing is written meanwhile.
            newer: the other's, the same.
            common: that of the nearest layer that both are, or descend from.

        Raises:
            Unsure: it cannot be said for these two; everything is compared then.
        """


@attrs.frozen
class Ancestor:
    """A layer in a line of descent.

    Attributes:
        storage: its storage, immutable.
        complete_ns: a time, nanoseconds since 1970, before which all that is in it was written, or at which that was
            going on: when it was committed. None where that is not known.
        lasting: it is a committed layer, not one that is there for a moment.
    """

    storage: Storage
    complete_ns: int | None
    lasting: bool


@attrs.frozen
class Compared:
    """Two layers to be compared.

    Attributes:
        older: the older tree.
        newer: the newer tree.
        scope: where they may differ.
        settled_ns: a time before which the two trees were one; None where there is none that is known.
        reads: how many reads from devices the comparison took so far.
        bytes: how many bytes these gave.
    """

    older: View
    newer: View
    scope: Scope
    settled_ns: int | None
    reads: Callable[[], int]
    bytes: Callable[[], int]


@runtime_checkable
class Comparing(Protocol):
    """A driver that knows where two layers differ, and shows their trees without making the layers ready for use."""

    def compared(
        self,
        older: Sequence[Ancestor],
        newer: Sequence[Ancestor],
        alone: Callable[[], AbstractContextManager[object]],
    ) -> AbstractContextManager[Compared]:
        """Two layers, in time and memory that grow with what differs; neither is written to or deleted meanwhile.

        Args:
            older: one layer, and those that it descends from, the nearest first.
            newer: the other, the same.
            alone: gives a context in which no other process of the store reads the driver's books in a way that
                only one can.

        Raises:
            Unsure: on entering or, where what is looked at turns out to be damaged, in the block: it cannot be said
                for these two.
        """


class Unsure(Exception):
    """Why a driver cannot tell where two layers differ, in words for people."""


@attrs.frozen
class Context:
    """Where a driver works.

    Attributes:
        root: the store's root directory.
        directory: the driver's own directory below it.
        records: its durable values.
        recorded: the options in force until now; empty at creation.
        given: the options that the caller names now.
    """

    root: Path
    directory: Path
    records: Records
    recorded: Mapping[str, str]
    given: Mapping[str, str]


@runtime_checkable
class DriverType(Protocol):
    """How a driver is found and opened: what its entry point in the group `thinpool.drivers` names."""

    @property
    def name(self) -> str:
        """The driver's name, as in `-s NAME`."""

    def probe(self, root: Path) -> str | None:
        """Why the driver cannot work on this host with that root; None where it can. Leaves nothing behind."""

    def check(self, given: Mapping[str, str]) -> None:
        """Look at options before anything is made.

        Raises:
            ConfigError: an option that is unknown, malformed or contradicting.
        """

    def create(self, context: Context) -> Driver:
        """Make the storage of a new store, or finish what a process that died began; then as `open`.

        Where it fails, what it made is gone again.
        """

    def open(self, context: Context) -> Driver:
        """Take up a store's storage, with options that are the recorded ones or can replace them.

        Raises:
            ConfigError: an option that is unknown, malformed, contradicting, or cannot be changed any more.
        """


class HandleTaken(Exception):
    """The number is in use by somebody else; the store skips it."""
