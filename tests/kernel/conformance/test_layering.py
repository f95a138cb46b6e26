"""A child shows its parent's tree and what was done to it, survives a commit, and is told, exported and imported so."""

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

import tests.kernel.conformance.properties  # noqa: F401 - its scenarios are taken in on import
from tests.kernel.conformance.drivers import Driver
from tests.kernel.conformance.layers import contents, exported, facts, look, methods, told
from tests.kernel.conformance.scenarios import SCENARIOS, Scenario
from tests.kernel.layer.trees import Tree, content, expected_changes, survey
from thinpool import Store

pytestmark = pytest.mark.kernel(device_mapper=False)

DEEP_NAME = "n" * 5


@attrs.frozen
class Step:
    """One layer of a scenario: its name, that of its parent, and what was in it before it was committed."""

    name: str
    parent: str | None
    tree: Tree


def play(store: Store, driver: Driver, begin: Callable[[Path], Scenario]) -> list[Step]:
    """Make the layers of a scenario; each begins as its parent was, and is committed with what was seen in it."""
    steps: list[Step] = []
    running: Scenario | None = None
    while True:
        parent = steps[-1] if steps else None
        above = None if parent is None else parent.name
        store.prepare("work", above)
        with store.mount("work") as root:
            try:
                if running is None or parent is None:
                    running = begin(root)
                    next(running)
                else:
                    assert facts(survey(root)) == facts(parent.tree)
                    running.send(root)
                going_on = True
            except StopIteration:
                going_on = False
            tree = survey(root)
        name = f"layer-{len(steps)}"
        store.commit(name, "work")
        if not driver.coherent:
            seen, tree = tree, look(store, name)
            assert contents(tree) == contents(seen)
        steps.append(Step(name, above, tree))
        if not going_on:
            return steps


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(store: Store, driver: Driver, scenario: Callable[[Path], Scenario]) -> None:
    steps = play(store, driver, scenario)
    store.view("view", steps[-1].name)
    assert facts(look(store, "view")) == facts(steps[-1].tree)
    for step in steps:
        assert facts(look(store, step.name)) == facts(step.tree), step.name
    for older, newer in itertools.pairwise(steps):
        assert_changes(store, older, newer)
        assert_changes(store, newer, older)
    if len(steps) > 2:
        assert_changes(store, steps[0], steps[-1])
    assert_carried(store, steps)


def assert_changes(store: Store, older: Step, newer: Step) -> None:
    expected = expected_changes(older.tree, newer.tree)
    for method in methods(store):
        assert list(store.changes(newer.name, older.name, method=method)) == expected, method


def assert_carried(store: Store, steps: list[Step]) -> None:
    """Every layer exported, and imported on the import of its parent, is the same tree and the same archive."""
    sockets = any(entry.socket for step in steps for entry in step.tree.values())  # which no archive holds
    for step in steps:
        archive = exported(store, step.name)
        copy, parent = f"copy-of-{step.name}", None if step.parent is None else f"copy-of-{step.parent}"
        store.import_layer(copy, io.BytesIO(archive), parent=parent)
        assert content(look(store, copy)) == content(step.tree)
        assert exported(store, step.name) == archive
        if not sockets:
            assert exported(store, copy) == archive


def test_the_128th_layer_reads_like_a_flat_directory(store: Store) -> None:
    """As containerd asks of a snapshotter: files changed and removed all the way up the chain."""
    parent = None
    expected: dict[str, str] = {}
    for level in range(128):
        store.prepare("work", parent)
        with store.mount("work") as root:
            for name, data in ((f"own-{level}", "own"), (f"shared-{level % 7}", f"{level}")):
                (root / name).write_text(data)
                expected[name] = data
            if level % 3 == 2:
                (root / f"own-{level - 1}").unlink()
                del expected[f"own-{level - 1}"]
        parent = store.commit(f"layer-{level:03}", "work").name
    assert parent is not None
    store.view("view", parent)
    with store.mount("view") as root:
        assert {path.name: path.read_text() for path in root.iterdir()} == expected
    store.prepare("top", parent)
    with store.mount("top") as root:
        for name in expected:
            (root / name).unlink()
        assert list(root.iterdir()) == []
    assert {(change.kind, change.path[1:]) for change in store.changes("top")} == {("D", name) for name in expected}
    with store.mount("view") as root:
        assert len(list(root.iterdir())) == len(expected)


def test_directories_a_thousand_deep(store: Store, driver: Driver) -> None:
    """Deeper than a path can be long."""
    depth = driver.depth
    store.prepare("base.work")
    with store.mount("base.work") as root, bottom(root, depth, make=True) as fd:
        write(fd, "file", b"deep")
    store.commit("base", "base.work")
    store.prepare("child", "base")
    with store.mount("child") as root, bottom(root, depth) as fd:
        write(fd, "file", b"changed")
        write(fd, "new", b"new")
    below = "/" + "/".join([DEEP_NAME] * depth)
    for method in methods(store):
        assert told(store.changes("child", method=method)) == [("C", f"{below}/file"), ("A", f"{below}/new")]
    store.import_layer("copy", io.BytesIO(exported(store, "base")))
    store.import_layer("copy.child", io.BytesIO(exported(store, "child")), parent="copy")
    assert told(store.changes("copy.child", "child")) == []


@contextlib.contextmanager
def bottom(root: Path, depth: int, *, make: bool = False) -> Iterator[int]:
    """The lowest of very many directories below each other."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        if make:
            os.mkdir(DEEP_NAME, dir_fd=fd)
        below = os.open(DEEP_NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    try:
        yield fd
    finally:
        os.close(fd)


def write(directory: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=directory)
    os.write(fd, data)
    os.close(fd)
