"""Layers compared, exported and imported, against the tools that people use; and the drivers that need no pool."""

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.alone import peak
from bench.measure import Row, in_turn, ratio
from bench.ops import ARCHIVE_BYTES, FILES, importing, make_archive, store_in
from thinpool import Store

_MANY = 50_000
_CHANGES = 10
_DISK_BYTES = 6 << 30
_MIB = 1024


def run(scratch: Path, rounds: int) -> list[Row]:
    """All rows of the table."""
    few = max(rounds // 10, 3)
    rows = [*exporting(scratch, few), *importing(scratch, few, "--xattrs")]
    rows.append(walking(scratch, few))
    for driver in ("overlay", "btrfs"):
        with (
            disk(scratch / driver, "ext4" if driver == "overlay" else "btrfs") as place,
            Store.open(place / "store", driver) as store,
        ):
            rows.append(comparing(store, few))
            rows.append(cycle(store, place, rounds))
            store.down()
    return rows


@contextmanager
def disk(folder: Path, file_system: str) -> Iterator[Path]:
    """A file system of its own on a loop device, mounted."""
    folder.mkdir()
    image, target = folder / "image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    target.mkdir()
    options = ["-q", "-E", "nodiscard"] if file_system == "ext4" else ["-q", "-K"]
    subprocess.run([f"mkfs.{file_system}", *options, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", str(image), str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
        image.unlink()


def fill(root: Path, files: int) -> None:
    """A tree of small files, a hundred a directory."""
    for number in range(files):
        folder = root / f"part-{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir()
        (folder / f"file-{number:05}").write_text(f"{number}\n")


def change(root: Path, files: int) -> None:
    """Append to some of the files."""
    for number in random.Random(10).sample(range(files), _CHANGES):
        with (root / f"part-{number // 100:04}" / f"file-{number:05}").open("a") as file:
            file.write("more\n")


def base_and_child(store: Store, files: int) -> None:
    """Layers `base`, with many files, and `child`, with some of them changed."""
    store.prepare("work")
    with store.mount("work") as root:
        fill(root, files)
    store.commit("base", "work")
    store.prepare("work", "base")
    with store.mount("work") as root:
        change(root, files)
    store.commit("child", "work")


def exporting(scratch: Path, rounds: int) -> list[Row]:
    """Export of a layer against GNU tar on its mount, both into a file in memory."""
    archive, target, output = scratch / "layer.tar", scratch / "target-export", scratch / "exported.tar"
    make_archive(archive)
    target.mkdir()
    peaks: list[int] = []
    with store_in(scratch / "export") as store:
        with archive.open("rb") as file:
            store.import_layer("layer", file)
        archive.unlink()

        def ours() -> None:
            peaks.append(peak("export", store.root, "layer", output))

        def tar() -> None:
            with store.mount("layer", target):
                command = ["tar", "--xattrs", "--sort=name", "-cf", str(output), "-C", str(target), "."]
                subprocess.run(command, check=True)

        found = in_turn({"export": ours, "tar": tar}, rounds, warm_up=1)
    output.unlink()
    what = f"export of {FILES:,} files, {ARCHIVE_BYTES // 1_000_000} MB"
    return [
        ratio(f"{what} against tar --xattrs -c", ("export", found["export"]), ("tar", found["tar"]), 2, at_least=False),
        Row(f"{what}, peak memory", max(peaks) / _MIB, "MiB", 64, False, "the exporting process, Python included"),
    ]


def walking(scratch: Path, rounds: int) -> Row:
    """The walk over two layers on thin devices against rsync's over the same two trees."""
    with store_in(scratch / "walk") as store, ExitStack() as mounts:
        base_and_child(store, FILES)
        older, newer = (mounts.enter_context(store.mount(name)) for name in ("base", "child"))

        def rsync() -> None:
            command = ["rsync", "--dry-run", "-aHAX", "--delete", "--itemize-changes", f"{newer}/", f"{older}/"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        found = in_turn({"walk": lambda: _changes(store, "walk"), "rsync": rsync}, rounds, warm_up=1)
        mounts.close()
    what = f"changes by the walk, {FILES:,} files, against rsync -n"
    return ratio(what, ("walk", found["walk"]), ("rsync", found["rsync"]), 1.5, at_least=False)


def comparing(store: Store, rounds: int) -> Row:
    """A driver's own comparison against the walk."""
    base_and_child(store, _MANY)
    found = in_turn(
        {"fast": lambda: _changes(store, "fast"), "walk": lambda: _changes(store, "walk")}, rounds, warm_up=1
    )
    what = f"{store.driver}: {_CHANGES} changes in {_MANY:,} files against the walk"
    return ratio(what, ("walk", found["walk"]), ("fast", found["fast"]), 50, at_least=True)


def _changes(store: Store, method: str) -> None:
    changes = store.changes("child", method="fast" if method == "fast" else "walk")
    if len(changes) != _CHANGES:
        raise AssertionError(f"{len(changes)} changes were found by {changes.method}, and {_CHANGES} made")


def cycle(store: Store, place: Path, rounds: int) -> Row:
    """Prepare, mount, unmount and remove against the tools that do the same with directories or subvolumes."""
    target = place / "target"
    target.mkdir()

    def ours() -> None:
        store.prepare("cycle", "base")
        with store.mount("cycle", target):
            pass
        store.remove("cycle")

    tools: dict[str, Callable[[], None]] = {"overlay": lambda: _by_mount(place), "btrfs": lambda: _by_btrfs(place)}
    if store.driver == "btrfs":
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(place / "origin")], check=True)
    else:
        (place / "origin").mkdir()
    found = in_turn({"thinpool": ours, "tools": tools[store.driver]}, rounds)
    peer = "mount(8)" if store.driver == "overlay" else "btrfs(8) and mount(8)"
    what = f"{store.driver}: prepare+mount+unmount+remove against {peer}"
    return ratio(what, ("tools", found["tools"]), ("thinpool", found["thinpool"]), 5, at_least=True)


def _by_mount(place: Path) -> None:
    for name in ("upper", "work"):
        _tool("mkdir", str(place / name))
    options = f"lowerdir={place}/origin,upperdir={place}/upper,workdir={place}/work"
    _tool("mount", "-t", "overlay", "overlay", "-o", options, str(place / "target"))
    _tool("umount", str(place / "target"))
    _tool("rm", "-rf", str(place / "upper"), str(place / "work"))


def _by_btrfs(place: Path) -> None:
    _tool("btrfs", "subvolume", "snapshot", str(place / "origin"), str(place / "snapshot"))
    _tool("mount", "--bind", str(place / "snapshot"), str(place / "target"))
    _tool("umount", str(place / "target"))
    _tool("btrfs", "subvolume", "delete", str(place / "snapshot"))


def _tool(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
