"""Operations traced, and killed, in children of a process that has all of thinpool loaded already."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from thinpool import Kind, Store
from thinpool.crashpoints import Death, point
from thinpool.drivers.btrfs import Btrfs
from thinpool.drivers.devicemapper import Devicemapper
from thinpool.drivers.stacking import StackDriver
from thinpool.filesystem.mounts import mount_table
from thinpool.images import LABELS
from thinpool.metadata import Books

_SMALL = 4096


def in_child(work: Callable[[], object]) -> int:
    """Do something in a child: 0 when it returned, 1 when it raised, -N when signal N ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the parent sees the status, and pytest what is printed
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(work: Callable[[], object]) -> list[str]:
    """Do something in a child that comes to its end: the points that it passes, in order."""
    reading, writing = os.pipe()

    def watched() -> None:
        point.watch(lambda name: os.write(writing, f"{name}\n".encode()))
        work()

    status = in_child(watched)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        names = file.read().splitlines()
    assert status == 0, f"not killed, it failed after {names}"
    return names


def killed(work: Callable[[], object], name: str, passage: int, *, may_end: bool = False) -> None:
    """Do something in a child that is killed at a point; that it passes the point is sure, unless it `may_end`."""

    def watched() -> None:
        point.watch(Death(name, passage))
        work()

    status = in_child(watched)
    accepted = {-signal.SIGKILL, 0} if may_end else {-signal.SIGKILL}
    assert status in accepted, f"ended with {status} before passage {passage} of {name}"


def passages(names: list[str]) -> list[tuple[str, int]]:
    """Each passage, with its number among those of its point."""
    return [(name, names[: index + 1].count(name)) for index, name in enumerate(names)]


def unmount_everything(store: Store) -> None:
    """Unmount every layer, also those that have no name any more."""
    for entry in reversed(list(mount_table())):
        if store._session.driver.handle_of(entry) is not None:
            store.unmount(entry.target)


@attrs.frozen
class Entry:
    """What the plain model knows of a layer."""

    kind: Kind
    parent: str | None
    files: Mapping[str, str]
    labels: Mapping[str, str] = attrs.field(factory=dict)


Model = Mapping[str, Entry]


def observed(store: Store) -> Model:
    """The layers of a store, with what is in them; one that an image named after its content, by the names of files."""
    layers = list(store.walk())
    files = {layer.name: _files(store, layer.name) for layer in layers}
    called = {name: f"image {' '.join(files[name])}" if name.startswith("sha256:") else name for name in files}
    return {
        called[layer.name]: Entry(
            layer.kind,
            called.get(layer.parent or ""),
            files[layer.name],
            {key: value for key, value in layer.labels.items() if not key.startswith(LABELS)},
        )
        for layer in layers
    }


def _files(store: Store, name: str) -> Mapping[str, str]:
    with store.mount(name, read_only=True) as root:
        return {
            entry.name: Path(entry.path).read_text(encoding="ascii") if entry.is_file() else ""
            for entry in sorted(os.scandir(root), key=lambda entry: entry.name)
            if entry.stat().st_size <= _SMALL
        }


def left_behind(store: Store) -> list[str]:
    """What is there and should not be, in a store that nobody uses and that was brought up; in words."""
    state, driver, root = store._session.state, store._session.driver, store.root
    handles = {record.handle for record in state.layers()}
    found = [f"record {record}" for record in state.unfinished()]
    found += [f"mount {entry.target}" for entry in mount_table() if driver.handle_of(entry) is not None]
    found += [f"mount directory {name}" for name in os.listdir(root / "mnt")]
    known = {"store.db", "store.db-wal", "store.db-shm", "store.db-journal", "lock", "mnt", store.driver, "lost+found"}
    found += [f"file {name} in the root" for name in set(os.listdir(root)) - known]
    if (root / "lock").read_bytes() not in {b"", b"0"}:
        found.append("the writer's mark")
    if isinstance(driver, Devicemapper):
        found += _left_in_pool(driver, handles, set(_rows(store)))
    elif isinstance(driver, StackDriver):
        found += _left_in_branches(root / store.driver, handles)
    elif isinstance(driver, Btrfs):
        found += [
            f"subvolume {name}" for name in os.listdir(root / "btrfs") if name.isdecimal() and int(name) not in handles
        ]
        found += [f"subvolume passing/{name}" for name in os.listdir(root / "btrfs/passing")]
    return found


def _rows(store: Store) -> Iterator[int]:
    """The storage that has a record, but for what is dropped with the next one that is written."""
    state = store._session.state
    for (handle,) in state._rows("SELECT handle FROM layers"):
        if handle not in state._gone:
            yield handle


def _left_in_pool(driver: Devicemapper, handles: set[int], rows: set[int]) -> Iterator[str]:
    base = driver._base.storage.handle
    yield from (f"active device {handle}" for handle in driver._thins.active())
    if rows != handles | {base}:
        yield f"records of {sorted(rows - handles - {base})}"
    with driver._pool.open_metadata() as device, Books.open(device) as books:
        thins = {details.thin_id for details in books.devices()}
        if books.superblock.held_root:
            yield "a metadata snapshot"
    if thins != handles | {base}:
        yield f"thin devices {sorted(thins - handles - {base})}, lost are {sorted((handles | {base}) - thins)}"
    folder = driver._directory
    numbers = set(map(str, handles | {base}))
    for name in ("names", "written"):
        if (folder / name).is_dir():
            yield from (f"file {name}/{file}" for file in set(os.listdir(folder / name)) - numbers)
    known = {"data", "metadata", "names", "written", "held"}
    yield from (f"file {name} of the driver" for name in set(os.listdir(folder)) - known)
    if driver._thins.holder.left():
        yield "the note of a held device"


def _left_in_branches(folder: Path, handles: set[int]) -> Iterator[str]:
    for part in "dwpt":
        for name in set(os.listdir(folder / part)) - {"0"}:
            if int(name.removesuffix("+"), 36) not in handles or part in "wt":
                yield f"{part}/{name}"
    yield from (f"file {name} of the driver" for name in set(os.listdir(folder)) - {*"dwpt", "boot", "reserve"})
