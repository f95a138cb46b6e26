"""Layers made, committed and removed: the operations that change records and storage together."""

import logging
import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import attrs

from thinpool import recovery
from thinpool.drivers.base import Deferring, Sealing, Vouching
from thinpool.errors import ConfigError, LayerInUse, WrongKind
from thinpool.filesystem.holders import in_use, named
from thinpool.model import Kind, Layer
from thinpool.mounting import targets
from thinpool.session import Session, storage
from thinpool.state import LayerRecord
from thinpool.units import human_size

if TYPE_CHECKING:
    from thinpool.quiescing import Quiesce

_LOG = logging.getLogger(__name__)
_EARLIER = 4
_PASSING_SECONDS = 0.5
_POLL_SECONDS = 0.01


def derive(
    session: Session, name: str, parent: str | None, kind: Kind, size: int | None, labels: Mapping[str, str] | None
) -> Layer:
    """Make an active layer or a view.

    Steps: storage with a reserved handle; one durable record that names it.
    """
    session.ready()
    with session.writer() as mark, session.state.transaction():
        session.refuse_taken(name)
        above = session.parent(parent)
        if above is not None and size is not None and size < above.size:
            raise ConfigError(
                f"size {human_size(size)} is less than the {human_size(above.size)} of the parent {above.name}"
            )
        mark.begin()
        handle, made = session.create(above, size)
        record = session.new_record(handle, name, above, kind, size=made, labels=labels)
        session.state.add(record)
    return record.layer()


def commit(
    session: Session,
    name: str,
    active: str,
    labels: Mapping[str, str] | None,
    *,
    live: bool,
    quiesce: "Quiesce | None" = None,
) -> Layer:
    """Commit an active layer, which goes on if `live`.

    Steps where nobody uses the layer and it does not go on: one durable record. Else, and always where the driver seals
    storage: a snapshot with a reserved handle; one durable record that names it and, if not `live`, marks the layer's
    own storage for deletion, which follows when its last user lets go. What is dirty is written out before the writer
    lock is taken; who uses the layer is held for the snapshot alone, and hooks are called right around it.
    """
    session.ready()
    session.refuse_taken(name)
    clean = _settle(session, _active(session, active))
    with session.writer() as mark:
        with session.state.transaction():
            session.refuse_taken(name)
            record = _active(session, active)
            now = session.now()
            done = attrs.evolve(
                record, name=name, kind=Kind.COMMITTED, created=now, updated=now, labels=dict(labels or {})
            )
            with session.locks.layer(record.handle):
                free = not live and session.release(record.handle)
                if free and not isinstance(session.driver, Sealing):
                    session.driver.flush(storage(record))  # it was used until the lock was ours, perhaps
                    session.state.commit(record.handle, name, now, done.labels)
                    return done.layer()
                mark.begin()
                done = attrs.evolve(done, handle=_copied(session, record, quiesce))
                if live:
                    session.state.add(done)
                else:
                    session.state.commit_copy(done, record.handle)
        if free:
            recovery.sweep(session.state, session.driver, session.locks, record)
    return attrs.evolve(done.layer(), crash_consistent=not clean)


def _active(session: Session, name: str) -> LayerRecord:
    """The record of a layer that can be committed."""
    record = session.record(name)
    if record.kind is not Kind.ACTIVE:
        raise WrongKind(f"layer {name} is {record.kind.value}; only an active layer can be committed")
    return record


def _settle(session: Session, record: LayerRecord) -> bool:
    """Write out what is dirty in a layer; whether a copy of it is then a clean file system."""
    if isinstance(session.driver, Vouching):
        return session.driver.vouch(storage(record))
    session.driver.flush(storage(record))
    return True


def _copied(session: Session, record: LayerRecord, quiesce: "Quiesce | None") -> int:
    """Snapshot a layer, between the calls of its hook if it has one: the snapshot's handle."""
    if quiesce is None:
        return session.snapshot(storage(record))
    with quiesce.around():
        session.driver.flush(storage(record))  # what the hook made dirty
        return session.snapshot(storage(record))


def remove(session: Session, name: str) -> None:
    """Remove a layer that has no children and is in nobody's use.

    Steps: one durable record that gives the name free and marks the storage; the storage deleted; the record dropped,
    which needs no durability of its own. Where only others still have it mounted, the last two follow when they let
    go: with the next removal, or the next process that uses the store.
    """
    session.make_room()
    session.ready()
    with session.writer() as mark:
        with session.state.transaction():
            record = session.record(name)
            session.refuse_children(record)
            with session.locks.layer(record.handle):
                _refuse_use(session, record)
                mark.begin()
                session.state.doom(record.handle)
        recovery.sweep(session.state, session.driver, session.locks, record)
        _sweep_earlier(session, record)


def _sweep_earlier(session: Session, removed: LayerRecord) -> None:
    """Delete storage of layers that were removed before, whose last user has let go since; a few, as all may cost."""
    doomed = (each for each in session.state.unfinished() if each.phase == "doomed" and each.handle != removed.handle)
    for record in islice(doomed, _EARLIER):
        recovery.sweep(session.state, session.driver, session.locks, record)


def _refuse_use(session: Session, record: LayerRecord) -> None:
    """Raise LayerInUse where a layer is used, but wait for what only passes by.

    A mount namespace that somebody makes, if only to leave the mounts behind at once, holds all of them for a moment.
    One that stays, with a copy of a mount that is gone here, does not keep the layer from being removed where its
    storage can follow later.
    """
    if session.release(record.handle):
        return
    where = targets(session, record.handle)
    limit = time.monotonic() + _PASSING_SECONDS
    while not where and time.monotonic() < limit:
        time.sleep(_POLL_SECONDS)
        if session.release(record.handle):
            return
    if where:
        users = f"mounted on {', '.join(map(str, where))}"
        raise LayerInUse(f"layer {record.name} is {users}", hint=f"thinpool umount {record.name}")
    driver = session.driver
    if isinstance(driver, Deferring) and not session.locks.is_used(record.handle) and driver.defers(record.handle):
        users = named(session.users(record.handle)) or "nobody by now"
        _LOG.warning("layer %s is removed, and its storage when who still has it lets go: %s", record.name, users)
        return
    raise in_use(f"layer {record.name} is in use", session.users(record.handle))
