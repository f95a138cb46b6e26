"""One opened store: its records, its storage and its locks, and the rules by which they are used together.

The writer lock is held for as long as records and storage change together. Storage is made before its record and
removed after it; between the two the lock file carries a mark, and whoever takes the writer lock next and finds the
mark lets `thinpool.recovery` end what was begun. A failed operation does the same at once: undoing after an error and
recovering after a crash are one mechanism.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from thinpool import recovery
from thinpool.drivers.base import INTENT, Driver, HandleTaken, Naming, Reserving, Storage
from thinpool.errors import LayerExists, LayerInUse, LayerNotFound, PoolFailed, PoolFull, WrongKind
from thinpool.filesystem.holders import Holder, in_use, of_lock
from thinpool.locks import USE_BASE, LockFile, WriterMark
from thinpool.model import Kind, check_name
from thinpool.root import Root
from thinpool.state import LayerRecord, Phase, State


class Session:
    """Records, storage and locks of one store, as this process has them open."""

    def __init__(self, root: Root, state: State, driver: Driver) -> None:
        self.root = root
        self.state = state
        self.driver = driver
        self.locks = LockFile(root.lock)
        self.now = time.time_ns
        self._is_up = False
        self._is_closed = False

    def close(self) -> None:
        """Let go of what this process holds; closing again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self.driver.close()
            self.locks.close()
            self.state.close()

    def record(self, name: str) -> LayerRecord:
        """The record of a layer.

        Raises:
            LayerNotFound: there is none of that name.
        """
        record = self.state.layer(name)
        if record is None:
            raise LayerNotFound(f"no layer is named {name!r}")
        return record

    def ready(self, *, again: bool = False) -> None:
        """Activate the storage where it is not, and end what a crash left half done.

        A pool that has failed cannot be mended; it is left to whoever wants to write to say so, as reading goes on.
        """
        if self._is_up and not again:
            return
        with self.locks.writer() as mark:
            if self.driver.up() or mark.left_at_work() or again or self.state.unfinished():
                mark.begin()
                with suppress(PoolFailed):
                    self.mend()
                    mark.end()
        self._is_up = True

    def mend(self) -> None:
        """End what is half done; the caller holds the writer lock."""
        recovery.mend(self.state, self.driver, self.locks, self.root.mounts)

    def lie_down(self) -> None:
        """Forget that the storage is active."""
        self._is_up = False

    @contextmanager
    def writer(self) -> Iterator[WriterMark]:
        """Hold the writer lock; `begin` on its mark comes before the first change that one transaction cannot hold."""
        with self.locks.writer() as mark:
            if mark.left_at_work():
                self.mend()
                mark.end()
            try:
                yield mark
            except BaseException:
                if mark.begun:
                    with suppress(PoolFailed, PoolFull):  # the mark stays, and the first error is the one to tell
                        self.mend()
                        mark.end()
                raise
            if mark.begun:
                mark.end()

    @contextmanager
    def locked(self, name: str) -> Iterator[LayerRecord]:
        """Hold a layer's lock; the record is what it is under the lock."""
        while True:
            record = self.record(name)
            with self.locks.layer(record.handle):
                current = self.record(name)
                if current.handle == record.handle:
                    yield current
                    return

    # -- new storage

    def refuse_taken(self, name: str) -> None:
        """Raise LayerExists where a layer has, or is about to have, that name; InvalidName where none may."""
        if self.state.is_taken(check_name(name)):
            raise LayerExists(f"a layer named {name!r} exists already")

    def parent(self, name: str | None) -> LayerRecord | None:
        """The record of a layer that may be a parent.

        Raises:
            LayerNotFound: there is none of that name.
            WrongKind: it is not committed.
        """
        if name is None:
            return None
        record = self.record(name)
        if record.kind is not Kind.COMMITTED:
            raise WrongKind(
                f"parent {name} is {record.kind.value}; only a committed layer can be a parent",
                hint=f"thinpool commit NEW {name}" if record.kind is Kind.ACTIVE else None,
            )
        return record

    def create(self, parent: LayerRecord | None, size: int | None) -> tuple[int, int]:
        """Make writable storage under the writer lock: its handle, and the size of its file system in bytes."""
        above = None if parent is None else storage(parent)
        while True:
            handle = self._allot()
            try:
                return handle, self.driver.create(handle, above, size)
            except HandleTaken:
                self.state.skip(handle)

    def snapshot(self, active: Storage) -> int:
        """Copy writable storage under the writer lock: the copy's handle."""
        while True:
            handle = self._allot()
            try:
                self.driver.snapshot(handle, active)
            except HandleTaken:
                self.state.skip(handle)
            else:
                return handle

    def _allot(self) -> int:
        handle = self.state.allot()
        if self.driver.shares_handles:
            self.state.put_now({INTENT: str(handle)})
        return handle

    def new_record(
        self,
        handle: int,
        name: str,
        parent: LayerRecord | None,
        kind: Kind,
        *,
        size: int,
        phase: Phase = "ready",
        labels: Mapping[str, str] | None = None,
    ) -> LayerRecord:
        """A record of new storage, made now."""
        now = self.now()
        above, above_name = (None, None) if parent is None else (parent.handle, parent.name)
        return LayerRecord(handle, name, above, above_name, kind, phase, now, now, size, dict(labels or {}))

    # -- storage that goes

    def make_room(self) -> None:
        """Make room for the records of a removal, where all that is stored together with them is full."""
        if isinstance(self.driver, Reserving):
            self.driver.make_room()

    def refuse_children(self, record: LayerRecord) -> None:
        """Raise LayerInUse, with their names, where a layer has children."""
        children = self.state.children(record.handle)
        if children:
            shown = ", ".join(children[:5]) + (f" and {len(children) - 5} more" if len(children) > 5 else "")
            raise LayerInUse(f"layer {record.name} has children: {shown}", hint="remove them first")

    def release(self, handle: int) -> bool:
        """Release storage, under the layer's lock; False while somebody uses it, mounted or not."""
        return not self.locks.is_used(handle) and self.driver.release(handle)

    def release_wholly(self, record: LayerRecord) -> None:
        """Release storage that nobody but us may use; raise LayerInUse where somebody does."""
        if not self.release(record.handle):
            raise in_use(f"the storage of layer {record.name} is in use", self.users(record.handle))

    def users(self, handle: int) -> Iterator[Holder]:
        """Who uses storage: whom the locks show, and whom the driver finds. It is looked for, so for errors only."""
        if self.locks.is_used(handle):
            yield from of_lock(self.root.lock, USE_BASE + handle)
        if isinstance(self.driver, Naming):
            yield from self.driver.users(handle)

    def let_go(self, handle: int) -> None:
        """Release storage that this process no longer uses, and delete it where only that was waited for."""
        with self.locks.layer(handle):
            free = self.release(handle)
        if free:
            record = self.state.by_handle(handle)
            if record is not None and record.phase == "doomed":
                with self.writer() as mark:
                    mark.begin()
                    recovery.sweep(self.state, self.driver, self.locks, record)


def storage(record: LayerRecord) -> Storage:
    """A layer's storage, as a driver takes it."""
    immutable = record.kind is not Kind.ACTIVE and record.phase == "ready"
    return Storage(record.handle, record.size, immutable)
