"""The part `background`: what an export takes from a writer in another layer, as it comes and when told to give way.

The exporting command runs beside fio: as it is, with the idle class of I/O priority, and in a control group whose reads
are held to a quarter of what the command read by itself.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.latency.contender import limited, tool
from bench.latency.disk import SlowDisk, drop_caches
from bench.latency.load import writing
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting

UNDISTURBED, PLAIN, IDLE, GROUP = "undisturbed", "export", "export --ioprio idle", "export --cgroup"
_CGROUPS = Path("/sys/fs/cgroup")
_LIMIT_SECONDS = 300.0
_SHARE = 4


def run(setting: Setting, files: int, delays: Sequence[int], rounds: int) -> None:
    """Measure fio's writes a second beside each kind of export, and with nothing beside it, in turn."""
    setting.build(files, everywhere=False)
    for delay in delays:
        setting.set_delay(0)
        setting.ours.begin(files, 1)
        target = setting.ours.other()
        try:
            setting.set_delay(delay)
            with _group(setting.disk, _speed(setting, files) // _SHARE) as group:
                _measure(setting, Cell(files, 1, delay, "pool"), target, group, rounds)
        finally:
            setting.disk.set_delay(0)
            setting.ours.end()
        print(f"background: {delay} ms: {rounds} times", flush=True)


def _measure(setting: Setting, cell: Cell, target: Path, group: Path, rounds: int) -> None:
    ways: dict[str, Sequence[str]] = {PLAIN: (), IDLE: ("--ioprio", "idle"), GROUP: ("--cgroup", str(group))}
    seconds = 0.0
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            drop_caches()
            with writing(setting.disk, target) as load:
                begun = time.perf_counter()
                _export(setting, cell.files, *ways[name])
                taken = time.perf_counter() - begun
            seconds = max(seconds, taken) if name == PLAIN else seconds or taken
            _add(setting, name, "writes per second", cell, number, load.writes_per_second, unit="1/s")
            _add(setting, name, "export", cell, number, taken)
        with writing(setting.disk, target) as load:
            time.sleep(seconds)
        _add(setting, UNDISTURBED, "writes per second", cell, number, load.writes_per_second, unit="1/s")


def _add(setting: Setting, name: str, what: str, cell: Cell, number: int, value: float, unit: str = "s") -> None:
    setting.journal.add(Record("background", name, what, cell, number, value, unit=unit))


def _export(setting: Setting, files: int, *options: str) -> None:
    root, layer = str(setting.ours.store.root), f"base-{files}"
    limited(
        _LIMIT_SECONDS, sys.executable, "-m", "thinpool", "--root", root, "export", layer, "-o", "/dev/null", *options
    )


def _speed(setting: Setting, files: int) -> int:
    """Bytes a second that an export reads from the disk with nothing beside it."""
    drop_caches()
    before, begun = setting.disk.read_bytes(), time.perf_counter()
    _export(setting, files)
    return int((setting.disk.read_bytes() - before) / (time.perf_counter() - begun))


@contextmanager
def _group(disk: SlowDisk, bytes_per_second: int) -> Iterator[Path]:
    """A control group whose members read so much of the disk, and no more."""
    (_CGROUPS / "cgroup.subtree_control").write_text("+io +memory")
    group = _CGROUPS / "bench-background"
    group.mkdir()
    try:
        (group / "io.max").write_text(f"{disk.number} rbps={bytes_per_second}")
        yield group
    finally:
        tool("rmdir", str(group))
