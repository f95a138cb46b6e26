"""The part `commit`: the contenders' operations on the same layer, one after the other, in every cell of the matrix."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.latency.contender import Contender, CutShort, Operation
from bench.latency.disk import drop_caches
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting


def run(setting: Setting, cells: Sequence[Cell]) -> None:
    """Measure all cells."""
    for cell in cells:
        setting.build(cell.files, everywhere=True)
        setting.set_delay(0)
        chosen = [one for one in setting.contenders.values() if cell.load == "none" or not one.context]
        with ExitStack() as layers:
            for contender in chosen:
                contender.begin(cell.files, cell.changes)
                layers.callback(contender.end)
                if cell.load == "pool":
                    contender.other()
            layers.callback(setting.disk.set_delay, 0)
            setting.set_delay(cell.delay)
            _measure(setting, cell, chosen)


def _measure(setting: Setting, cell: Cell, contenders: Sequence[Contender]) -> None:
    turns = [
        (contender, operation)
        for contender in contenders
        for operation in contender.operations
        if cell.load == "none" or not operation.context
    ]
    spent: Counter[tuple[str, str]] = Counter()
    begun = time.monotonic()
    for number in range(setting.rounds):
        for contender, operation in turns if number % 2 == 0 else turns[::-1]:
            key = contender.name, operation.name
            if spent[key] < setting.limit * 1000:
                record = _once(setting, cell, contender, operation, number)
                spent[key] += round(record.value * 1000)
                setting.journal.add(record)
    print(f"commit: {cell}: {time.monotonic() - begun:.0f} s", flush=True)


def _once(setting: Setting, cell: Cell, contender: Contender, operation: Operation, number: int) -> Record:
    """With nothing cached but the programs, and with the load running for a while already."""
    drop_caches()
    operation.warm()
    cut = False
    with _loaded(setting, cell, contender, operation, number):
        begun = time.perf_counter()
        try:
            operation.run()
        except CutShort:
            cut = True
        taken = time.perf_counter() - begun
    operation.undo()
    return Record("commit", contender.name, operation.name, cell, number, taken, cut=cut)


@contextmanager
def _loaded(setting: Setting, cell: Cell, contender: Contender, operation: Operation, number: int) -> Iterator[None]:
    with setting.loaded(cell.load, contender) as load:
        yield
    if load is not None:
        what = f"writes per second beside {operation.name}"
        reached = Record("load", contender.name, what, cell, number, load.writes_per_second, unit="1/s")
        setting.journal.add(reached)
