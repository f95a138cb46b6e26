"""What layers occupy: never negative, not less than what was written, and gone with the layer."""

import os
from pathlib import Path

import pytest

from tests.kernel.conformance.drivers import Driver
from tests.kernel.conformance.layers import fill, text
from thinpool import Store, Usage

pytestmark = pytest.mark.kernel(device_mapper=False)

MIB = 1 << 20


def assert_sane(usage: Usage) -> None:
    assert 0 <= usage.size <= usage.referenced
    assert 0 <= usage.exclusive <= usage.referenced
    assert usage.inodes is None or usage.inodes >= 0


def written(root: Path, name: str, size: int) -> None:
    with (root / name).open("wb") as file:
        file.write(os.urandom(size))
        os.fsync(file.fileno())


def test_what_was_written_is_counted(store: Store) -> None:
    fill(store, "base", text("f"))
    fill(store, "done", lambda root: written(root, "data", 8 * MIB), "base")
    usage = store.usage("done")
    assert_sane(usage)
    assert 8 * MIB <= usage.size < 12 * MIB
    assert 8 * MIB <= usage.exclusive < 12 * MIB
    assert usage.referenced >= usage.size


def test_a_new_layer_and_a_view_hold_next_to_nothing(store: Store, driver: Driver) -> None:
    fill(store, "base", lambda root: written(root, "data", 8 * MIB))
    store.prepare("work", "base")
    store.view("look", "base")
    for name in ("work", "look"):
        with store.mount(name):
            pass
        usage = store.usage(name)
        assert_sane(usage)
        assert usage.referenced >= 8 * MIB
        if driver.shares:
            assert usage.size < MIB
            assert usage.exclusive < MIB


def test_a_layer_whose_files_were_removed_is_not_negative(store: Store) -> None:
    fill(store, "base", lambda root: written(root, "data", 8 * MIB))
    fill(store, "less", lambda root: (root / "data").unlink(), "base")
    usage = store.usage("less")
    assert_sane(usage)
    assert usage.size < 2 * MIB


def test_what_a_child_shares_is_not_exclusive_to_it(store: Store, driver: Driver) -> None:
    fill(store, "base", lambda root: written(root, "data", 8 * MIB))
    alone = store.usage("base")
    assert alone.exclusive >= 8 * MIB
    fill(store, "child", lambda root: written(root, "more", 2 * MIB), "base")
    child = store.usage("child")
    assert_sane(child)
    assert child.exclusive >= 2 * MIB
    if driver.shares:
        assert child.exclusive < 4 * MIB
    assert child.referenced >= 10 * MIB


def test_all_at_once_gives_what_one_by_one_does(store: Store) -> None:
    fill(store, "base", lambda root: written(root, "data", MIB))
    fill(store, "child", lambda root: written(root, "more", MIB), "base")
    store.view("look", "child")
    store.prepare("work")
    found = store.usages()
    assert found == {layer.name: store.usage(layer.name) for layer in store.walk()}
    assert store.exclusive() == {name: usage.exclusive for name, usage in found.items()}
    for usage in found.values():
        assert_sane(usage)


def test_a_layer_in_use_is_counted_too(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        written(root, "data", 4 * MIB)
        os.sync()
        usage = store.usage("work")
        assert_sane(usage)
        assert usage.size >= 4 * MIB


def test_space_comes_back(store: Store) -> None:
    """Far more than there is room for, if nothing came back."""
    for _ in range(3):
        fill(store, "base", lambda root: written(root, "data", 64 * MIB))
        room = store.usage("base").exclusive
        assert room >= 64 * MIB
        store.remove("base")
    fill(store, "base", text("f"))
    assert store.usage("base").referenced < room
