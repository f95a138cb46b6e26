"""Open a store, or make one: the root claimed, a driver chosen, records and storage begun."""

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import attrs

from thinpool import recovery
from thinpool.crashpoints import point
from thinpool.drivers import selection
from thinpool.drivers.base import Context, Driver
from thinpool.errors import ConfigError, NotPermitted, StoreNotFound
from thinpool.locks import LockFile
from thinpool.root import Root, resolve
from thinpool.session import Session
from thinpool.state import State

_OPTIONS = "options"
_DRIVER = "driver"
_COMPLETE = "complete"


@attrs.frozen
class Opened:
    """A session, and whether this call made the store."""

    session: Session
    created: bool


def open_store(path: Path, driver: str | None, options: Mapping[str, str], *, create: bool) -> Opened:
    """Open the store at a root; make it, under the writer lock, where there is none or only a begun one.

    A process that dies while it makes a store leaves one that is begun: the next `open` with `create` finishes it.

    Raises:
        StoreNotFound: there is none, and `create` is false.
        ConfigError, DriverUnsupported, DeviceUnsafe, NotPermitted: see `thinpool.Store.open`.
    """
    point.begin(os.environ)
    root = resolve(path)
    if os.geteuid() != 0:
        raise NotPermitted("thinpool needs root: it mounts file systems and controls devices", hint="run as root")
    if not create and not root.is_store():
        raise _missing(root)
    name = selection.choose(root.path, driver)
    if root.is_store():
        opened = _reopen(root, name, options)
        if opened is not None:
            return opened
        if not create:
            raise _missing(root)
    selection.driver_type(name).check(options)
    root.claim(frozenset(selection.names()))
    with LockFile(root.lock).writer():
        opened = _reopen(root, name, options) if root.is_store() else None
        return opened or _make(root, name, options)


def _missing(root: Root) -> StoreNotFound:
    return StoreNotFound(f"no store is at {root.path}", hint="thinpool init makes one")


def _reopen(root: Root, name: str, options: Mapping[str, str]) -> Opened | None:
    """Open a complete store; None where it is only begun."""
    with ExitStack() as undo:
        state = State(root.database)
        undo.callback(state.close)
        if not state.exists or state.get(_COMPLETE) is None:
            return None
        recorded = state.get(_DRIVER)
        if recorded != name:
            raise ConfigError(f"the store at {root.path} is one of the {recorded} driver, not of {name}")
        opened = selection.driver_type(name).open(_context(root, name, state, options))
        undo.callback(opened.close)
        keep_options(state, opened)
        undo.pop_all()
    return Opened(Session(root, state, opened), created=False)


def _make(root: Root, name: str, options: Mapping[str, str]) -> Opened:
    """Make a store, or finish one that is begun; the caller holds the writer lock."""
    begun = root.is_store()
    with ExitStack() as undo:
        if not begun:
            undo.callback(root.abandon)
        os.makedirs(root.mounts, mode=0o700, exist_ok=True)
        point("mounts-directory-made")
        state = State(root.database)
        point("records-file-made")
        undo.callback(state.close)
        if not state.exists:
            state.create({_DRIVER: name})
        made = selection.driver_type(name).create(_context(root, name, state, options))
        undo.callback(made.close)
        state.put(_OPTIONS, json.dumps(dict(made.options)))
        if begun:
            recovery.mend(state, made, LockFile(root.lock), root.mounts)
        state.put(_COMPLETE, "yes")
        undo.pop_all()
    return Opened(Session(root, state, made), created=True)


def _context(root: Root, name: str, state: State, given: Mapping[str, str]) -> Context:
    recorded: Mapping[str, str] = json.loads(state.get(_OPTIONS) or "{}")
    return Context(root=root.path, directory=root.driver(name), records=state, recorded=recorded, given=given)


def keep_options(state: State, driver: Driver) -> None:
    """Record the driver's options where they have changed."""
    now = json.dumps(dict(driver.options))
    if state.get(_OPTIONS) != now:
        state.put(_OPTIONS, now)
