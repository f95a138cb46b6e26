"""Layers carried out of a store and into it: exactly, the same bytes each time, and wholly or not at all."""

import contextlib
import io
import os
import stat
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

import pytest

from tests.kernel.conformance.drivers import Driver
from tests.kernel.conformance.layers import Everything, exported, fill, look, names_in, text, told
from tests.kernel.layer.trees import content
from thinpool import Kind, Store
from thinpool.errors import ArchiveError, LayerInUse
from thinpool.store import Compression

pytestmark = pytest.mark.kernel(device_mapper=False)


def archive(*members: tuple[str, bytes | None]) -> io.BytesIO:
    """A tar of files, and of directories where there is no content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.mtime, member.mode = 1_700_000_000, 0o755
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            tar.addfile(member, None if data is None else io.BytesIO(data))
    out.seek(0)
    return out


def various(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/motd").write_text("hello")
    (root / "etc/gone").write_text("gone")
    (root / "data").write_bytes(os.urandom(300_000))
    (root / "link").hardlink_to(root / "data")
    (root / "symbolic").symlink_to("etc/motd")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(root / "etc", "user.k", b"v")
    (root / "etc").chmod(0o1750)


def changed(root: Path) -> None:
    (root / "etc/gone").unlink()
    (root / "etc/motd").write_text("changed")
    (root / "new").mkdir()
    (root / "new/file").write_text("new")
    os.utime(root / "new", ns=(0, 123_456_789))


@pytest.fixture
def layers(store: Store) -> Store:
    """`base`, and `child` on it."""
    fill(store, "base", various)
    fill(store, "child", changed, "base")
    return store


@pytest.mark.parametrize("compress", ["none", "gzip", "zstd", "xz"])
def test_there_and_back(layers: Store, compress: Compression) -> None:
    for name, parent in (("base", None), ("child", "copy-base")):
        carried = io.BytesIO()
        layers.export_layer(name, carried, compress=compress)
        carried.seek(0)
        copy = layers.import_layer(f"copy-{name}", carried, parent=parent)
        assert (copy.kind, copy.parent) == (Kind.COMMITTED, parent)
        assert content(look(layers, copy.name)) == content(look(layers, name))
        assert told(layers.changes(copy.name, name)) == []


def test_two_exports_of_one_layer_are_the_same_bytes(layers: Store) -> None:
    first = exported(layers, "child")
    with layers.mount("child"):
        assert exported(layers, "child") == first
    layers.view("look", "child")
    assert exported(layers, "look", "base") == first
    assert exported(layers, "look") == bytes(1024)


def test_the_difference_to_another_layer_than_the_parent(layers: Store) -> None:
    fill(layers, "third", text("third"), "child")
    whole = exported(layers, "third", "base")
    layers.import_layer("copy", io.BytesIO(whole), parent="base")
    assert content(look(layers, "copy")) == content(look(layers, "third"))


def test_an_import_is_seen_only_when_it_is_whole(layers: Store) -> None:
    data = exported(layers, "base")
    seen: list[set[str]] = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(names_in(layers))
            return super().read(size)

    layers.import_layer("new", Slow(data), labels={"a": "b"})
    assert seen
    assert all(names == {"base", "child"} for names in seen)
    assert layers.stat("new").labels == {"a": "b"}
    assert layers.stat("new").created == layers.stat("new").updated


def test_an_imported_layer_can_be_a_parent_at_once(store: Store) -> None:
    store.import_layer("base", archive(("etc", None), ("etc/motd", b"hello")))
    store.prepare("work", "base")
    with store.mount("work") as root:
        assert (root / "etc/motd").read_text() == "hello"
        assert (root / "etc/motd").stat().st_mtime == 1_700_000_000
    with store.mount("base") as root, pytest.raises(OSError, match="Read-only"):
        (root / "x").touch()


def test_whiteouts_take_away_what_is_below(layers: Store) -> None:
    layers.import_layer("less", archive(("etc/.wh.gone", b""), (".wh.data", b""), (".wh.missing", b"")), parent="base")
    assert told(layers.changes("less")) == [("D", "/data"), ("D", "/etc/gone")]
    layers.import_layer("opaque", archive(("etc/.wh..wh..opq", b""), ("etc/only", b"only")), parent="base")
    with layers.mount("opaque") as root:
        assert os.listdir(root / "etc") == ["only"]
    for name in ("less", "opaque"):
        with layers.mount(name) as root:
            assert not [path for path in root.rglob("*") if path.name.startswith(".wh.")]


def test_a_later_entry_replaces_an_earlier_one_of_another_type(store: Store) -> None:
    store.import_layer("base", archive(("x", b"file"), ("d", None), ("d/f", b"f")))
    store.import_layer("child", archive(("x", None), ("x/inside", b"i"), ("d", b"now a file")), parent="base")
    assert told(store.changes("child")) == [("C", "/d"), ("C", "/x"), ("A", "/x/inside")]


REFUSED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "no archive": lambda _: b"no tar at all" * 100,
    "a cut archive": lambda whole: whole[:200_000],
    "one byte changed in a header": lambda whole: whole[:3] + b"!" + whole[4:],
    "a cut gzip": lambda _: b"\x1f\x8b\x08\x00cut",
}


@pytest.mark.parametrize("parent", [None, "base"])
@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED)
def test_a_refused_import_leaves_nothing(layers: Store, damage: Callable[[bytes], bytes], parent: str | None) -> None:
    before, usage = Everything.of(layers), layers.usages()
    with pytest.raises(ArchiveError):
        layers.import_layer("bad", io.BytesIO(damage(exported(layers, "base"))), parent=parent)
    assert Everything.of(layers) == before
    assert layers.usages() == usage
    layers.import_layer("bad", archive(("f", b"f")), parent=parent)


def test_an_archive_that_leads_out_is_refused_or_contained(layers: Store, scratch: Path) -> None:
    (scratch / "outside").write_text("canary")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(scratch)
        tar.addfile(link)
        member = tarfile.TarInfo("out/outside")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    out.seek(0)
    try:
        layers.import_layer("hostile", out, parent="base")
    except ArchiveError:
        assert "hostile" not in names_in(layers)
    assert os.listdir(scratch) == ["outside"]
    assert (scratch / "outside").read_text() == "canary"


def test_a_reader_that_fails_leaves_nothing(layers: Store) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100_000:
                raise ConnectionResetError("gone")
            return super().read(min(size or 4096, 4096))

    before = Everything.of(layers)
    with pytest.raises(ArchiveError, match="cannot be read"):
        layers.import_layer("new", Broken(exported(layers, "base")))
    assert Everything.of(layers) == before


def test_a_writer_that_fails_leaves_the_store_as_it_was(layers: Store) -> None:
    layers.prepare("work", "child")
    before = Everything.of(layers)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        layers.export_layer("base", full)
    failing: IO[bytes] = open(os.devnull, "rb")  # noqa: SIM115 - closed below, and cannot be written
    with failing, layers.mount("work") as root:
        (root / "f").touch()
        with pytest.raises(io.UnsupportedOperation):
            layers.export_layer("work", failing)
    assert Everything.of(layers) == before


class Writer:
    """Makes files named by their number, one after the other, in two directories by turns, as many as it is let."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = 0
        self._allowed = 0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._write)
        for name in ("even", "odd"):
            (root / name).mkdir()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.allow(-1)
        self._thread.join()

    def allow(self, number: int) -> None:
        """Let it make so many more; after fewer than none it ends."""
        with self._news:
            self._allowed = -1 if number < 0 else self._made + number
            self._news.notify_all()

    def wait_for_more(self, number: int) -> int:
        """Until so many more files are made; how many there are then."""
        with self._news:
            goal = self._made + number
            self._news.wait_for(lambda: self._made >= goal)
            return self._made

    def _write(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: not 0 <= self._allowed <= self._made)
                if self._allowed < 0:
                    return
            (self._root / ("odd" if self._made % 2 else "even") / f"{self._made:06}").touch()
            with self._news:
                self._made += 1
                self._news.notify_all()


def test_an_export_of_a_layer_that_is_written_to_is_of_one_instant_or_refused(layers: Store, driver: Driver) -> None:
    layers.prepare("work", "base")
    with layers.mount("work") as root, Writer(root) as writer:
        for _ in range(5):
            writer.allow(500)
            before = writer.wait_for_more(20)
            with contextlib.suppress(LayerInUse):
                data = exported(layers, "work")
                with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                    found = sorted(int(member.name.rpartition("/")[2]) for member in tar if member.isfile())
                assert before <= len(found)
                assert found == list(range(len(found))) or not driver.instant
