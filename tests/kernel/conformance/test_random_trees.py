"""Random trees and random operations: what drivers tell of two layers, and carry, against a model made to be obvious.

The model is `expected_changes`: two listings compared path by path. Many small trees lie side by side in one layer,
each with operations of its own, so that one mount serves them all; each counts as one run. A batch is made from its
number alone, which stands in the test's name, so that a failure is repeated by running that test.
"""

import contextlib
import io
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from tests.kernel.conformance.conftest import found_drivers
from tests.kernel.conformance.drivers import DRIVERS, opened
from tests.kernel.conformance.layers import clear, exported, look, methods
from tests.kernel.layer.trees import OPERATIONS, Mutator, Step, Tree, content, expected_changes, survey
from thinpool import Store
from thinpool.drivers.base import Comparing, Tracking
from thinpool.model import Change

pytestmark = pytest.mark.kernel(device_mapper=False)

TREES = 25
BATCHES = 8
LONG_BATCHES = 200
CARRIED = 8
LONG_CARRIED = 40
INCOHERENT = frozenset(driver.name for driver in DRIVERS if not driver.coherent)
MAKING = ("create", "mkdir", "link", "symlink", "set_xattr", "chmod", "device")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    long = metafunc.config.getoption("--long")
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", range(LONG_BATCHES if long else BATCHES))
    if "carried" in metafunc.fixturenames:
        metafunc.parametrize("carried", range(LONG_CARRIED if long else CARRIED))


@attrs.frozen
class Batch:
    """Operations for many trees.

    Attributes:
        number: what they are made from.
        without: operations that are left out.
        longest: bytes of the longest name; 0 for what the file system takes.
    """

    number: int
    without: frozenset[str] = frozenset()
    longest: int = 0

    def steps(self, generation: int, tree: int) -> list[Step]:
        """What is done to one tree: much is made in the first generation, and anything happens in the others."""
        dice = random.Random(f"{self.number} {generation} {tree}")
        operations = [name for name in OPERATIONS if name not in self.without]
        count = dice.randrange(6, 20) if generation == 0 else dice.randrange(1, 12)
        return [
            Step(
                dice.choice(MAKING if generation == 0 and dice.random() < 0.6 else operations),
                *(dice.randrange(1 << 16) for _ in range(3)),
            )
            for _ in range(count)
        ]

    def play(self, generation: int, root: Path) -> None:
        """Do it to all trees; and to the layer's root itself, as if it were one more."""
        for tree in range(TREES):
            place = root / f"tree-{tree:02}"
            place.mkdir(exist_ok=True)
            Mutator(place, self.longest).run(self.steps(generation, tree))
        if generation and random.Random(self.number).random() < 0.3:
            root.chmod(0o700 + generation)


def make(store: Store, batch: Batch, name: str, parent: str | None, generation: int) -> Tree:
    """A committed layer in which a generation was played, and what was seen in it."""
    store.prepare("work", parent)
    with store.mount("work") as root:
        batch.play(generation, root)
        tree = survey(root)
    store.commit(name, "work")
    return look(store, name) if store.driver in INCOHERENT else tree


def assert_same(batch: Batch, found: Sequence[Change], expected: Sequence[Change], said: str) -> None:
    """Name the trees that differ, and what was done to them."""
    wrong = sorted({change.path.split("/")[1] for change in set(found) ^ set(expected)})
    numbers = [int(name.rpartition("-")[2]) for name in wrong if name.startswith("tree-")]
    details = [f"{tree}: {generation}: {batch.steps(generation, tree)}" for tree in numbers for generation in range(4)]
    assert list(found) == list(expected), "\n".join([said, *details])


def test_changes_are_those_of_the_model(store: Store, batch: int) -> None:
    """Fast, walk and model agree: child, sibling and grandchild, both ways round."""
    played = Batch(batch)
    trees = {"base": make(store, played, "base", None, 0)}
    for generation, (name, parent) in enumerate((("child", "base"), ("grandchild", "child"), ("other", "base")), 1):
        trees[name] = make(store, played, name, parent, generation)
    pairs = [("child", "base"), ("grandchild", "child"), ("grandchild", "base"), ("other", "child"), ("base", "other")]
    fast = isinstance(store._session.driver, Tracking | Comparing)
    for newer, older in pairs:
        expected = expected_changes(trees[older], trees[newer])
        for method in methods(store):
            changes = store.changes(newer, older, method=method)
            assert_same(played, changes, expected, f"{method}: {newer} against {older}")
        assert not fast or changes.method == "walk"
    for name in ("grandchild", "other"):
        assert content(look(store, name)) == content(trees[name])


def names_longest(store: Store) -> int:
    """The longest name that a layer can have, in bytes."""
    store.prepare("empty")
    with store.mount("empty") as root:
        longest = os.statvfs(root).f_namemax
    store.remove("empty")
    return longest


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest) -> Iterator[dict[str, Store]]:
    """An open store of every driver of ours that this kernel has."""
    found = found_drivers(request.config)
    with contextlib.ExitStack() as stack:
        yield {
            driver.name: stack.enter_context(opened(driver))
            for driver in DRIVERS
            if found[driver.name] and driver.module is None
        }


@pytest.fixture
def all_stores(stores: dict[str, Store]) -> Iterator[dict[str, Store]]:
    """The same, empty."""
    yield stores
    for store in stores.values():
        clear(store)


def test_trees_travel_between_drivers(all_stores: dict[str, Store], carried: int) -> None:
    """What one driver exports, base and child, every other imports as the same tree and exports as the same bytes.

    Without sockets, which no archive holds, so that their whiteouts would be the only trace of them.
    """
    longest = min(names_longest(store) for store in all_stores.values())
    played = Batch(1_000_000 + carried, without=frozenset({"socket"}), longest=longest)
    for name, store in all_stores.items():
        trees = [make(store, played, "base", None, 0), make(store, played, "child", "base", 1)]
        archives = [exported(store, "base"), exported(store, "child")]
        for other_name, other in all_stores.items():
            if other is store:
                continue
            base, child = f"{name}.base", f"{name}.child"
            other.import_layer(base, io.BytesIO(archives[0]))
            other.import_layer(child, io.BytesIO(archives[1]), parent=base)
            said = f"from {name} to {other_name}"
            assert [content(look(other, layer)) for layer in (base, child)] == [content(tree) for tree in trees], said
            assert [exported(other, layer) for layer in (base, child)] == archives, said
