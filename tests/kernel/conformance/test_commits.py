"""A commit is the state of the instant of the call, whoever works in the layer; what is written later is nobody's."""

import io
import mmap
import os

import pytest

from tests.kernel.conformance.layers import facts, fill, look, names_in, text, told
from tests.kernel.layer.trees import survey
from thinpool import Kind, Store
from thinpool.errors import LayerNotFound

pytestmark = pytest.mark.kernel(device_mapper=False)


def test_a_layer_that_nobody_uses(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "f").write_text("f")
        seen = survey(root)
    layer = store.commit("done", "work")
    assert (layer.name, layer.kind, layer.parent) == ("done", Kind.COMMITTED, None)
    assert facts(look(store, "done")) == facts(seen)
    with pytest.raises(LayerNotFound):
        store.stat("work")


def test_while_mounted_it_is_the_instant_of_the_call(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "before").write_text("before")
        (root / "both").write_text("before")
        seen = survey(root)
        store.commit("done", "work")
        (root / "after").write_text("after")
        (root / "both").write_text("after")
        (root / "before").unlink()
        assert facts(look(store, "done")) == facts(seen)
        assert sorted(os.listdir(root)) == ["after", "both"]
    assert facts(look(store, "done")) == facts(seen)
    assert names_in(store) == {"done"}


def test_what_is_not_yet_written_out_is_in_it(store: Store) -> None:
    data = os.urandom(3 << 20)
    store.prepare("work")
    with store.mount("work") as root, (root / "data").open("w+b") as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapping:
            mapping[1000:1004] = b"here"
            store.commit("done", "work")
            mapping[1000:1004] = b"late"
    with store.mount("done") as root:
        assert (root / "data").read_bytes() == data[:1000] + b"here" + data[1004:]


def test_open_files_go_on_and_reach_nobody(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root, (root / "log").open("a") as log:
        log.write("one\n")
        log.flush()
        store.commit("first", "work")
        log.write("two\n")
        log.flush()
        assert (root / "log").read_text() == "one\ntwo\n"
    with store.mount("first") as root:
        assert (root / "log").read_text() == "one\n"


def test_a_name_used_again_while_the_old_mount_stands(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as old:
        (old / "f").write_text("old")
        store.commit("done", "work")
        store.prepare("work", "done")
        with store.mount("work") as new:
            (new / "f").write_text("new")
            (old / "f").write_text("older")
            assert (new / "f").read_text() == "new"
        assert told(store.changes("work")) == [("C", "/f")]
        assert list(store.mounts("work")) == []
    with store.mount("done") as root:
        assert (root / "f").read_text() == "old"


def test_with_two_mounts(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as one, store.mount("work") as two:
        (one / "from one").write_text("1")
        (two / "from two").write_text("2")
        store.commit("done", "work")
        (one / "late").write_text("1")
        (two / "too late").write_text("2")
    assert set(look(store, "done")) == {b"/", b"/from one", b"/from two"}


def test_checkpoints_go_on(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    with store.mount("work") as root:
        for number in range(3):
            (root / f"{number}").write_text("x")
            layer = store.checkpoint(f"point-{number}", "work")
            assert (layer.kind, layer.parent) == (Kind.COMMITTED, "base")
    assert [told(store.changes(f"point-{number}")) for number in range(3)] == [
        [("A", "/0")],
        [("A", "/0"), ("A", "/1")],
        [("A", "/0"), ("A", "/1"), ("A", "/2")],
    ]
    assert (store.stat("work").kind, store.stat("work").parent) == (Kind.ACTIVE, "base")
    assert told(store.changes("work", "point-2")) == []


def test_a_checkpoint_of_a_layer_that_nobody_uses(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    with store.mount("work") as root:
        (root / "f").unlink()
    store.checkpoint("point", "work")
    with store.mount("work") as root:
        (root / "later").write_text("x")
    assert told(store.changes("point")) == [("D", "/f")]
    store.remove("work")
    assert told(store.changes("point")) == [("D", "/f")]
    store.prepare("child", "point")
    with store.mount("child") as root:
        assert os.listdir(root) == []


def test_a_layer_on_a_checkpoint_beside_its_source(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "f").write_text("1")
        store.checkpoint("point", "work")
        store.prepare("other", "point")
        with store.mount("other") as other:
            (root / "f").write_text("2")
            (other / "g").write_text("3")
            assert (other / "f").read_text() == "1"
    assert told(store.changes("work", "other")) == [("C", "/f"), ("D", "/g")]


def test_a_long_line_of_commits_of_one_running_layer(store: Store) -> None:
    """As a runtime does that commits a container again and again."""
    store.prepare("work")
    for number in range(8):
        with store.mount("work") as root:
            (root / "counter").write_text(f"{number}")
            (root / f"file-{number}").write_bytes(os.urandom(1000))
            store.commit(f"layer-{number}", "work")
        store.prepare("work", f"layer-{number}")
    for number in range(8):
        with store.mount(f"layer-{number}") as root:
            assert (root / "counter").read_text() == f"{number}"
            assert len(os.listdir(root)) == number + 2


def test_a_layer_being_changed_is_compared_and_exported_as_of_the_instant(store: Store) -> None:
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    with store.mount("work") as root:
        (root / "a").write_text("a")
        assert told(store.changes("work")) == [("A", "/a")]
        archive = io.BytesIO()
        store.export_layer("work", archive)
        (root / "b").write_text("b")
        assert told(store.changes("work")) == [("A", "/a"), ("A", "/b")]
    archive.seek(0)
    store.import_layer("copy", archive, parent="base")
    assert told(store.changes("work", "copy")) == [("A", "/b")]
