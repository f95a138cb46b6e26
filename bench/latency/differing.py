"""The part `diff`: `Store.changes` by the fastest way that is sure, against the double walk."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from bench.latency.disk import drop_caches
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting
from thinpool.model import Changes

_METHODS: tuple[Literal["auto", "walk"], ...] = ("auto", "walk")


def run(setting: Setting, cases: Sequence[tuple[int, int]], delays: list[int]) -> None:
    """Compare a committed layer with its parent, for each number of files and of changes."""
    store = setting.ours.store
    for files, changes in cases:
        setting.build(files, everywhere=False)
        setting.disk.set_delay(0)
        setting.ours.begin(files, changes)
        setting.ours.unmount()
        store.commit("compared", "live")
        try:
            for delay in delays:
                setting.set_delay(delay)
                _measure(setting, Cell(files, changes, delay))
            _peak(setting, Cell(files, changes, delays[-1]))
        finally:
            setting.disk.set_delay(0)
            store.remove("compared")


def _measure(setting: Setting, cell: Cell) -> None:
    spent: Counter[str] = Counter()
    used: dict[str, str] = {}
    for number in range(setting.rounds):
        for method in _METHODS if number % 2 == 0 else _METHODS[::-1]:
            if spent[method] >= setting.limit * 1000:
                continue
            drop_caches()
            begun = time.perf_counter()
            found = setting.ours.store.changes("compared", method=method)
            taken = time.perf_counter() - begun
            _check(found, cell)
            used[method] = found.method
            spent[method] += round(taken * 1000)
            setting.journal.add(Record("diff", "thinpool", method, cell, number, taken))
    setting.journal.note(f"diff: {cell}: auto was done by {used['auto']}")


def _check(found: Changes, cell: Cell) -> None:
    if len(found) != cell.changes:
        raise AssertionError(f"{len(found)} changes were found by {found.method}, and {cell.changes} made")


def _peak(setting: Setting, cell: Cell) -> None:
    """The memory of a process that does nothing but this comparison."""
    root = str(setting.ours.store.root)
    command = [sys.executable, "-m", "bench.latency.differ", root, "compared"]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    setting.journal.add(Record("diff", "thinpool", "peak memory", cell, 0, int(said) / 1024, unit="MiB"))
