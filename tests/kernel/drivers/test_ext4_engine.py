"""The O(changes) comparison of ext4 layers against the walk and the simple account, on random trees.

Many small trees lie side by side in one layer, each with operations of its own, and each pair of layers counts as one
diff a tree. What is done is made from a make's name and a number, which stand in the test's name.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
import pytest

from tests.kernel.conformance.layers import look
from tests.kernel.drivers.engine import MAKES, REFUSED, Make, store_of
from tests.kernel.layer.trees import OPERATIONS, Mutator, Step, Tree, expected_changes, survey
from thinpool import Store
from thinpool.errors import DriverUnsupported
from thinpool.model import Change

pytestmark = pytest.mark.kernel

TREES = 5
LONG_TREES = 20
LONG_ROUNDS = 9
MAKING = ("create", "mkdir", "link", "symlink", "set_xattr", "chmod", "device", "sparse")

PAIRS = [
    ("child", "base"), ("base", "child"), ("grandchild", "child"), ("grandchild", "base"), ("base", "grandchild"),
    ("other", "child"), ("grandchild", "other"), ("stranger", "grandchild"),
]  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_number" in metafunc.fixturenames:
        metafunc.parametrize("round_number", range(LONG_ROUNDS if metafunc.config.getoption("--long") else 1))


@attrs.frozen
class Play:
    """Random operations on the trees of one store.

    Attributes:
        seed: what they are made from.
        trees: how many trees there are.
    """

    seed: str
    trees: int

    def steps(self, generation: int, tree: int) -> list[Step]:
        """What is done to one tree: mostly making at first, and anything afterwards."""
        dice = random.Random(f"{self.seed} {generation} {tree}")
        count = dice.randrange(8, 25) if generation == 0 else dice.randrange(0, 10)
        making = generation == 0
        return [
            Step(
                dice.choice(MAKING if making and dice.random() < 0.7 else OPERATIONS),
                *(dice.randrange(1 << 16) for _ in range(3)),
            )
            for _ in range(count)
        ]

    def run(self, generation: int, root: Path) -> None:
        """Do it to all trees, and now and then exchange or move whole ones."""
        for tree in range(self.trees):
            place = root / f"tree-{tree:02}"
            place.mkdir(exist_ok=True)
            Mutator(place).run(self.steps(generation, tree))
        dice = random.Random(f"{self.seed} {generation}")
        if generation and dice.random() < 0.5:
            first, second = dice.sample(range(self.trees), 2)
            (root / f"tree-{first:02}").rename(root / "away")
            (root / f"tree-{second:02}").rename(root / f"tree-{first:02}")
            (root / "away").rename(root / f"tree-{second:02}")
        if generation and dice.random() < 0.3:
            root.chmod(0o700 + generation)


def make_layer(store: Store, play: Play, name: str, parent: str | None, generation: int, size: str | None) -> Tree:
    """A committed layer in which a generation was played, and what was seen in it."""
    store.prepare("work", parent, size=size)
    with store.mount("work") as root:
        play.run(generation, root)
        tree = survey(root)
        if generation % 2:
            store.commit(name, "work")  # a snapshot while it is mounted
    if not generation % 2:
        store.commit(name, "work")
    return tree


def assert_same(play: Play, found: Sequence[Change], expected: Sequence[Change], said: str) -> None:
    """Name the trees that differ, and what was done to them."""
    wrong = sorted({change.path.split("/")[1] for change in set(found) ^ set(expected)})
    numbers = [int(name.removeprefix("tree-")) for name in wrong if name.startswith("tree-")]
    done = [f"{tree}: {generation}: {play.steps(generation, tree)}" for tree in numbers for generation in range(5)]
    assert list(found) == list(expected), "\n".join([said, *done])


def check(store: Store, play: Play, trees: Mapping[str, Tree], pairs: Sequence[tuple[str, str]] = tuple(PAIRS)) -> None:
    """Fast and model agree on some pairs, and the walk on every other one."""
    for number, (newer, older) in enumerate(pairs):
        expected = expected_changes(trees[older], trees[newer])
        methods: list[Literal["fast", "walk"]] = ["fast"] if number % 2 else ["fast", "walk"]
        for method in methods:
            changes = store.changes(newer, older, method=method)
            assert_same(play, changes, expected, f"{play.seed}: {method}: {newer} against {older}")
            assert changes.method == method


LAYERS = (("child", "base"), ("grandchild", "child"), ("other", "base"), ("stranger", None))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
def test_changes_are_those_of_walk_and_model(
    request: pytest.FixtureRequest, make: Make, round_number: int, *, long_run: bool
) -> None:
    """Child, grandchild, sibling and stranger, both ways round, where one layer was grown online."""
    play = Play(f"{request.node.name}", LONG_TREES if long_run else TREES)
    with store_of(make) as store:
        trees = {"base": make_layer(store, play, "base", None, 0, None)}
        for generation, (name, parent) in enumerate(LAYERS, 1):
            grown = "224M" if make.grows and round_number % 2 == 0 and name == "grandchild" else None
            trees[name] = make_layer(store, play, name, parent, generation if parent else 0, grown)
        check(store, play, trees)


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_walked(make: Make) -> None:
    """`auto` says why, and `fast` fails with that."""
    play = Play(make.reason, 2)
    with store_of(make) as store:
        make_layer(store, play, "base", None, 0, None)
        make_layer(store, play, "child", "base", 1, None)
        expected = expected_changes(look(store, "base"), look(store, "child"))  # anew: small inodes cut times off
        changes = store.changes("child")
        assert (list(changes), changes.method) == (expected, "walk")
        assert make.reason in str(changes.reason)
        with pytest.raises(DriverUnsupported, match=make.reason) as failed:
            store.changes("child", method="fast")
        assert failed.value.exit_status == 6
