"""Manifests on real stores: whatever happens to their files costs time, and never an answer."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.conformance.layers import fill, told
from tests.kernel.drivers.engine import MAKES, store_of
from thinpool import Store
from thinpool.drivers.thinnames import PART

pytestmark = pytest.mark.kernel

EXPECTED = [("C", "/d/f"), ("A", "/d/new")]
GRAND = [("C", "/d/g")]


def before(root: Path) -> None:
    (root / "d").mkdir()
    for number in range(400):
        (root / f"d/{number:03}").touch()
    for name in ("f", "g"):
        (root / "d" / name).write_text(name)


def change(root: Path) -> None:
    (root / "d/f").write_text("other")
    (root / "d/new").write_text("new")


def change_again(root: Path) -> None:
    (root / "d/g").write_text("other")


@pytest.fixture(scope="module")
def shared() -> Iterator[Store]:
    """A store with three layers on each other, and their manifests."""
    with store_of(MAKES["usual"]) as store:
        fill(store, "base", before)
        fill(store, "child", change, "base")
        fill(store, "grandchild", change_again, "child")
        yield store


@pytest.fixture
def store(shared: Store) -> Store:
    """The same, with whole manifests."""
    shutil.rmtree(folder(shared), ignore_errors=True)
    compare(shared)
    assert sorted(path.name for path in folder(shared).iterdir()) == sorted(map(str, handles(shared)[:2]))
    return shared


def compare(store: Store) -> None:
    """All is found, and by the fast way."""
    for name, expected in (("child", EXPECTED), ("grandchild", GRAND)):
        changes = store.changes(name, method="fast")
        assert sorted(told(changes)) == sorted(expected)


def folder(store: Store) -> Path:
    return store.root / "devicemapper/names"


def handles(store: Store) -> list[int]:
    return [store._session.record(name).handle for name in ("base", "child", "grandchild")]


def file_of(store: Store, index: int) -> Path:
    return folder(store) / str(handles(store)[index])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("index", [0, 1], ids=["whole", "delta"])
@pytest.mark.parametrize("harm", [cut, empty, Path.unlink, link_instead, directory_instead])
def test_harm_to_a_file(store: Store, index: int, harm: Callable[[Path], object]) -> None:
    harm(file_of(store, index))
    compare(store)


@pytest.mark.parametrize("index", [0, 1], ids=["whole", "delta"])
def test_flipped_bits(store: Store, index: int) -> None:
    dice = random.Random(index)
    for _ in range(12):
        path = file_of(store, index)
        data = bytearray(path.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        compare(store)


def test_manifest_of_another_layer(store: Store) -> None:
    whole, delta = (file_of(store, index).read_bytes() for index in (0, 1))
    file_of(store, 0).write_bytes(delta)
    compare(store)
    file_of(store, 1).write_bytes(whole)
    compare(store)


def test_manifest_of_another_store(store: Store) -> None:
    """Of a layer with the same number, made at the same time of the pool's."""
    with store_of(MAKES["usual"]) as other:
        fill(other, "base", lambda root: (root / "f").touch())
        fill(other, "child", lambda root: (root / "f").write_text("x"), "base")
        fill(other, "more", change_of_nothing, "child")
        assert told(other.changes("child", method="fast")) == [("C", "/f")]
        names = {path.name for path in folder(other).iterdir()}
        assert names & {path.name for path in folder(store).iterdir()}
        for path in folder(other).iterdir():
            shutil.copy(path, folder(store) / path.name)
    compare(store)


def change_of_nothing(root: Path) -> None:
    (root / "f").touch()


def test_manifest_goes_with_its_layer(store: Store) -> None:
    fill(store, "passing", change_again, "child")
    fill(store, "above", change_again, "passing")
    assert told(store.changes("above", method="fast")) == GRAND
    number = store._session.record("passing").handle
    assert (folder(store) / str(number)).exists()
    store.remove("above")
    store.remove("passing")
    assert not (folder(store) / str(number)).exists()


def test_number_that_is_used_again(store: Store) -> None:
    """A manifest that somebody kept, of a device that was deleted, does not fit the next one of that number."""
    fill(store, "passing", change, "base")
    fill(store, "above", change_again, "passing")
    store.changes("above", method="fast")
    number = store._session.record("passing").handle
    kept = (folder(store) / str(number)).read_bytes()
    store.remove("above")
    store.remove("passing")
    pool = store._session.driver._pool.name  # type: ignore[attr-defined]
    store.prepare("work", "base")
    with store.mount("work") as root:
        change_again(root)
    store.commit("again", "work")
    again = store._session.record("again").handle
    thins = store._session.driver._thins  # type: ignore[attr-defined]
    thins.delete(again)
    subprocess.run(["dmsetup", "message", pool, "0", f"create_snap {again} {handles(store)[1]}"], check=True)
    (folder(store) / str(again)).write_bytes(kept)
    fill(store, "above", change_again, "again")
    assert told(store.changes("above", method="fast")) == GRAND
    store.remove("above")
    store.remove("again")


def test_full_or_missing_folder_costs_time_only(store: Store) -> None:
    shutil.rmtree(folder(store))
    folder(store).write_text("in the way")
    compare(store)
    folder(store).unlink()


@pytest.mark.timeout(200)
def test_killed_while_it_is_made(store: Store) -> None:
    """At any point; what is left is of no harm, and is removed by recovery."""
    dice = random.Random(7)
    code = "import sys; from thinpool import Store; Store.open(sys.argv[1]).changes('grandchild', method='fast')"
    for _ in range(6):
        shutil.rmtree(folder(store))
        process = subprocess.Popen([sys.executable, "-c", code, str(store.root)])
        limit = time.monotonic() + dice.random()
        while process.poll() is None and time.monotonic() < limit:
            if folder(store).exists() and dice.random() < 0.3:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        compare(store)
    (folder(store) / f"{PART}left").write_text("half")
    store._session.ready(again=True)
    assert not [path for path in folder(store).iterdir() if path.name.startswith(PART)]
    compare(store)
