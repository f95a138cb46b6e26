"""Short words for what the tests do with layers all the time."""

import io
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from tests.kernel.layer.trees import Entry, Tree, survey
from thinpool import Layer, Store
from thinpool.drivers.base import Comparing, Tracking
from thinpool.drivers.devicemapper import Devicemapper
from thinpool.filesystem.mounts import mount_table
from thinpool.model import Change

Method = Literal["auto", "fast", "walk"]
Facts = dict[bytes, tuple[object, ...]]


def fill(store: Store, name: str, write: Callable[[Path], object], parent: str | None = None) -> Layer:
    """A committed layer with what `write` did to its root directory."""
    store.prepare(f"{name}.work", parent)
    with store.mount(f"{name}.work") as root:
        write(root)
    return store.commit(name, f"{name}.work")


def text(name: str, data: str = "text") -> Callable[[Path], object]:
    """Write a text file, for `fill`."""
    return lambda root: (root / name).write_text(data)


def look(store: Store, name: str) -> dict[bytes, Entry]:
    """Everything in a layer, as seen through a mount."""
    with store.mount(name, read_only=True) as root:
        return survey(root)


def facts(tree: Tree) -> Facts:
    """What must be the same in two mounts of one tree: all but inode numbers, and of those which are the same."""
    names = defaultdict(list)
    for path, entry in sorted(tree.items()):
        if not entry.directory:
            names[entry.inode].append(path)
    return {path: (entry.what, entry.mtime_ns, names[entry.inode]) for path, entry in tree.items()}


def contents(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """The type of every path, the data of files, and which paths are one file."""
    names = defaultdict(list)
    for path, entry in sorted(tree.items()):
        if not entry.directory:
            names[entry.inode].append(path)
    return {
        path: (
            stat.S_IFMT(entry.mode),
            entry.what[3:5] if entry.mode and stat.S_ISREG(entry.mode) else (),
            names[entry.inode],
        )
        for path, entry in tree.items()
    }


def names_in(store: Store) -> set[str]:
    """The names of all layers."""
    return {layer.name for layer in store.walk()}


def told(changes: Sequence[Change]) -> list[tuple[str, str]]:
    """Changes as pairs."""
    return [(change.kind, change.path) for change in changes]


def methods(store: Store) -> Sequence[Method]:
    """The ways of comparing that the store's driver has."""
    fast = isinstance(store._session.driver, Tracking | Comparing)
    return ("auto", "fast", "walk") if fast else ("auto", "walk")


def exported(store: Store, name: str, base: str | None = None) -> bytes:
    """A layer as an archive."""
    archive = io.BytesIO()
    store.export_layer(name, archive, base)
    return archive.getvalue()


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on a path; os.path.ismount takes no bind mount for one."""
    return path in {entry.target for entry in mount_table()}


@attrs.frozen
class Everything:
    """What a failed call must leave as it was."""

    layers: Sequence[Layer]
    mounted: frozenset[str]
    unfinished: int
    private: Sequence[str]

    @classmethod
    def of(cls, store: Store) -> "Everything":
        state = store._session.state
        return cls(tuple(store.walk()), store.mounted(), len(state.unfinished()), os.listdir(store.root / "mnt"))


def end_guard(store: Store) -> None:
    """End the process that stays beside a store for as long as it is open, once a layer in use was copied."""
    if isinstance(driver := store._session.driver, Devicemapper):
        driver._thins.close()


def clear(store: Store) -> None:
    """Take every layer away, children first, and see that nothing else is left in the store."""
    for layer in store.walk():
        for target in store.mounts(layer.name):
            store.unmount(target)
    left = {layer.name: layer.parent for layer in store.walk()}
    while left:
        for name in set(left).difference(left.values()):
            store.remove(name)
            del left[name]
    store.up()
    assert Everything.of(store) == Everything((), frozenset(), 0, [])
