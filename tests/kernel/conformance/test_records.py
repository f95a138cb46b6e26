"""Names, kinds, parents, labels and times: what the records of layers promise, whatever stores their contents."""

import io
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.kernel.conformance.layers import Everything, fill, names_in, text
from thinpool import Kind, Store
from thinpool.errors import (
    ConfigError,
    DriverUnsupported,
    InvalidName,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    MountError,
    ThinPoolError,
    WrongKind,
)

pytestmark = pytest.mark.kernel(device_mapper=False)

LABELS = {"containerd.io/gc.root": "2026", "empty": "", "text": "ä\n\"'"}


@pytest.fixture
def layers(store: Store) -> Store:
    """A store with `base`, and on it `middle`, `active` and `look`."""
    fill(store, "base", text("f"))
    fill(store, "middle", text("g"), "base")
    store.prepare("active", "middle")
    store.view("look", "middle")
    return store


def test_kinds_and_parents(layers: Store) -> None:
    found = {layer.name: (layer.kind, layer.parent) for layer in layers.walk()}
    assert found == {
        "base": (Kind.COMMITTED, None),
        "middle": (Kind.COMMITTED, "base"),
        "active": (Kind.ACTIVE, "middle"),
        "look": (Kind.VIEW, "middle"),
    }
    assert layers.info().layers == 4


def test_walk_is_sorted_and_gives_what_stat_gives(layers: Store) -> None:
    walked = list(layers.walk())
    assert [layer.name for layer in walked] == sorted(layer.name for layer in walked)
    assert [layers.stat(layer.name) for layer in layers.walk()] == walked


def test_layers_may_be_removed_while_they_are_walked(layers: Store) -> None:
    for layer in layers.walk():
        if layer.kind is not Kind.COMMITTED:
            layers.remove(layer.name)
    assert names_in(layers) == {"base", "middle"}


def test_created_and_updated_are_equal_at_first(store: Store) -> None:
    before = datetime.now(UTC) - timedelta(microseconds=1)
    fill(store, "base", text("f"))
    for layer in (store.stat("base"), store.prepare("work", "base"), store.view("look", "base")):
        assert layer.created == layer.updated
        assert layer.created.utcoffset() == timedelta(0)
        assert before <= layer.created <= datetime.now(UTC)
        assert store.stat(layer.name) == layer


def test_a_commit_is_a_new_layer_with_times_of_its_own(store: Store) -> None:
    work = store.prepare("work")
    done = store.commit("done", "work")
    assert done.created > work.created
    assert done.created == done.updated
    point = store.checkpoint("point", store.prepare("again", "done").name)
    assert point.created > store.stat("again").created


def test_commit_replaces_labels(store: Store) -> None:
    store.prepare("work", labels=LABELS)
    assert store.stat("work").labels == LABELS
    assert store.checkpoint("point", "work", labels={"of": "the point"}).labels == {"of": "the point"}
    assert store.stat("work").labels == LABELS
    assert store.commit("done", "work").labels == {}
    assert store.view("look", "done", labels=LABELS).labels == LABELS


def test_update_labels_replaces_all_and_tells_when(store: Store) -> None:
    before = store.prepare("work", labels=LABELS)
    after = store.update_labels("work", {"b": "2"})
    assert after.labels == {"b": "2"}
    assert after.created == before.created < after.updated
    assert store.update_labels("work", {}).labels == {}
    fill(store, "base", text("f"))
    assert store.update_labels("base", LABELS).labels == LABELS


def test_names_are_free_again_at_once(store: Store) -> None:
    for round_ in range(3):
        store.prepare("work")
        store.commit("done", "work")
        store.prepare("work", "done")
        store.view("look", "done")
        assert names_in(store) == {"work", "done", "look"}, round_
        for name in ("work", "look", "done"):
            store.remove(name)
        assert names_in(store) == set()


def test_a_name_of_a_layer_committed_while_mounted_is_free_at_once(store: Store) -> None:
    store.prepare("work")
    with store.mount("work"):
        store.commit("done", "work")
        store.prepare("work", "done")
        store.remove("work")
        store.prepare("work")
        with store.mount("work") as root:
            assert list(root.iterdir()) == []


def test_a_parent_is_not_removed_before_its_children(layers: Store) -> None:
    for parent, child in (("base", "middle"), ("middle", "active")):
        with pytest.raises(LayerInUse, match=child):
            layers.remove(parent)
    for name in ("active", "look", "middle", "base"):
        layers.remove(name)
    assert names_in(layers) == set()


def test_a_child_keeps_what_its_parent_holds_when_a_sibling_goes(layers: Store) -> None:
    layers.remove("look")
    with layers.mount("active") as root:
        assert {path.name for path in root.iterdir()} == {"f", "g"}


def test_a_layer_of_a_bigger_size_holds_more_or_says_why_not(store: Store) -> None:
    fill(store, "base", text("f"))
    wanted = store.stat("base").size + (64 << 20)
    before = Everything.of(store)
    try:
        layer = store.prepare("big", "base", size=wanted)
    except (ConfigError, DriverUnsupported):
        assert Everything.of(store) == before
        return
    with store.mount("big") as root:
        assert (root / "f").read_text() == "text"
        (root / "more").write_bytes(b"x" * 100_000)
    assert layer.size in {0, wanted}
    assert store.commit("done", "big").size == layer.size


WRONG: dict[str, tuple[type[ThinPoolError], Callable[[Store], object]]] = {
    "a parent that is active": (WrongKind, lambda store: store.prepare("x", "active")),
    "a parent that is a view": (WrongKind, lambda store: store.prepare("x", "look")),
    "a view of an active layer": (WrongKind, lambda store: store.view("x", "active")),
    "a view of a view": (WrongKind, lambda store: store.view("x", "look")),
    "a commit of a view": (WrongKind, lambda store: store.commit("x", "look")),
    "a commit of a committed layer": (WrongKind, lambda store: store.commit("x", "base")),
    "a checkpoint of a view": (WrongKind, lambda store: store.checkpoint("x", "look")),
    "a checkpoint of a committed layer": (WrongKind, lambda store: store.checkpoint("x", "base")),
    "an import on an active parent": (WrongKind, lambda store: store.import_layer("x", tar(), parent="active")),
    "prepare with a name that is taken": (LayerExists, lambda store: store.prepare("look", "base")),
    "view with a name that is taken": (LayerExists, lambda store: store.view("active", "base")),
    "commit with a name that is taken": (LayerExists, lambda store: store.commit("base", "active")),
    "commit with its own name": (LayerExists, lambda store: store.commit("active", "active")),
    "checkpoint with a name that is taken": (LayerExists, lambda store: store.checkpoint("middle", "active")),
    "import with a name that is taken": (LayerExists, lambda store: store.import_layer("base", tar())),
    "prepare on what is missing": (LayerNotFound, lambda store: store.prepare("x", "missing")),
    "view of what is missing": (LayerNotFound, lambda store: store.view("x", "missing")),
    "commit of what is missing": (LayerNotFound, lambda store: store.commit("x", "missing")),
    "import on what is missing": (LayerNotFound, lambda store: store.import_layer("x", tar(), parent="missing")),
    "stat of what is missing": (LayerNotFound, lambda store: store.stat("missing")),
    "usage of what is missing": (LayerNotFound, lambda store: store.usage("missing")),
    "remove of what is missing": (LayerNotFound, lambda store: store.remove("missing")),
    "labels of what is missing": (LayerNotFound, lambda store: store.update_labels("missing", {})),
    "mount of what is missing": (LayerNotFound, lambda store: store.mount("missing")),
    "changes of what is missing": (LayerNotFound, lambda store: store.changes("missing")),
    "changes to what is missing": (LayerNotFound, lambda store: store.changes("base", "missing")),
    "export of what is missing": (LayerNotFound, lambda store: store.export_layer("missing", io.BytesIO())),
    "a command in what is missing": (LayerNotFound, lambda store: store.run("missing", ["true"])),
    "unmount of what is not mounted": (MountError, lambda store: store.unmount("active")),
    "unmount of what is missing": (LayerNotFound, lambda store: store.unmount("missing-layer")),
    "a way of comparing that there is not": (
        ConfigError,
        lambda store: store.changes("active", method="slow"),  # type: ignore[arg-type] # that is the point
    ),
}


@pytest.mark.parametrize(("error", "call"), WRONG.values(), ids=WRONG)
def test_refused_and_as_it_was(layers: Store, error: type[ThinPoolError], call: Callable[[Store], object]) -> None:
    before = Everything.of(layers)
    with pytest.raises(error):
        call(layers)
    assert Everything.of(layers) == before


@pytest.mark.parametrize("name", ["", ".", "..", "/x", "-x", "a//b", "a/../b", "a/", "a b", "ä", "x" * 256, "a\n"])
def test_a_name_that_breaks_the_rules(store: Store, name: str) -> None:
    store.prepare("work")
    before = Everything.of(store)
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.prepare(name),
        lambda: store.commit(name, "work"),
        lambda: store.checkpoint(name, "work"),
        lambda: store.import_layer(name, tar()),
    )
    for call in calls:
        with pytest.raises(InvalidName):
            call()
    assert Everything.of(store) == before


def test_names_of_all_characters_that_are_allowed(store: Store) -> None:
    given = ["x" * 255, "sha256:0123/a.b_c@d+e-F", "a/b/c/d", "..a", "a..", "A", "a", "+", "1"]
    for name in given:
        store.prepare(name)
        with store.mount(name) as root:
            (root / "own").write_text(name)
    for name in given:
        with store.mount(name) as root:
            assert (root / "own").read_text() == name
    assert names_in(store) == set(given)


def test_the_same_name_for_all_kinds_one_after_the_other(store: Store) -> None:
    fill(store, "base", text("f"))
    for make in (store.prepare, store.view):
        make("x", "base")
        store.remove("x")
    for number, name in enumerate(itertools.repeat("x", 3)):
        fill(store, name, text("f", f"{number}"), "base")
        with store.mount(name) as root:
            assert (root / "f").read_text() == f"{number}"
        store.remove(name)


def tar() -> io.BytesIO:
    """An empty archive."""
    return io.BytesIO(bytes(1024))
