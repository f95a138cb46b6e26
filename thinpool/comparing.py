"""Layers compared with each other, and the difference exported, by looking into two trees where they may differ."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import IO, Literal

import attrs

from thinpool.drivers.base import Ancestor, Compared, Comparing, Storage, Tracking, Unsure
from thinpool.errors import ConfigError, DriverUnsupported, PoolFailed, PoolFull
from thinpool.layer.archive import ArchiveResult, write_layer
from thinpool.layer.changes import walk, walk_views
from thinpool.layer.scope import Scope
from thinpool.model import Change, Changes, Kind
from thinpool.mounting import kept, look, looked_into
from thinpool.session import Session, storage
from thinpool.state import LayerRecord

Method = Literal["auto", "fast", "walk"]
Compression = Literal["none", "gzip", "zstd", "xz"]


@attrs.frozen
class _Trees:
    """Two layers, open for comparison.

    Attributes:
        older: root directory of the older one, None for an empty tree.
        newer: root directory of the newer one.
        settled_ns: when the nearest layer that both descend from was complete.
        scope: where they may differ; None for everywhere.
        reason: why everything is compared, if that was not asked for.
    """

    older: int | None
    newer: int
    settled_ns: int | None
    scope: Scope | None
    reason: str | None

    def changes(self) -> Iterator[Change]:
        return walk(self.older, self.newer, settled_ns=self.settled_ns, scope=self.scope)


def changes(session: Session, name: str, base: str | None, method: Method) -> Changes:
    """The differences of a layer to its parent or to another one; see `Store.changes`."""
    if method not in {"auto", "fast", "walk"}:
        raise ConfigError(f"method {method!r}: accepted are auto, fast and walk")
    if method == "fast" and not isinstance(session.driver, Tracking | Comparing):
        raise DriverUnsupported(
            f"the {session.driver.name} driver has no fast comparison", hint="use method auto or walk"
        )
    reason = None
    if method != "walk" and isinstance(session.driver, Comparing):
        try:
            return _changes_unmounted(session, name, base)
        except Unsure as unsure:
            reason = str(unsure)
    if method == "fast" and reason is not None:
        raise _not_fast(name, reason)
    with _open(session, name, base, track=method != "walk") as trees:
        if method == "fast" and trees.scope is None:
            raise _not_fast(name, trees.reason)
        return Changes(tuple(trees.changes()), "walk" if trees.scope is None else "fast", reason or trees.reason)


def _not_fast(name: str, reason: str | None) -> DriverUnsupported:
    return DriverUnsupported(f"no fast comparison of {name}: {reason}", hint="use method auto or walk")


def export(
    session: Session,
    name: str,
    fileobj: IO[bytes],
    base: str | None,
    *,
    compress: Compression,
    progress: Callable[[int], None] | None,
) -> ArchiveResult:
    """Write the difference of a layer as an archive; see `Store.export_layer`."""
    with _open_for_export(session, name, base) as trees:
        return write_layer(fileobj, trees.older, trees.newer, trees.changes(), compress=compress, progress=progress)


def _changes_unmounted(session: Session, name: str, base: str | None) -> Changes:
    """Compare two layers that are mounted nowhere for it; raises Unsure."""
    with _keep(session, name, base) as pair, pair.compared(session) as trees:
        found = tuple(walk_views(trees.older, trees.newer, settled_ns=trees.settled_ns, scope=trees.scope))
        return Changes(found, "fast", None, trees.reads(), trees.bytes())


@contextmanager
def _open_for_export(session: Session, name: str, base: str | None) -> Iterator[_Trees]:
    """Two trees to look into, that of the newer layer at the very state at which it was told where to look."""
    with ExitStack() as looks:
        trees = None
        if isinstance(session.driver, Comparing):
            with suppress(Unsure):
                trees = looks.enter_context(_look_where_told(session, name, base))
        yield trees or looks.enter_context(_open(session, name, base, track=True))


@contextmanager
def _look_where_told(session: Session, name: str, base: str | None) -> Iterator[_Trees]:
    with ExitStack() as looks:
        pair = looks.enter_context(_keep(session, name, base))
        with pair.compared(session) as compared:
            scope, settled_ns = compared.scope, compared.settled_ns
        older = looks.enter_context(look(session, pair.older[0].storage))
        newer = looks.enter_context(look(session, pair.newer[0].storage))
        yield _Trees(older, newer, settled_ns, scope, None)


@attrs.frozen
class _Pair:
    """Two layers that are kept as they are, each with its line of descent."""

    older: Sequence[Ancestor]
    newer: Sequence[Ancestor]

    def compared(self, session: Session) -> AbstractContextManager[Compared]:
        assert isinstance(session.driver, Comparing)
        return session.driver.compared(self.older, self.newer, session.writer)


@contextmanager
def _keep(session: Session, name: str, base: str | None) -> Iterator[_Pair]:
    session.ready()
    older_name = session.record(name).parent_name if base is None else session.record(base).name
    if older_name is None:
        raise Unsure("it is compared with nothing")
    with ExitStack() as used:
        try:
            older = used.enter_context(kept(session, older_name))
            newer = used.enter_context(kept(session, name))
        except (PoolFull, PoolFailed) as error:
            raise Unsure(f"no snapshot of the layer in use can be taken: {error}") from error
        yield _Pair(_line(session, *older), _line(session, *newer))


def _line(session: Session, record: LayerRecord, found: Storage) -> Sequence[Ancestor]:
    """A layer as it is kept, and those that it descends from."""
    line = [
        Ancestor(storage(each), each.created, each.kind is Kind.COMMITTED) for each in session.state.line(record.handle)
    ]
    if line[0].storage != found:
        line[0] = Ancestor(found, None, lasting=False)
    return line


@contextmanager
def _open(session: Session, name: str, base: str | None, *, track: bool) -> Iterator[_Trees]:
    session.ready()
    record = session.record(name)
    older_name = record.parent_name if base is None else session.record(base).name
    common = None
    if older_name is not None:
        common = session.state.common_ancestor(record.handle, session.record(older_name).handle)
    scope, reason = None, None
    with ExitStack() as looks:
        before = None if older_name is None else looks.enter_context(looked_into(session, older_name))
        after = looks.enter_context(looked_into(session, name))
        if before is None:
            reason = "it is compared with nothing"
        elif common is None:
            reason = "the two layers have no ancestor in common"
        elif track and isinstance(session.driver, Tracking):
            try:
                scope = session.driver.scope(before[0], after[0], storage(common))
            except Unsure as unsure:
                reason = str(unsure)
        yield _Trees(
            None if before is None else before[1],
            after[1],
            None if common is None else common.created,
            scope,
            reason if track else None,
        )
