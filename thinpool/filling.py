"""Layers filled from archives: one, or several on each other that appear together.

Each has storage with a reserved handle and a durable record in the phase `filling`, whose lock is held while it is
worked on; that work is done outside any lock of the store. One durable transaction makes all of them ready. Where the
process dies before, whoever opens the store next finds their locks free, and removes them.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Self

import attrs

from thinpool import recovery
from thinpool.crashpoints import point
from thinpool.drivers.base import Noting, Sealing
from thinpool.errors import LayerNotFound, PoolFailed, PoolFull
from thinpool.filesystem.holders import in_use, of_lock
from thinpool.filesystem.syscalls import syncfs
from thinpool.layer.limits import Limits
from thinpool.layer.unpack import UnpackResult, unpack_layer
from thinpool.locks import LAYER_BASE
from thinpool.model import Kind
from thinpool.mounting import attached, tree
from thinpool.session import Session
from thinpool.state import LayerRecord

_LOG = logging.getLogger(__name__)


@attrs.frozen
class Handling:
    """How an archive is taken in.

    Attributes:
        limits: what it may ask for.
        devices: whether device nodes are made, or left out.
        progress: called with the number of bytes read so far.
    """

    limits: Limits = attrs.field(factory=Limits)
    devices: bool = True
    progress: Callable[[int], None] | None = None

    @classmethod
    def of(cls, limits: Limits | None, progress: Callable[[int], None] | None, *, devices: bool) -> Self:
        """The way that is asked for, with the default limits where none are."""
        return cls(limits or Limits(), devices, progress)


class Filling:
    """Layers that are filled one after the other; a context manager.

    Leaving the `with` block before `publish` removes them all.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._records: list[LayerRecord] = []
        self._completed: dict[int, int] = {}
        self._lock: int | None = None
        self._published = False

    def add(
        self, name: str, archive: IO[bytes], parent: LayerRecord | None, labels: Mapping[str, str] | None, how: Handling
    ) -> tuple[LayerRecord, UnpackResult]:
        """Make a layer on a committed one, or on one that was added before: its record as it will be."""
        driver = self._session.driver
        record = self._begin(name, parent, labels)
        with attached(self._session, record, read_only=False) as fd, tree(fd) as root, _explained(name):
            result = unpack_layer(
                archive,
                root,
                limits=how.limits,
                devices=how.devices,
                noting=isinstance(driver, Noting),
                progress=how.progress,
            )
            point("archive-unpacked")
            syncfs(root)
            point("archive-synced")
        self._session.release_wholly(record)
        if isinstance(driver, Noting):
            driver.carry_out_notes(record.handle)
        if isinstance(driver, Sealing):
            driver.seal(record.handle)
        self._completed[record.handle] = self._session.now()  # before the next layer begins, which is split off then
        for warning in result.warnings:
            _LOG.warning("%s: %s", name, warning)
        return attrs.evolve(record, phase="ready"), result

    def publish(self) -> None:
        """Make them all ready, in one durable step."""
        with self._session.state.transaction():
            for record in self._records:
                self._session.state.publish(record.handle, self._completed[record.handle], record.labels)
        self._published = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._records and not self._published:
                self._remove()
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _remove(self) -> None:
        session = self._session
        with suppress(PoolFailed), session.writer() as mark:  # swept later then; the first error is the one to tell
            mark.begin()
            with session.state.transaction():
                for record in self._records:
                    session.state.doom(record.handle)
            for record in reversed(self._records):
                recovery.sweep(session.state, session.driver, session.locks, record)

    def _begin(self, name: str, parent: LayerRecord | None, labels: Mapping[str, str] | None) -> LayerRecord:
        """Make the storage and the record."""
        session = self._session
        with session.writer() as mark, session.state.transaction():
            session.refuse_taken(name)
            self._refuse_gone(parent)
            mark.begin()
            handle, size = session.create(parent, None)
            lock = session.locks.try_layer(handle, self._lock)
            if lock is None:
                raise in_use(f"storage number {handle} is in use", of_lock(session.root.lock, LAYER_BASE + handle))
            self._lock = lock
            record = session.new_record(handle, name, parent, Kind.COMMITTED, size=size, phase="filling", labels=labels)
            session.state.add(record)
        self._records.append(record)
        return record

    def _refuse_gone(self, parent: LayerRecord | None) -> None:
        current = None if parent is None else self._session.state.by_handle(parent.handle)
        if parent is not None and (current is None or current.name != parent.name):
            raise LayerNotFound(f"layer {parent.name} was removed meanwhile")


def fill(
    session: Session,
    name: str,
    archive: IO[bytes],
    parent: str | None,
    labels: Mapping[str, str] | None,
    how: Handling,
) -> None:
    """Make a committed layer from an archive; see `Store.import_layer`."""
    session.ready()
    with Filling(session) as filling:
        filling.add(name, archive, session.parent(parent), labels, how)
        filling.publish()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say what a failed write into a layer means for it."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PoolFull(
                f"no space left for the contents of layer {name}", hint="thinpool grow, or rm layers"
            ) from error
        if error.errno in {errno.EIO, errno.EROFS}:
            raise PoolFailed(f"the contents of layer {name} could not be written: {error.strerror}") from error
        raise
