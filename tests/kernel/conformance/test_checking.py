"""A store in order is found to be so, and what a process that died left is found, and mended, with every driver."""

from collections.abc import Callable

import pytest

from tests.kernel.conformance.layers import Everything, fill, names_in, text
from tests.kernel.crashes.dying import killed_at
from tests.kernel.test_store import archive
from thinpool import Store
from thinpool.drivers.base import Checking

pytestmark = pytest.mark.kernel(device_mapper=False)


def test_a_store_in_use_is_in_order(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    store.view("view", "base")
    with store.mount("work") as root, store.mount("view"):
        (root / "g").write_text("g")
        assert store.check() == []
        store.commit("done", "work")
        assert store.check() == []
    assert store.check() == []


@pytest.mark.parametrize("where", ["mark-begun", "records-write", "records-written"])
@pytest.mark.parametrize("operation", ["prepare", "remove", "import"])
def test_what_was_begun_is_found_and_ended(store: Store, operation: str, where: str) -> None:
    fill(store, "base", text("f"))
    before = Everything.of(store)
    work: dict[str, Callable[[], object]] = {
        "prepare": lambda: store.prepare("new", "base"),
        "remove": lambda: store.remove("base"),
        "import": lambda: store.import_layer("new", archive({"g": b"g"}), parent="base"),
    }
    killed_at(where, work[operation])
    assert store.check() != []
    done = store.recover()
    assert done.mended != []
    assert list(done.left) == []
    assert store.check() == []
    assert names_in(store) in ({"base"}, {"base", "new"}, set())
    if names_in(store) == {"base"}:
        assert Everything.of(store) == before


def test_a_layer_whose_storage_is_gone_is_named(store: Store) -> None:
    """By a driver that can say what there is, which those of other packages need not."""
    fill(store, "base", text("f"))
    handle = store._session.record("base").handle
    with store._session.writer():
        store._session.driver.delete(handle)
    tells = isinstance(store._session.driver, Checking)
    left = [(finding.kind, finding.subject) for finding in store.recover().left]
    assert left == ([("missing", "layer base")] if tells else [])
    store.remove("base")
    assert store.check() == []
