"""Images, which stack layers on layers that are still being made: exactly, and wholly or not at all."""

import os
import signal
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import Everything, fill, look, names_in, text
from tests.kernel.layer.trees import content
from tests.unit.layer.tars import archive, entry
from tests.unit.oci.layouts import Made, layer_tar, sha256, simple
from thinpool import Store
from thinpool.errors import ArchiveError, UnsafeArchive

pytestmark = pytest.mark.kernel(device_mapper=False)


def lineage(store: Store, name: str) -> list[str]:
    parent = store.stat(name).parent
    return [*(lineage(store, parent) if parent is not None else ()), name]


def first(root: Path) -> None:
    (root / "d").mkdir(mode=0o1750)
    for name in ("d/gone", "d/kept", "moved", "becomes a directory"):
        (root / name).write_text(name)
    (root / "linked").hardlink_to(root / "moved")
    os.setxattr(root / "d", "trusted.k", b"v")


def second(root: Path) -> None:
    (root / "d/gone").unlink()
    (root / "moved").rename(root / "d/moved")
    (root / "becomes a directory").unlink()
    (root / "becomes a directory").mkdir()
    (root / "becomes a directory/file").write_text("inside")


def third(root: Path) -> None:
    (root / "d/kept").unlink()
    (root / "d/moved").unlink()
    os.removexattr(root / "d", "trusted.k")
    (root / "d").rmdir()
    (root / "d").mkdir()
    (root / "d/again").write_text("again")


def test_a_stack_comes_back_as_it_was(store: Store, scratch: Path) -> None:
    fill(store, "one", first)
    fill(store, "two", second, "one")
    fill(store, "three", third, "two")
    result = store.export_image("three", scratch / "layout")
    store.import_image("back", scratch / "layout")
    for old, new in zip(lineage(store, "three"), lineage(store, "back"), strict=True):
        assert content(look(store, old)) == content(look(store, new))
    again = store.export_image("back", scratch / "again")
    assert [layer.digest for layer in again.layers] == [layer.digest for layer in result.layers]


def test_a_layer_was_complete_before_the_next_one_began(store: Store, scratch: Path) -> None:
    """A comparison trusts what is older than the common layer, so that must not be said to be younger than it is."""
    fill(store, "one", first)
    fill(store, "two", second, "one")
    store.export_image("two", scratch / "layout")
    store.import_image("back", scratch / "layout")
    below, above = (store.stat(name) for name in lineage(store, "back"))
    assert below.created < above.created
    with store.mount(above.name) as root:
        assert below.created.timestamp() <= (root / "becomes a directory/file").stat().st_ctime + 0.02


def test_opaque_directories(store: Store, scratch: Path) -> None:
    """Which hide what is in layers that are not ready yet."""
    layers = [
        layer_tar({"d/": b"", "d/x": b"x", "d/e/": b"", "d/e/y": b"y"}),
        layer_tar({"d/": b"", "d/z": b"z"}),
        layer_tar({"d/": b"", "d/.wh..wh..opq": b"", "d/e/": b"", "d/new": b"new"}),
    ]
    made = Made()
    made.index([made.image(layers)]).write(scratch / "layout")
    store.import_image("image", scratch / "layout")
    assert sorted(look(store, "image")) == [b"/", b"/d", b"/d/e", b"/d/new"]


def test_a_base_is_shared(store: Store, scratch: Path) -> None:
    for name in ("one", "two"):
        store.import_image(name, simple("a", "b", name).write(scratch / name))
    assert lineage(store, "one")[:-1] == lineage(store, "two")[:-1]
    assert len(names_in(store)) == 4
    fill(store, "own", text("own"), "two")
    assert sorted(look(store, "own")) == [b"/", b"/a", b"/b", b"/own", b"/two"]


@pytest.mark.parametrize(
    ("last", "diff_id", "error"),
    [
        (layer_tar({"c": b"c"}), sha256(b"?"), ArchiveError),
        (archive(entry(b"../c", data=b"c")), None, UnsafeArchive),
        (b"no archive" * 100, None, ArchiveError),
    ],
)
def test_a_bad_layer_leaves_nothing(
    store: Store, scratch: Path, last: bytes, diff_id: str | None, error: type[ArchiveError]
) -> None:
    made = Made()
    layers = [layer_tar({"a": b"a"}), layer_tar({"b": b"b"}), last]
    diff_ids = [*map(sha256, layers[:-1]), diff_id or sha256(last)]
    made.index([made.image(layers, config={"rootfs": {"type": "layers", "diff_ids": diff_ids}})])
    before = Everything.of(store)
    with pytest.raises(error):
        store.import_image("image", made.write(scratch / "layout"))
    assert Everything.of(store) == before
    store.import_image("image", simple("a", "b", "c").write(scratch / "good"))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_killed_import_leaves_nothing(store: Store, scratch: Path, call: int) -> None:
    folder = simple("a", "b", "c").write(scratch / "layout")
    before = Everything.of(store)
    child = os.fork()
    if child == 0:
        calls = iter(range(1, call))

        def progress(_done: int) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with Store.open(store.root) as other:
                other.import_image("image", folder, progress=progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert names_in(store) == set()
    store.up()
    assert Everything.of(store) == before
    store.import_image("image", folder)
    assert sorted(look(store, "image")) == [b"/", b"/a", b"/b", b"/c"]
