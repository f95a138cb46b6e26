"""The fast comparison of overlay layers against the walk and the simple account, on random trees."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.layer.trees import Mutator, Step, examples, expected_changes, makings, steps, survey
from thinpool import Store

pytestmark = pytest.mark.kernel

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared(ext4: Path) -> Iterator[Store]:
    """One store for all examples; each removes what it made."""
    with Store.open(ext4 / "shared", "overlay") as store:
        yield store
        store.down()
    shutil.rmtree(ext4 / "shared")


def grow(store: Store, parent: str | None, change: list[Step], *, live: bool = False) -> str:
    """A committed layer with some changes; `live` commits it while it is mounted."""
    name = f"layer-{next(_numbers)}"
    store.prepare(f"{name}.work", parent)
    with store.mount(f"{name}.work") as root:
        Mutator(root).run(change)
        if live:
            store.commit(name, f"{name}.work")
    if not live:
        store.commit(name, f"{name}.work")
    return name


def check(store: Store, older: str, newer: str) -> None:
    with store.mount(older) as old, store.mount(newer) as new:
        expected = expected_changes(survey(old), survey(new))
    assert list(store.changes(newer, older, method="walk")) == expected
    assert list(store.changes(newer, older, method="fast")) == expected


@pytest.mark.timeout(900)
@examples(120)
@given(first=makings, second=steps, third=steps, side=steps, live=st.booleans())
def test_of_random_chains_equals_the_walk(
    shared: Store, first: list[Step], second: list[Step], third: list[Step], side: list[Step], live: bool
) -> None:
    base = grow(shared, None, first)
    child = grow(shared, base, second)
    grandchild = grow(shared, child, third, live=live)
    other = grow(shared, base, side, live=not live)
    check(shared, base, child)
    check(shared, child, grandchild)
    check(shared, base, grandchild)
    check(shared, grandchild, base)
    check(shared, grandchild, other)
    for name in (grandchild, other, child, base):
        shared.remove(name)
    assert sorted(path.name for path in (shared.root / "overlay/d").iterdir()) == ["0"]


@pytest.mark.timeout(600)
@examples(25)
@given(first=makings, more=st.lists(steps, min_size=7, max_size=7))
def test_of_layers_that_were_made_one_equals_the_walk(shared: Store, first: list[Step], more: list[list[Step]]) -> None:
    """As the one before, where a mount takes no more than four layers."""
    branches = shared._session.driver._branches  # type: ignore[attr-defined]
    usual, branches._most = branches._most, 4
    try:
        names = [grow(shared, None, first)]
        for change in more:
            with shared.mount(names[-1]) as root:
                before = survey(root)
            shared.prepare("same", names[-1])
            with shared.mount("same") as root:  # the same tree, whatever was copied to make it
                assert expected_changes(before, survey(root)) == []
            shared.remove("same")
            names.append(grow(shared, names[-1], change))
        check(shared, names[-2], names[-1])
        check(shared, names[0], names[-1])
        check(shared, names[-1], names[2])
        for name in reversed(names):
            shared.remove(name)
    finally:
        branches._most = usual
