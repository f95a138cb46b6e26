"""Comparisons of two layers against the walk over both, on fast and on slow disks, and how they grow."""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from bench.alone import peak
from bench.measure import Row, in_turn, milliseconds, ratio
from bench.slow import slow_pool
from thinpool import Store

_FILES = 50_000
_FEW, _MANY = 10_000, 200_000
_CHANGES = 122
_SLOW_MS = 10
_MIB = 1024


def run(scratch: Path, rounds: int) -> list[Row]:
    """All rows of the table."""
    few = max(rounds // 10, 5)
    rows = []
    for row in chain(against_walk(scratch, few), growing(scratch, few)):
        print(f"{row.what}: {row.figure:.2f} {row.unit}; {row.detail}", file=sys.stderr)
        rows.append(row)
    return rows


def against_walk(scratch: Path, rounds: int) -> Iterator[Row]:
    """122 changes among 50,000 files, without and with a delay of the disk."""
    with slow_pool(scratch / "walk", "4G") as pool:
        store = pool.store
        _make(store, "base", None, lambda root: fill(root, _FILES))
        _make(store, "child", "base", lambda root: change(root, _FILES, _CHANGES))
        for delay, target, turns in ((0, 50, rounds), (_SLOW_MS, 200, 1)):
            pool.delay(delay)
            store.changes("child", method="fast")
            contestants = {
                "fast": lambda: _changes(store, "child", "fast"),
                "walk": lambda: _changes(store, "child", "walk"),
            }
            found = in_turn(contestants, turns, warm_up=0)
            what = f"{_CHANGES} changes in {_FILES:,} files, disk delay {delay} ms, against the walk"
            yield ratio(what, ("walk", found["walk"]), ("fast", found["fast"]), target, at_least=True)
            done = store.changes("child", method="fast")
            print(f"{what}: {done.reads} reads, {done.bytes} bytes", file=sys.stderr)


def growing(scratch: Path, rounds: int) -> Iterator[Row]:
    """One change among few files and among many; and the memory that many changes take."""
    with slow_pool(scratch / "grow", "8G") as pool:
        store = pool.store
        for name, files in (("few", _FEW), ("many", _MANY)):
            _make(store, name, None, partial(fill, files=files))
            _make(store, f"{name}-1", name, partial(change, files=files, changes=1))
            _changes(store, f"{name}-1", "fast")
        _make(store, "many-1000", "many", lambda root: change(root, _MANY, 1000))
        found = in_turn(
            {"few": lambda: _changes(store, "few-1", "fast"), "many": lambda: _changes(store, "many-1", "fast")},
            rounds * 4,
        )
        what = f"1 change in {_MANY:,} files against 1 in {_FEW:,}"
        yield ratio(what, (f"{_MANY:,}", found["many"]), (f"{_FEW:,}", found["few"]), 1.2, at_least=False)
        begun = in_turn({"1000": lambda: _changes(store, "many-1000", "fast")}, rounds)
        kib = peak("diff", store.root, "many-1000")
        what = f"peak memory of 1,000 changes in {_MANY:,} files"
        yield Row(what, kib / _MIB, "MiB", 96, False, f"Python included; takes {milliseconds(begun['1000'])}")


def fill(root: Path, files: int) -> None:
    """A tree of small files, ten a directory and a hundred directories in one, as in a system's root."""
    for number in range(files):
        path = _file(root, number)
        if number % 10 == 0:
            path.parent.mkdir(parents=True)
        path.write_text(f"{number}\n")


def _file(root: Path, number: int) -> Path:
    return root / f"part-{number // 1000:03}" / f"sub-{number // 10:05}" / f"file-{number:06}"


def change(root: Path, files: int, changes: int) -> None:
    """Append to most of some files, and change what else there is of others; each is one row of a comparison."""
    for count, number in enumerate(random.Random(changes).sample(range(files), changes)):
        path = _file(root, number)
        if count % 10 == 7:
            path.unlink()
        elif count % 10 == 8:
            path.chmod(0o600)
        elif count % 10 == 9:
            path.with_suffix(".new").write_text("new\n")
        else:
            with path.open("a") as file:
                file.write("more\n")


def _make(store: Store, name: str, parent: str | None, write: Callable[[Path], None]) -> None:
    store.prepare("work", parent)
    with store.mount("work") as root:
        write(root)
    store.commit(name, "work")


def _changes(store: Store, name: str, method: Literal["fast", "walk"]) -> None:
    changes = store.changes(name, method=method)
    if changes.method != method:
        raise AssertionError(changes.reason)
