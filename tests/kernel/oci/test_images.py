"""Images out of a store and into it."""

import gzip
import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.layer.trees import Step, examples, makings, steps
from tests.kernel.oci.stacks import (
    lineage,
    listing,
    mutated,
    names,
    plain,
    remove_all,
    storages,
    tree,
    unchanged,
)
from tests.unit.layer.tars import archive, entry, header
from tests.unit.oci.layouts import Json, Made, layer_tar, sha256, simple
from thinpool import Limits, Store
from thinpool.errors import (
    ArchiveError,
    ConfigError,
    LayerExists,
    LayerNotFound,
    ThinPoolError,
    UnsafeArchive,
)
from thinpool.filesystem import syscalls
from thinpool.oci.digests import chain_ids
from thinpool.state import HANDLE_LIMIT

pytestmark = pytest.mark.kernel

COMPRESSIONS: tuple[Any, ...] = ("gzip", "zstd", "none")
CHAIN_ID = "thinpool.oci/chain-id"


# -- there and back


@examples(6)
@given(
    first=makings,
    others=st.lists(steps, min_size=1, max_size=3),
    compress=st.sampled_from(COMPRESSIONS),
    data=st.data(),
)
def test_random_stacks_come_back_as_they_were(
    store: Store, scratch: Path, first: list[Step], others: list[list[Step]], compress: Any, data: st.DataObject
) -> None:
    remove_all(store)
    stack = mutated(store, [first, *others], "layer-")
    folder = scratch / f"layout-{data.draw(st.uuids())}"
    result = store.export_image(stack[-1], folder, compress=compress)
    assert len(result.layers) == len(stack)
    store.import_image("back", folder)
    back = lineage(store, "back")
    assert len(back) == len(stack)
    for old, new in zip(stack, back, strict=True):
        assert tree(store, old) == tree(store, new)
    again = store.export_image("back", scratch / f"{folder}-again", compress=compress)
    assert [layer.digest for layer in again.layers] == [layer.digest for layer in result.layers]


def test_two_exports_are_the_same_bytes(store: Store, scratch: Path) -> None:
    stack = plain(store, "a", "b")
    store.update_labels(stack[-1], {"z": "1", "a": "2"})
    results = [store.export_image(stack[-1], scratch / name, tag="t") for name in ("one", "two")]
    assert results[0] == results[1]
    assert listing(scratch / "one") == listing(scratch / "two")
    config = json.loads((scratch / "one/blobs/sha256" / results[0].config_digest[7:]).read_text())
    assert config["config"] == {"Labels": {"a": "2", "z": "1"}}
    moments = [store.stat(name).created.isoformat().replace("+00:00", "Z") for name in stack]
    assert [entry["created"] for entry in config["history"]] == moments
    assert config["created"] == moments[-1]


def test_what_an_image_says_of_itself_is_kept(store: Store, scratch: Path) -> None:
    run = {"Env": ["A=b"], "Cmd": ["/bin/app"], "Volumes": {"/data": {}}, "User": "app"}
    config = {"config": {**run, "Labels": {"k": "v"}, "Domainname": "x"}, "architecture": "arm64", "variant": "v8"}
    made = Made()
    layers = [layer_tar({name: b""}) for name in ("a", "b")]
    made.index([made.image(layers, config=config)])
    layer = store.import_image("image", made.write(scratch / "made"), labels={"more": "labels"})
    kept = {key: value for key, value in layer.labels.items() if not key.startswith("thinpool.oci/")}
    assert kept == {"k": "v", "more": "labels"}

    store.prepare("work", "image")
    store.commit("child", "work", labels={"own": "label"})
    result = store.export_image("child", scratch / "again")
    out = json.loads((scratch / "again/blobs/sha256" / result.config_digest[7:]).read_text())
    assert out["config"] == {**run, "Labels": {"own": "label"}}
    assert (out["os"], out["architecture"], out["variant"]) == ("linux", "arm64", "v8")


def test_names_and_parents(store: Store, scratch: Path) -> None:
    made = simple("a", "b", "c")
    top = store.import_image("image", made.write(scratch / "made"))
    chain = chain_ids([sha256(layer_tar({name: name.encode()})) for name in ("a", "b", "c")])
    assert lineage(store, "image") == [chain[0], chain[1], "image"]
    assert top.labels[CHAIN_ID] == chain[2]
    created = [store.stat(name).created for name in lineage(store, "image")]
    assert created == sorted(set(created))
    assert all(store.stat(name).kind.value == "committed" for name in names(store))


@pytest.mark.parametrize("kind", ["active", "view"])
def test_layers_in_use_are_exported_as_they_are(store: Store, scratch: Path, kind: str) -> None:
    plain(store, "a")
    if kind == "view":
        store.view("top", "a")
    else:
        store.prepare("top", "a")
    with store.mount("top") as root:
        if kind == "active":
            (root / "b").write_text("b")
        result = store.export_image("top", scratch / "layout")
    assert len(result.layers) == 2
    store.import_image("back", scratch / "layout")
    assert tree(store, "back") == tree(store, "top")


# -- layers that are there already


def image_on(base: bytes, *more: str) -> Made:
    made = Made()
    return made.index([made.image([base, *(layer_tar({name: name.encode()}) for name in more)])])


def test_a_base_is_imported_once(store: Store, scratch: Path) -> None:
    base = layer_tar({"base": b"base"})
    store.import_image("base", image_on(base).write(scratch / "base"))
    store.import_image("one", image_on(base, "x", "one").write(scratch / "one"))
    store.import_image("two", image_on(base, "x", "two").write(scratch / "two"))
    assert lineage(store, "one")[:-1] == lineage(store, "two")[:-1]
    assert lineage(store, "one")[0] == "base"
    assert len(names(store)) == 4
    store.import_image("x", image_on(base, "x").write(scratch / "x"))
    assert store.stat("x").parent == "base"
    assert len(names(store)) == 5
    with store.mount("two") as root:
        assert sorted(path.name for path in root.iterdir()) == ["base", "two", "x"]


def test_what_is_not_known_any_more_is_imported_again(store: Store, scratch: Path) -> None:
    base = layer_tar({"base": b"base"})
    store.import_image("base", image_on(base).write(scratch / "base"))
    store.update_labels("base", {})
    store.import_image("one", image_on(base, "one").write(scratch / "one"))
    assert lineage(store, "one") == [sha256(base), "one"]


def test_an_image_cannot_pass_for_another(store: Store, scratch: Path) -> None:
    """It has the label that tells what a layer is, for a layer that others will look for."""
    base = layer_tar({"base": b"base"})
    made = Made()
    false = {"config": {"Labels": {CHAIN_ID: sha256(base), "thinpool.oci/config": "x", "ok": "y"}}}
    made.index([made.image([layer_tar({"evil": b"evil"})], config=false)])
    evil = store.import_image("evil", made.write(scratch / "evil"))
    assert evil.labels[CHAIN_ID] == sha256(layer_tar({"evil": b"evil"}))
    assert evil.labels["ok"] == "y"
    assert "thinpool.oci/config" not in evil.labels
    store.import_image("one", image_on(base, "one").write(scratch / "one"))
    assert lineage(store, "one") == [sha256(base), "one"]


def test_a_layer_of_somebody_with_such_a_name_is_no_base(store: Store, scratch: Path) -> None:
    base = layer_tar({"base": b"base"})
    store.prepare("work")
    store.commit(sha256(base), "work")
    folder = image_on(base, "one").write(scratch / "one")
    with unchanged(store), pytest.raises(LayerExists, match="is not known to be that of the image"):
        store.import_image("one", folder)


def test_the_name_is_taken(store: Store, scratch: Path) -> None:
    plain(store, "a")
    folder = simple("x", "y").write(scratch / "made")
    with unchanged(store), pytest.raises(LayerExists, match="'a' exists already"):
        store.import_image("a", folder)


# -- whole or nothing


def damaged(made: Made, change: Callable[[bytes], bytes], *, size: bool) -> Made:
    """The last layer's blob is another, of the same size if need be, under the name it had."""
    name = [name for name, data in made.files.items() if data.startswith(b"\x1f\x8b")][-1]
    data = change(made.files[name])
    made.files[name] = data if size else data.ljust(len(made.files[name]), b"\0")[: len(made.files[name])]
    return made


def recompressed(data: bytes) -> bytes:
    return gzip.compress(gzip.decompress(data), 0)


def with_last(layer: bytes, *, diff_id: str | None = None) -> Made:
    made = Made()
    layers = [layer_tar({"a": b"a"}), layer_tar({"b": b"b"}), layer]
    config: Json = {}
    if diff_id is not None:
        config = {"rootfs": {"type": "layers", "diff_ids": [*map(sha256, layers[:-1]), diff_id]}}
    return made.index([made.image(layers, config=config)])


LAST = layer_tar({"c": bytes(range(256)) * 100})
BAD: dict[str, tuple[Made, type[ThinPoolError], str]] = {
    "other content": (damaged(with_last(LAST), lambda _: gzip.compress(layer_tar({"d": b"d"}))[:-1], size=True),
                      ArchiveError, "the manifest says"),
    "cut": (damaged(with_last(LAST), lambda data: data[:-20], size=False), ArchiveError, ""),
    "flipped": (damaged(with_last(LAST), lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], size=True),
                ArchiveError, ""),
    "padded": (damaged(with_last(LAST), lambda data: gzip.compress(gzip.decompress(data), 9, mtime=1), size=False),
               ArchiveError, "is damaged: its digest is"),
    "diff id": (with_last(LAST, diff_id=sha256(b"?")), ArchiveError, "is not what the image says: its diff id is"),
    "escape": (with_last(archive(entry(b"../../x", data=b"x"))), UnsafeArchive, "has a '..' part"),
    "no tar": (with_last(b"no tar" * 1000), ArchiveError, "not a tar archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_nothing_is_left_of_an_image_with_one_bad_layer(store: Store, scratch: Path, what: str) -> None:
    made, error, message = BAD[what]
    plain(store, "before")
    with unchanged(store), pytest.raises(error) as caught:
        store.import_image("image", made.write(scratch / "made"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    store.import_image("image", with_last(LAST).write(scratch / "good"))


def test_an_interrupt_leaves_nothing(store: Store, scratch: Path) -> None:
    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    folder = simple("a", "b", "c", "d").write(scratch / "made")
    with unchanged(store), pytest.raises(KeyboardInterrupt):
        store.import_image("image", folder, progress=stop)
    assert seen == sorted(set(seen))


def killed_at(call: int, root: Path, work: Callable[[Store, Callable[[int], None]], object]) -> None:
    """Do something in another process, which dies when it tells its progress for so many times."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1, call))

        def progress(_done: int) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with Store.open(root) as store:
                work(store, progress)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_import_leaves_nothing(store: Store, scratch: Path) -> None:
    folder = simple("a", "b", "c").write(scratch / "made")
    with unchanged(store):
        for call in (1, 2, 3):
            killed_at(call, store.root, lambda other, tell: other.import_image("image", folder, progress=tell))
            assert len(store._session.state.unfinished()) == call
            assert names(store) == set()
            store.up()
    store.import_image("image", folder)


def test_a_killed_import_whose_numbers_began_anew(store: Store, scratch: Path) -> None:
    """A layer can have a lower number than its parent."""
    folder = simple("a", "b", "c").write(scratch / "made")
    state = store._session.state
    with unchanged(store):
        with store._session.writer():
            state.put_now({"next_handle": str(HANDLE_LIMIT - 1), "reserved_handle": str(HANDLE_LIMIT - 1)})
        killed_at(3, store.root, lambda other, tell: other.import_image("image", folder, progress=tell))
        handles = [record.handle for record in state.unfinished()]
        assert max(handles) == HANDLE_LIMIT - 1
        assert len(handles) == 3
        store.up()
    store.import_image("image", folder)


def test_a_killed_export_does_no_harm(store: Store, scratch: Path) -> None:
    stack = plain(store, "a", "b", "c")
    for name in ("layout", "whole"):
        store.export_image(stack[0], scratch / name, tag="before")
    store.export_image(stack[-1], scratch / "whole")
    for call in (1, 2, 3):
        killed_at(call, store.root, lambda other, tell: other.export_image("c", scratch / "layout", progress=tell))
        store.import_image("again", scratch / "layout", tag="before")
        assert tree(store, "again") == tree(store, "a")
        store.remove("again")
    assert listing(scratch / "layout") != listing(scratch / "whole")
    store.export_image(stack[-1], scratch / "layout")
    assert listing(scratch / "layout") == listing(scratch / "whole")


# -- at the same time


def test_imports_of_one_base_wait_for_each_other(store: Store, scratch: Path) -> None:
    base = layer_tar({"base": b"base" * 100})
    one = image_on(base, "x", "one").write(scratch / "one")
    two = image_on(base, "x", "two").write(scratch / "two")
    begun, go_on = threading.Event(), threading.Event()

    def hold(_done: int) -> None:
        begun.set()
        go_on.wait()

    first = threading.Thread(target=store.import_image, args=("one", one), kwargs={"progress": hold})
    first.start()
    begun.wait()
    second = threading.Thread(target=_import_elsewhere, args=(store.root, "two", two))
    second.start()
    while not _somebody_waits(store):
        assert second.is_alive()
    assert names(store) == set()
    go_on.set()
    first.join()
    second.join()
    assert lineage(store, "one")[:-1] == lineage(store, "two")[:-1]
    assert len(names(store)) == 4


def test_who_waited_for_an_import_that_failed_does_it_himself(store: Store, scratch: Path) -> None:
    base = layer_tar({"base": b"base" * 100})
    one = image_on(base, "one").write(scratch / "one")
    two = image_on(base, "two").write(scratch / "two")
    begun, go_on = threading.Event(), threading.Event()

    def fail(_done: int) -> None:
        begun.set()
        go_on.wait()
        raise InterruptedError

    def first() -> None:
        with pytest.raises(InterruptedError):
            store.import_image("one", one, progress=fail)

    threads = [
        threading.Thread(target=first),
        threading.Thread(target=_import_elsewhere, args=(store.root, "two", two)),
    ]
    threads[0].start()
    begun.wait()
    threads[1].start()
    while not _somebody_waits(store):
        assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join()
    assert lineage(store, "two") == [sha256(base), "two"]
    assert names(store) == {sha256(base), "two"}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_import_that_goes_on_is_left_alone(store: Store, scratch: Path, call: int) -> None:
    """Recovery takes none of its layers for one that nobody carries on."""
    folder = simple("a", "b", "c").write(scratch / "made")
    begun, go_on = threading.Event(), threading.Event()
    calls = iter(range(1, call))

    def hold(_done: int) -> None:
        if next(calls, None) is None:
            begun.set()
            go_on.wait()

    importing = threading.Thread(target=store.import_image, args=("image", folder), kwargs={"progress": hold})
    importing.start()
    begun.wait()
    with Store.open(store.root) as other:
        other.up()
        assert len(other._session.state.unfinished()) == call
    go_on.set()
    importing.join()
    assert len(lineage(store, "image")) == 3


def _import_elsewhere(root: Path, name: str, folder: Path) -> None:
    with Store.open(root) as store:
        store.import_image(name, folder)


def _somebody_waits(store: Store) -> bool:
    inode = os.stat(store.root / "lock").st_ino
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


# -- limits and devices


def test_limits_are_for_all_layers_together(store: Store, scratch: Path) -> None:
    folder = simple("a", "b", "c").write(scratch / "made")
    for limits in (Limits(entries=2), Limits(size=2)):
        with unchanged(store), pytest.raises(UnsafeArchive, match="beyond the limit"):
            store.import_image("image", folder, limits=limits)
    store.import_image("image", folder, limits=Limits(entries=3, size=3))


def test_a_layer_has_limits(store: Store) -> None:
    with unchanged(store), pytest.raises(UnsafeArchive, match="beyond the limit"):
        store.import_layer("x", io.BytesIO(layer_tar({"a": b"aaa"})), limits=Limits(size=2))


def test_devices_are_made_or_left_out(store: Store, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = archive(header(b"null", b"3", major=1, minor=3), entry(b"f", data=b"x"))
    made = Made()
    one = made.index([made.image([base, layer_tar({"one": b""})])]).write(scratch / "one")
    store.import_image("bare", one, devices=False)
    assert "left out 'null': a device" in caplog.text
    store.import_image("whole", one)
    assert not set(lineage(store, "bare")) & set(lineage(store, "whole"))
    with store.mount("bare") as bare, store.mount("whole") as whole:
        assert sorted(os.listdir(bare)) == ["f", "one"]
        assert sorted(os.listdir(whole)) == ["f", "null", "one"]
    store.import_image("more", one, devices=False)
    assert lineage(store, "more")[0] == lineage(store, "bare")[0]


# -- errors


def test_export_to_a_full_disk_leaves_nothing(store: Store, scratch: Path) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "large").write_bytes(os.urandom(3 << 20))
    store.commit("large", "work")
    plain(store, "small")
    place = scratch / "full"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=2m")
    try:
        store.export_image("small", place / "layout", tag="small")
        before = listing(place)
        with pytest.raises(ThinPoolError, match="layout: the layout cannot be written: No space left on device"):
            store.export_image("large", place / "layout")
        assert listing(place) == before
        with pytest.raises(ThinPoolError, match="No space left"):
            store.export_image("large", place / "new")
        assert listing(place) == before
    finally:
        syscalls.umount(str(place))


def test_what_cannot_be_exported(store: Store, scratch: Path) -> None:
    plain(store, "a")
    with pytest.raises(LayerNotFound):
        store.export_image("b", scratch / "layout")
    with pytest.raises(ConfigError, match="accepted in an image are gzip, zstd, none"):
        store.export_image("a", scratch / "layout", compress="xz")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tag 'a b'"):
        store.export_image("a", scratch / "layout", tag="a b")
    (scratch / "other").mkdir()
    (scratch / "other/file").touch()
    with pytest.raises(ConfigError, match="neither empty nor an OCI image layout"):
        store.export_image("a", scratch / "other")
    with pytest.raises(ThinPoolError, match="missing/layout: the layout cannot be written: No such file"):
        store.export_image("a", scratch / "missing/layout")
    assert not (scratch / "layout").exists()
    assert os.listdir(scratch / "other") == ["file"]


def test_no_storage_is_left_over(store: Store, scratch: Path) -> None:
    before = storages(store)
    store.import_image("image", simple("a", "b", "c").write(scratch / "made"))
    assert len(storages(store)) == len(before) + 3
    remove_all(store)
    assert storages(store) == before
