"""The durable records of a store: SQLite, one row a layer, in one file that survives crashes.

Write-ahead log with `synchronous=FULL`: a change is durable when its method returns, at the price of one fsync. On
btrfs it is a rollback journal, and two fsyncs more: the log's index is a mapped file, and a process that writes to one
on a full copy-on-write file system is killed (SIGBUS), where a journal that finds no room is an error. The
store's writer lock is held around every method that changes something, so writers never meet here; readers see the
last durable state and wait for nobody.

Handles (the numbers of storage) are reserved in ranges before use. `next_handle` moves on with the row that names a
handle, in the same transaction: so whatever storage exists with a number from `next_handle` to the end of the range
and without a row was made by a writer that died before it could name it.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import attrs

from thinpool.btrfs.ioctl import is_btrfs
from thinpool.crashpoints import point
from thinpool.errors import LayerExists, PoolFull, StateError, ThinPoolError
from thinpool.model import Kind, Layer, Volume

SCHEMA_VERSION = 1
HANDLE_LIMIT = 1 << 24  # thin ids are 24 bits, drivers/md/dm-thin.c
_APPLICATION_ID = 0x7468706C  # "thpl", so that file(1) and we know the database
_RANGE = 256
_BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (
    handle INTEGER PRIMARY KEY,
    name TEXT UNIQUE,
    parent INTEGER REFERENCES layers (handle),
    kind TEXT NOT NULL,
    phase TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    size INTEGER NOT NULL,
    labels TEXT NOT NULL,
    volumes TEXT NOT NULL
);
CREATE INDEX children ON layers (parent) WHERE parent IS NOT NULL;
CREATE INDEX unfinished ON layers (phase) WHERE phase IN ('filling', 'doomed');
"""
_COLUMNS = (
    "SELECT layers.handle, layers.name, layers.parent, up.name, layers.kind, layers.phase, layers.created,"
    " layers.updated, layers.size, layers.labels, layers.volumes"
    " FROM layers LEFT JOIN layers AS up ON up.handle = layers.parent"
)

_COMMON = (
    "WITH RECURSIVE ours (handle, level) AS (SELECT ?, 0 UNION ALL"
    " SELECT layers.parent, level + 1 FROM layers JOIN ours USING (handle) WHERE layers.parent IS NOT NULL),"
    " theirs (handle) AS (SELECT ? UNION ALL"
    " SELECT layers.parent FROM layers JOIN theirs USING (handle) WHERE layers.parent IS NOT NULL)"
    " SELECT handle FROM ours JOIN theirs USING (handle) ORDER BY level LIMIT 1"
)
_LINE = (
    "WITH RECURSIVE line (handle, level) AS (SELECT ?, 0 UNION ALL"
    " SELECT layers.parent, level + 1 FROM layers JOIN line USING (handle) WHERE layers.parent IS NOT NULL)"
)
_NEXT = (
    "SELECT next.value, reserved.value, EXISTS (SELECT 1 FROM layers WHERE handle = CAST(next.value AS INTEGER))"
    " FROM meta AS next, meta AS reserved WHERE next.key = 'next_handle' AND reserved.key = 'reserved_handle'"
)

Phase = Literal["ready", "filling", "doomed", "base"]


@attrs.frozen
class LayerRecord:
    """One layer as the records have it.

    Attributes:
        handle: the number of its storage.
        name: None where the storage only waits to be deleted.
        parent: the parent's handle, or None.
        parent_name: the parent's name, or None.
        kind: see `thinpool.model.Kind`.
        phase: `ready`; `filling` while an import writes it; `doomed` when it is to be deleted; `base` for what a
            driver keeps for itself.
        created: nanoseconds since 1970, UTC.
        updated: likewise.
        size: bytes its file system holds, 0 where there is no fixed size.
        labels: containerd's labels.
        volumes: what was mounted inside it.
    """

    handle: int
    name: str | None
    parent: int | None
    parent_name: str | None
    kind: Kind
    phase: Phase
    created: int
    updated: int
    size: int
    labels: Mapping[str, str]
    volumes: tuple[Volume, ...] = ()

    def layer(self) -> Layer:
        """The record as the store shows it."""
        return Layer(
            name=self.name or "",
            parent=self.parent_name,
            kind=self.kind,
            created=_moment(self.created),
            updated=_moment(self.updated),
            size=self.size,
            labels=self.labels,
            volumes=self.volumes,
        )


def _is_on_btrfs(path: Path) -> bool:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return is_btrfs(fd)
    finally:
        os.close(fd)


def _moment(nanoseconds: int) -> datetime:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


def _record(row: tuple[Any, ...]) -> LayerRecord:
    handle, name, parent, parent_name, kind, phase, created, updated, size, labels, volumes = row
    kept = json.loads(labels) if labels else {}
    inside = tuple(Volume(*fields) for fields in json.loads(volumes)) if volumes else ()
    return LayerRecord(handle, name, parent, parent_name, Kind(kind), phase, created, updated, size, kept, inside)


class State:
    """The records of one store; safe to use from threads, and from a child after a fork.

    Args:
        path: the database file; `exists` tells whether it holds records.

    Raises:
        StateError: not a database of ours, damaged, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.RLock()
        self._pid = os.getpid()
        self._database = self._connect()
        self._inherited: sqlite3.Connection | None = None
        self._gone: list[int] = []

    def _connect(self) -> sqlite3.Connection:
        with _explained(self._path):
            database = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                self._check_version(database)
                database.execute(f"PRAGMA journal_mode = {'PERSIST' if _is_on_btrfs(self._path) else 'WAL'}")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                database.close()
                raise
        return database

    def _check_version(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION_ID:
            raise StateError(f"{self._path} is not a thinpool database")
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self._path} has schema version {version}; this thinpool knows up to {SCHEMA_VERSION}",
                hint="use a newer thinpool",
            )

    def close(self) -> None:
        """Close the database; what matters of every change is durable already."""
        with self._mutex:
            if self._pid != os.getpid():
                return
            if self._gone:
                with suppress(ThinPoolError), self._transaction():
                    pass
            self._database.close()

    @property
    def exists(self) -> bool:
        """Whether the database holds records (a store was created here)."""
        return bool(self._rows("PRAGMA user_version")[0][0])

    def create(self, values: Mapping[str, str]) -> None:
        """Make the schema with its first values, all in one transaction."""
        with self._transaction() as database:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            first = {"next_handle": "1", "reserved_handle": "1"} | dict(values)
            database.executemany("INSERT INTO meta VALUES (?, ?)", first.items())
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    # -- values

    def get(self, key: str) -> str | None:
        """The value kept under a key, or None."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def put(self, key: str, value: str) -> None:
        """Keep a value under a key."""
        with self._transaction() as database:
            _put(database, key, value)

    def put_now(self, values: Mapping[str, str]) -> None:
        """Keep values durably before this returns, also in the middle of a transaction, which is cut in two here."""
        inside = self._connection().in_transaction
        with self._transaction() as database:
            for key, value in values.items():
                _put(database, key, value)
            if inside:
                point("handles-reserve")
                database.execute("COMMIT")
                point("handles-reserved")
                database.execute("BEGIN IMMEDIATE")

    # -- handles

    def allot(self) -> int:
        """The next handle that no row has, inside a durably reserved range.

        The same handle is given again until a row names it or `skip` passes it by. After 2**24 handles the count
        starts again, with the numbers that no row has.

        Raises:
            PoolFull: all numbers are in use.
        """
        (row,) = self._rows(_NEXT)
        handle, reserved, taken = int(row[0]), int(row[1]), bool(row[2])
        for _ in range(HANDLE_LIMIT):
            if handle >= HANDLE_LIMIT:
                handle = reserved = 1
                taken = self.is_named(handle)
            if handle >= reserved:
                reserved = min(handle + _RANGE, HANDLE_LIMIT)
                self.put_now({"next_handle": str(handle), "reserved_handle": str(reserved)})
            if not taken:
                return handle
            handle += 1
            taken = self.is_named(handle)
        raise PoolFull(f"all {HANDLE_LIMIT - 1} numbers for layers are in use", hint="remove layers")

    def skip(self, handle: int) -> None:
        """Never give a handle out in this round: somebody else uses the number."""
        self.put("next_handle", str(handle + 1))

    def claim(self, handle: int, values: Mapping[str, str]) -> None:
        """Name storage that the driver keeps for itself, under no layer, and keep values, in one transaction."""
        with self._transaction() as database:
            for key, value in values.items():
                _put(database, key, value)
            _insert(database, LayerRecord(handle, None, None, None, Kind.COMMITTED, "base", 0, 0, 0, {}))

    def unnamed(self) -> Iterator[int]:
        """The reserved handles without a row, in the order in which they would have been used."""
        handle, reserved = self._range()
        for number in range(handle, reserved):
            if not self.is_named(number):
                yield number

    def is_named(self, handle: int) -> bool:
        """Whether there is a record of that storage, in whatever phase."""
        return bool(self._rows("SELECT 1 FROM layers WHERE handle = ?", handle))

    def _range(self) -> tuple[int, int]:
        rows = dict(self._rows("SELECT key, value FROM meta WHERE key IN ('next_handle', 'reserved_handle')"))
        return int(rows["next_handle"]), int(rows["reserved_handle"])

    # -- layers

    def layer(self, name: str) -> LayerRecord | None:
        """The layer of that name, unless it is still being filled."""
        rows = self._rows(f"{_COLUMNS} WHERE layers.name = ? AND layers.phase = 'ready'", name)
        return _record(rows[0]) if rows else None

    def is_taken(self, name: str) -> bool:
        """Whether a layer has that name, or will have it when its import is done."""
        return bool(self._rows("SELECT 1 FROM layers WHERE name = ?", name))

    def in_any_phase(self, name: str) -> LayerRecord | None:
        """The layer that has that name, or will have it when its import is done."""
        rows = self._rows(f"{_COLUMNS} WHERE layers.name = ?", name)
        return _record(rows[0]) if rows else None

    def by_handle(self, handle: int) -> LayerRecord | None:
        """The record of that storage, in whatever phase."""
        rows = self._rows(f"{_COLUMNS} WHERE layers.handle = ?", handle)
        return _record(rows[0]) if rows else None

    def layers(self) -> list[LayerRecord]:
        """All layers that are ready, by name."""
        return [_record(row) for row in self._rows(f"{_COLUMNS} WHERE layers.phase = 'ready' ORDER BY layers.name")]

    def count(self) -> int:
        """How many layers are ready."""
        return int(self._rows("SELECT count(*) FROM layers WHERE phase = 'ready'")[0][0])

    def unfinished(self) -> list[LayerRecord]:
        """The layers that are being filled, and the storage that is still to be deleted, the youngest first."""
        rows = self._rows(f"{_COLUMNS} WHERE layers.phase IN ('filling', 'doomed') ORDER BY layers.handle DESC")
        return [record for record in map(_record, rows) if record.handle not in self._gone]

    def common_ancestor(self, handle: int, other: int) -> LayerRecord | None:
        """The nearest layer that both layers are or descend from; None where there is none."""
        rows = self._rows(_COMMON, handle, other)
        return self.by_handle(rows[0][0]) if rows else None

    def line(self, handle: int) -> list[LayerRecord]:
        """A layer and those that it descends from, the nearest first."""
        joined = _COLUMNS.replace(" FROM layers ", " FROM line JOIN layers ON layers.handle = line.handle ")
        return [_record(row) for row in self._rows(f"{_LINE} {joined} ORDER BY line.level", handle)]

    def offspring(self, handle: int) -> list[int]:
        """The storage of a layer's children, those that are being filled included."""
        return [int(row[0]) for row in self._rows("SELECT handle FROM layers WHERE parent = ? ORDER BY handle", handle)]

    def children(self, handle: int) -> list[str]:
        """The names of a layer's children, those that are being filled included."""
        return [str(row[0]) for row in self._rows("SELECT name FROM layers WHERE parent = ? ORDER BY name", handle)]

    def add(self, record: LayerRecord) -> None:
        """Name new storage; its handle must be the one that `allot` gave.

        Raises:
            LayerExists: the name is taken.
        """
        with self._transaction() as database:
            _insert(database, record)

    def publish(self, handle: int, now: int, labels: Mapping[str, str]) -> None:
        """Make a filled layer a committed one."""
        self._change(
            "UPDATE layers SET phase = 'ready', created = ?, updated = ?, labels = ? WHERE handle = ?",
            now, now, _text(labels), handle,
        )  # fmt: skip

    def commit(self, handle: int, name: str, now: int, labels: Mapping[str, str]) -> None:
        """Make an active layer a committed one of another name: same storage, one row.

        Raises:
            LayerExists: the name is taken.
        """
        self._change(
            "UPDATE layers SET name = ?, kind = 'committed', created = ?, updated = ?, labels = ? WHERE handle = ?",
            name, now, now, _text(labels), handle,
        )  # fmt: skip

    def commit_copy(self, record: LayerRecord, active: int) -> None:
        """Name a committed copy and doom the storage it was taken from, in one transaction.

        Raises:
            LayerExists: the name is taken.
        """
        with self._transaction() as database:
            _doom(database, active)
            _insert(database, record)

    def relabel(self, handle: int, now: int, labels: Mapping[str, str]) -> None:
        """Replace a layer's labels."""
        self._change("UPDATE layers SET labels = ?, updated = ? WHERE handle = ?", _text(labels), now, handle)

    def set_volumes(self, handle: int, volumes: Sequence[Volume]) -> None:
        """Replace a layer's list of volumes."""
        self._change("UPDATE layers SET volumes = ? WHERE handle = ?", _volumes_text(volumes), handle)

    def doom(self, handle: int) -> None:
        """Give a layer's name free and mark its storage for deletion."""
        with self._transaction() as database:
            _doom(database, handle)

    def forget(self, handle: int) -> None:
        """Drop the row of storage that is gone, with the next change or when the database is closed.

        Where that never comes, the row is found doomed again, and its storage gone.
        """
        with self._mutex:
            self._gone.append(handle)

    # -- the database

    def _connection(self) -> sqlite3.Connection:
        if self._pid != os.getpid():  # a connection must not be carried across a fork
            self._inherited = self._database  # kept, as closing it here would disturb the parent
            self._mutex = threading.RLock()
            self._database = self._connect()
            self._pid = os.getpid()
        return self._database

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        database = self._connection()
        with self._mutex, _explained(self._path):
            return database.execute(statement, values).fetchall()

    def _change(self, statement: str, *values: object) -> None:
        with self._transaction() as database:
            database.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything that is read and changed in the block one transaction, durable at its end."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._connection()
        with self._mutex, _explained(self._path):
            if database.in_transaction:
                yield database
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                gone = len(self._gone)
                if gone:
                    database.executemany("DELETE FROM layers WHERE handle = ?", [(handle,) for handle in self._gone])
                yield database
                point("records-write")
                database.execute("COMMIT")
                point("records-written")
                del self._gone[:gone]
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise


def _put(database: sqlite3.Connection, key: str, value: str) -> None:
    database.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )


def _doom(database: sqlite3.Connection, handle: int) -> None:
    database.execute("UPDATE layers SET name = NULL, parent = NULL, phase = 'doomed' WHERE handle = ?", (handle,))


def _insert(database: sqlite3.Connection, record: LayerRecord) -> None:
    row = (
        record.handle, record.name, record.parent, record.kind.value, record.phase, record.created, record.updated,
        record.size, _text(record.labels), _volumes_text(record.volumes),
    )  # fmt: skip
    database.execute("INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    _put(database, "next_handle", str(record.handle + 1))


def _text(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), sort_keys=True) if labels else ""


def _volumes_text(volumes: Sequence[Volume]) -> str:
    fields = [(os.fspath(volume.source), volume.target, volume.read_only) for volume in volumes]
    return json.dumps(fields) if fields else ""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        if "layers.name" in str(error):
            raise LayerExists("a layer of that name exists already") from error
        raise StateError(f"{path}: {error}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise PoolFull(f"no space left for the records in {path}", hint="free space on that file system") from error
        raise StateError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StateError(f"{path} is damaged: {error}") from error
