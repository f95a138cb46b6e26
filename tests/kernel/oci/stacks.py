"""Stacks of layers in a store, random ones and plain ones, and what is in them."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.kernel.layer.trees import Mutator, Step, content, survey
from tests.unit.oci.layouts import layer_tar
from thinpool import Store
from thinpool.metadata import Books

Content = Mapping[bytes, tuple[object, ...]]


def plain(store: Store, *files: str, prefix: str = "") -> list[str]:
    """Make a stack with a layer for each name of a file; their names, from the lowest up."""
    names: list[str] = []
    for file in files:
        archive = io.BytesIO(layer_tar({file: file.encode()}))
        store.import_layer(f"{prefix}{file}", archive, parent=names[-1] if names else None)
        names.append(f"{prefix}{file}")
    return names


def mutated(store: Store, stack: Iterable[Sequence[Step]], prefix: str) -> list[str]:
    """Make a stack of random layers, each what steps make of the one below."""
    names: list[str] = []
    for number, steps in enumerate(stack):
        with store.mount(store.prepare("work", names[-1] if names else None).name) as root:
            Mutator(root).run(step for step in steps if step.operation != "socket")
        names.append(f"{prefix}{number}")
        store.commit(names[-1], "work")
    return names


def tree(store: Store, name: str) -> Content:
    """What is in a layer."""
    with store.mount(name) as root:
        return content(survey(root))


def lineage(store: Store, name: str) -> list[str]:
    """A layer and its ancestors, from the lowest up."""
    parent = store.stat(name).parent
    return [*(lineage(store, parent) if parent is not None else ()), name]


def names(store: Store) -> set[str]:
    return {layer.name for layer in store.walk()}


def remove_all(store: Store) -> None:
    """Remove all layers, the youngest first."""
    while left := names(store):
        parents = {layer.parent for layer in store.walk()}
        for name in left - parents:
            store.remove(name)


def storages(store: Store) -> set[int]:
    """The numbers of all storage that the pool has."""
    with store._session.driver._pool.open_metadata() as device, Books.open(device) as books:  # type: ignore[attr-defined]
        return {details.thin_id for details in books.devices()}


@contextlib.contextmanager
def unchanged(store: Store) -> Iterator[None]:
    """Check that layers, records and storage are the same afterwards."""
    before = names(store), storages(store)
    yield
    assert store._session.state.unfinished() == []
    assert (names(store), storages(store)) == before


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
