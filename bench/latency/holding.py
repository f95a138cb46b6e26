"""The part `hold`: how long a writer in the layer has to wait while the layer's state is taken.

A writer of its own, at real-time priority, writes 4 KiB again and again and notes what each write took. The longest
one in the time of a checkpoint is the hold, for thinpool's checkpoint and for bare ioctls alike.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from bench.latency.kernel import BARE, BareCheckpoints
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting
from bench.latency.trees import LOAD_FILE

_MOST_SECONDS = 150.0


@attrs.frozen
class Taken:
    """One checkpoint, by the clock that all processes share."""

    contender: str
    begun: float
    ended: float


def run(setting: Setting, files: int, delays: list[int], times: int) -> None:
    """Measure so many holds of each contender, in turn, on disks of each delay; fewer where that takes too long."""
    setting.build(files, everywhere=False)
    for delay in delays:
        cell = Cell(files, 1, delay)
        setting.set_delay(0)
        setting.ours.begin(cell.files, cell.changes)
        bare = BareCheckpoints(setting.ours.store, setting.ours.root)
        try:
            setting.set_delay(delay)
            writes, taken = _measure(setting, bare, times)
        finally:
            setting.disk.set_delay(0)
            bare.close()
            setting.ours.forget()
            setting.ours.end()
        for number, one in enumerate(taken):
            hold = held(writes, one)
            setting.journal.add(Record("hold", one.contender, "hold", cell, number // 2, hold))
            whole = one.ended - one.begun
            setting.journal.add(Record("hold", one.contender, "checkpoint", cell, number // 2, whole))
        print(f"hold: {delay} ms: {len(taken) // 2} times each", flush=True)


def _measure(setting: Setting, bare: BareCheckpoints, times: int) -> tuple[list[tuple[float, float]], list[Taken]]:
    contenders: dict[str, Callable[[], object]] = {"thinpool": setting.ours.take, BARE: bare.take}
    taken: list[Taken] = []
    limit = time.monotonic() + _MOST_SECONDS
    with _writer(setting.ours.root / LOAD_FILE) as writes:
        for number in range(times):
            names = list(contenders)
            for name in names if number % 2 == 0 else names[::-1]:
                begun = time.perf_counter()
                contenders[name]()
                taken.append(Taken(name, begun, time.perf_counter()))
            if time.monotonic() > limit:
                break
    return writes, taken


@contextmanager
def _writer(file: Path) -> Iterator[list[tuple[float, float]]]:
    """A writer that runs until the end; the list then has the begin and the end of each write that took a while."""
    writes: list[tuple[float, float]] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.latency.writer", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    try:
        yield writes
    finally:
        said, _ = process.communicate("")
    for line in said.splitlines():
        begun, ended = line.split()
        writes.append((float(begun), float(ended)))


def held(writes: list[tuple[float, float]], taken: Taken) -> float:
    """The longest of the writes that fall into the time of a checkpoint; 0 where none took a while."""
    during = (end - begin for begin, end in writes if begin < taken.ended and end > taken.begun)
    return max(during, default=0.0)
