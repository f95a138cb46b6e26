"""Layers compared with each other, and the difference exported, by looking into two trees where they may differ."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Literal

import attrs

from thinpool.drivers.base import Tracking, Unsure
from thinpool.errors import ConfigError, DriverUnsupported
from thinpool.layer.archive import ArchiveResult, write_layer
from thinpool.layer.changes import walk
from thinpool.layer.scope import Scope
from thinpool.model import Change, Changes
from thinpool.mounting import looked_into
from thinpool.session import Session, storage

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
    if method == "fast" and not isinstance(session.driver, Tracking):
        raise DriverUnsupported(
            f"the {session.driver.name} driver has no fast comparison", hint="use method auto or walk"
        )
    with _open(session, name, base, track=method != "walk") as trees:
        if method == "fast" and trees.scope is None:
            raise DriverUnsupported(f"no fast comparison of {name}: {trees.reason}", hint="use method auto or walk")
        return Changes(tuple(trees.changes()), "walk" if trees.scope is None else "fast", trees.reason)


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
    with _open(session, name, base, track=True) as trees:
        return write_layer(fileobj, trees.older, trees.newer, trees.changes(), compress=compress, progress=progress)


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
