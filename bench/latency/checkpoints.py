"""The part `checkpoints`: what a checkpoint every second takes from a writer that keeps 32 writes going."""

import time
from collections.abc import Callable

from bench.latency.contender import nothing
from bench.latency.disk import drop_caches
from bench.latency.kernel import BARE, BareCheckpoints
from bench.latency.load import writing
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting
from bench.latency.trees import LOAD_FILE

UNDISTURBED = "undisturbed"


def run(setting: Setting, files: int, delays: list[int], seconds: float, rounds: int) -> None:
    """Measure fio's writes a second with checkpoints by thinpool, by bare ioctls, and without any, in turn."""
    setting.build(files, everywhere=False)
    for delay in delays:
        setting.set_delay(0)
        setting.ours.begin(files, 1)
        bare = BareCheckpoints(setting.ours.store, setting.ours.root)
        try:
            setting.set_delay(delay)
            _measure(setting, bare, Cell(files, 1, delay, "layer"), seconds, rounds)
        finally:
            setting.disk.set_delay(0)
            bare.close()
            setting.ours.end()
        print(f"checkpoints: {delay} ms: {rounds} times {seconds:g} s each", flush=True)


def _measure(setting: Setting, bare: BareCheckpoints, cell: Cell, seconds: float, rounds: int) -> None:
    contenders: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "thinpool": (setting.ours.take, setting.ours.forget),
        BARE: (bare.take, bare.forget),
        UNDISTURBED: (nothing, nothing),
    }
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else names[::-1]:
            checkpoint, undo = contenders[name]
            drop_caches()
            with writing(setting.disk, setting.ours.root / LOAD_FILE) as load:
                count = _every_second(checkpoint, seconds)
            undo()
            reached = load.writes_per_second
            setting.journal.add(Record("checkpoints", name, "writes per second", cell, number, reached, unit="1/s"))
            setting.journal.add(Record("checkpoints", name, "checkpoints", cell, number, count, unit=""))


def _every_second(checkpoint: Callable[[], object], seconds: float) -> int:
    """At each full second, or as soon as the one before has ended; how many there were."""
    begun, count = time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        if now >= begun + count:
            checkpoint()
            count += 1
        else:
            time.sleep(begun + count - now)
    return count
