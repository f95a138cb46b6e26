"""Bring records, storage and kernel together again after a process died, or an operation failed, half-way.

What an operation leaves unfinished is of five kinds, and each is recognised by itself: storage with a reserved number
that no record names, a record of storage that is to be deleted, an import that nobody carries on, what the driver left
in the kernel, and storage made ready for a use that never came, with the directory it was to be mounted on. `mend` ends
all of them and may itself be killed at any point: it is simply done again.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.drivers.base import INTENT, Activating, Driver
from thinpool.errors import LayerInUse, ThinPoolError
from thinpool.locks import LockFile
from thinpool.state import LayerRecord, State


def mend(state: State, driver: Driver, locks: LockFile, mounts: Path) -> None:
    """End what is half done; the caller holds the writer lock.

    Args:
        state: the store's records.
        driver: its storage.
        locks: its locks.
        mounts: where its private mount points are.
    """
    driver.mend()
    point("kernel-mended")
    _let_go_of_unused(driver, locks, mounts)
    _delete_unnamed(state, driver)
    for record in state.unfinished():
        if record.phase == "filling":
            _doom_dead_import(state, locks, record)
    point("imports-doomed")
    for record in state.unfinished():
        if record.phase == "doomed":
            sweep(state, driver, locks, record)


def sweep(state: State, driver: Driver, locks: LockFile, record: LayerRecord) -> bool:
    """Delete doomed storage, unless somebody still uses it: then False, and it is deleted when they let go."""
    if locks.is_used(record.handle):
        return False
    with suppress(LayerInUse):
        driver.delete(record.handle)
        state.forget(record.handle)
        return True
    return False


def _let_go_of_unused(driver: Driver, locks: LockFile, mounts: Path) -> None:
    """Release storage that somebody made ready and nobody uses, and drop the directories for mounts that never came.

    Whoever makes storage ready holds its lock until he uses it; what is locked is left alone.
    """
    directories = defaultdict(list)
    for name in os.listdir(mounts):
        if (number := name.partition("-")[0]).isdecimal():
            directories[int(number)].append(name)
    active = driver.active() if isinstance(driver, Activating) else ()
    for handle in sorted({*directories, *active}):
        lock = locks.try_layer(handle)
        if lock is None:
            continue
        try:
            with suppress(ThinPoolError):  # it stays, and whoever uses the layer next hears why
                if not locks.is_used(handle) and driver.release(handle):
                    for name in directories[handle]:
                        with suppress(OSError):
                            os.rmdir(mounts / name)
        finally:
            os.close(lock)
    point("unused-released")


def half_made(state: State, driver: Driver) -> Iterator[int]:
    """The storage that a process may have made before it died, and that no record names."""
    if not driver.shares_handles:
        yield from state.unnamed()
        return
    intent = state.get(INTENT)
    if intent and state.by_handle(int(intent)) is None:
        yield int(intent)


def _delete_unnamed(state: State, driver: Driver) -> None:
    for handle in half_made(state, driver):
        deleted = driver.delete(handle)
        if driver.shares_handles:
            state.put(INTENT, "")
        elif not deleted:
            break


def _doom_dead_import(state: State, locks: LockFile, record: LayerRecord) -> None:
    """Doom an import that nobody carries on; all layers of an image before the first is deleted, as one has another."""
    lock = locks.try_layer(record.handle)
    if lock is None:
        return
    try:
        state.doom(record.handle)
    finally:
        os.close(lock)
