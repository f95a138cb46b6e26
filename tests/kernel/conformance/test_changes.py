"""The changes between any two layers of a store, by every way of finding them that the driver has."""

import os
import shutil
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import Everything, fill, methods, text, told
from thinpool import Store
from thinpool.drivers.base import Comparing, Tracking
from thinpool.errors import DriverUnsupported

pytestmark = pytest.mark.kernel(device_mapper=False)

Told = list[tuple[str, str]]


def compared(store: Store, name: str, base: str | None = None) -> Told:
    """The changes, found in every way, which must agree; one that gives up says so and is left out."""
    found: list[Told] = []
    for method in methods(store):
        try:
            changes = store.changes(name, base, method=method)
        except DriverUnsupported:
            assert method == "fast"
            continue
        assert changes.method == ("walk" if method == "walk" else changes.method)
        found.append(told(changes))
    assert all(other == found[0] for other in found)
    return found[0]


@pytest.fixture
def family(store: Store) -> Store:
    """`base`, its child `left` and grandchild `lower`, another child `right`, and `stranger`, who has no parent."""

    def base(root: Path) -> None:
        (root / "d").mkdir()
        for name in ("a", "b", "d/c"):
            (root / name).write_text(name)

    def left(root: Path) -> None:
        (root / "a").write_text("left")
        (root / "left").mkdir()

    def lower(root: Path) -> None:
        (root / "b").unlink()
        (root / "left/new").write_text("new")
        (root / "a").write_text("lower")

    def right(root: Path) -> None:
        shutil.rmtree(root / "d")
        (root / "d").write_text("a file")

    fill(store, "base", base)
    fill(store, "left", left, "base")
    fill(store, "lower", lower, "left")
    fill(store, "right", right, "base")
    fill(store, "stranger", text("b", "stranger"))
    return store


RELATIONS: dict[str, tuple[str, str | None, Told]] = {
    "parent": ("left", "base", [("C", "/a"), ("A", "/left")]),
    "parent by default": ("lower", None, [("C", "/a"), ("D", "/b"), ("A", "/left/new")]),
    "grandparent": ("lower", "base", [("C", "/a"), ("D", "/b"), ("A", "/left"), ("A", "/left/new")]),
    "child": ("base", "left", [("C", "/a"), ("D", "/left")]),
    "grandchild": ("base", "lower", [("C", "/a"), ("A", "/b"), ("D", "/left")]),
    "sibling": ("left", "right", [("C", "/a"), ("C", "/d"), ("A", "/d/c"), ("A", "/left")]),
    "sibling reversed": ("right", "left", [("C", "/a"), ("C", "/d"), ("D", "/left")]),
    "nephew": ("right", "lower", [("C", "/a"), ("A", "/b"), ("C", "/d"), ("D", "/left")]),
    "stranger": ("left", "stranger", [("A", "/a"), ("C", "/b"), ("A", "/d"), ("A", "/d/c"), ("A", "/left")]),
    "to a stranger": ("stranger", "left", [("D", "/a"), ("C", "/b"), ("D", "/d"), ("D", "/left")]),
    "itself": ("lower", "lower", []),
    "nothing": ("base", None, [("A", "/a"), ("A", "/b"), ("A", "/d"), ("A", "/d/c")]),
}


@pytest.mark.parametrize(("name", "base", "expected"), RELATIONS.values(), ids=RELATIONS)
def test_against_any_other_layer(family: Store, name: str, base: str | None, expected: Told) -> None:
    before = Everything.of(family)
    assert compared(family, name, base) == expected
    assert Everything.of(family) == before


def test_a_new_layer_and_a_view_have_none(family: Store) -> None:
    family.prepare("work", "lower")
    family.view("look", "lower")
    for name in ("work", "look"):
        assert compared(family, name) == []
        assert compared(family, name, "base") == RELATIONS["grandparent"][2]
    with family.mount("work") as root:
        for path in root.rglob("*"):
            path.stat()
            if path.is_file():
                path.read_bytes()
    assert compared(family, "work") == []


def test_two_active_layers_while_both_are_mounted(family: Store) -> None:
    family.prepare("one", "base")
    family.prepare("two", "base")
    with family.mount("one") as one, family.mount("two") as two:
        (one / "own").write_text("one")
        (two / "own").write_text("two")
        (one / "d/c").unlink()
        assert compared(family, "one", "two") == [("D", "/d/c"), ("C", "/own")]
        assert compared(family, "one") == [("D", "/d/c"), ("A", "/own")]
        (two / "own").unlink()
        assert compared(family, "two") == []


def test_looking_does_not_end_up_in_what_is_looked_at(family: Store) -> None:
    family.prepare("work", "base")
    with family.mount("work", read_only=True) as root:
        assert (root / "a").read_text() == "a"
        assert compared(family, "work") == []
    assert compared(family, "work") == []


def test_only_the_top_of_what_was_removed_is_told(family: Store) -> None:
    family.prepare("work", "left")
    with family.mount("work") as root:
        (root / "left/tree/of/files").mkdir(parents=True)
        (root / "left/tree/of/files/f").touch()
    family.commit("with", "work")
    family.prepare("work", "with")
    with family.mount("work") as root:
        shutil.rmtree(root / "left/tree")
        shutil.rmtree(root / "d")
    assert compared(family, "work") == [("D", "/d"), ("D", "/left/tree")]


def test_the_times_of_directories_are_no_change(family: Store) -> None:
    family.prepare("work", "base")
    with family.mount("work") as root:
        os.utime(root / "d", ns=(0, 0))
        (root / "d/new").touch()
        (root / "d/new").unlink()
        (root / "new").mkdir()
        (root / "new").rmdir()
        os.utime(root, ns=(0, 0))
    assert compared(family, "work") == []


def test_the_way_that_was_taken_is_told(family: Store) -> None:
    assert family.changes("left", method="walk").method == "walk"
    if isinstance(family._session.driver, Tracking | Comparing):
        assert family.changes("left", method="fast").method == "fast"
        assert family.changes("left").reason is None
    else:
        with pytest.raises(DriverUnsupported):
            family.changes("left", method="fast")


def test_after_the_parent_s_names_went_to_other_layers(family: Store) -> None:
    """A new layer of a name that was free has nothing to do with the old one."""
    family.remove("lower")
    family.remove("left")
    fill(family, "left", text("z"), "right")
    assert compared(family, "left") == [("A", "/z")]
    assert compared(family, "left", "base") == [("C", "/d"), ("A", "/z")]
