"""`python -m bench commit-latency`: measure, keep every figure as it comes, and show the tables."""

import argparse
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.latency import background, checkpoints, committing, differing, holding, usage
from bench.latency.matrix import lines, product
from bench.latency.records import LOADS, Journal, read_run
from bench.latency.setting import CONTENDERS, Setting, prepared
from bench.latency.tables import show
from bench.measure import machine
from bench.ops import scratch_directory

PARTS = ("commit", "hold", "checkpoints", "background", "usage", "diff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; lists are separated by commas."""
    add = parser.add_argument
    add("--disk", type=Path, help="an empty block device, overwritten (default: the first of $LAB_DISKS)")
    add("--results", type=Path, help="JSON lines, appended to (default: commit-latency.jsonl in $LAB_OUT)")
    add("--page", type=Path, help="the HTML page (default: beside the results)")
    add("--parts", type=_names(PARTS), default=PARTS, help=f"of {','.join(PARTS)} (default: all)")
    add("--contenders", type=_names(CONTENDERS), default=CONTENDERS, help=f"of {','.join(CONTENDERS)} (default: all)")
    add("--files", type=_numbers, default=[20_000], help="files in the tree (default: 20000)")
    add("--changes", type=_numbers, default=[1, 100], help="files changed (default: 1,100)")
    add("--delays", type=_numbers, default=[0, 10], help="milliseconds for dm-delay (default: 0,10)")
    add("--loads", type=_names(LOADS), default=LOADS, help=f"of {','.join(LOADS)} (default: all)")
    add("--product", action="store_true", help="all combinations, not only the lines through the first of each")
    add("--rounds", type=int, default=5, help="how often each thing is measured (default: 5)")
    add("--limit", type=float, default=10.0, help="seconds for all rounds of one thing (default: 10)")
    add("--holds", type=int, default=100, help="holds of each contender and delay (default: 100)")
    add("--seconds", type=float, default=10.0, help="of a checkpoint every second, three times (default: 10)")
    add("--layers", type=int, default=500, help="layers whose usage is asked for (default: 500)")
    add(
        "--diffs",
        type=_pairs,
        default=[(53_000, 122), (10_000, 1)],
        help="FILES:CHANGES of the part diff (default: 53000:122,10000:1)",
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _pairs(text: str) -> list[tuple[int, int]]:
    return [(int(files), int(changes)) for files, _, changes in (pair.partition(":") for pair in text.split(","))]


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        if unknown := set(given) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: accepted are {', '.join(known)}")
        return given

    return names


def measure(options: argparse.Namespace) -> int:
    """Run the parts that were asked for; 1 where a target was missed."""
    disk = options.disk or Path(os.environ.get("LAB_DISKS", "").split(" ")[0] or "/nonexistent")
    results = options.results or Path(os.environ.get("LAB_OUT", "."), "commit-latency.jsonl")
    scratch = scratch_directory()
    try:
        with (
            Journal(results, describe()) as journal,
            prepared(disk, scratch, options.contenders, journal, rounds=options.rounds, limit=options.limit) as setting,
        ):
            for part in options.parts:
                _PARTS[part](setting, options)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report(results, options.page)


def report(results: Path, page: Path | None) -> int:
    """Show what a results file has, and write its page; 1 where a target was missed."""
    from bench.latency.page import write_page  # noqa: PLC0415 - matplotlib is large, and those measured are not to feel it

    with results.open(encoding="utf-8") as file:
        run = read_run(file)
    write_page(run, page or results.with_suffix(".html"))
    return 1 if show(run) else 0


def describe() -> str:
    """The machine, in one line."""
    with open("/proc/meminfo", encoding="ascii") as file:
        kib = int(file.readline().split()[1])
    lab = {"uml": "the UML lab", "qemu": "the QEMU lab"}.get(os.environ.get("LAB_KERNEL", ""), "no lab")
    return f"{machine()}, {round(kib / (1 << 20))} GiB of memory, {platform.machine()}, {lab}"


def _commit(setting: Setting, options: argparse.Namespace) -> None:
    axes = options.files, options.changes, options.delays, options.loads
    committing.run(setting, product(*axes) if options.product else lines(*axes))


def _hold(setting: Setting, options: argparse.Namespace) -> None:
    holding.run(setting, options.files[0], options.delays, options.holds)


def _checkpoints(setting: Setting, options: argparse.Namespace) -> None:
    checkpoints.run(setting, options.files[0], options.delays[-1:], options.seconds, 3)


def _background(setting: Setting, options: argparse.Namespace) -> None:
    background.run(setting, options.files[0], options.delays, options.rounds)


def _usage(setting: Setting, options: argparse.Namespace) -> None:
    usage.run(setting, options.layers, options.files[0], options.delays)


def _diff(setting: Setting, options: argparse.Namespace) -> None:
    differing.run(setting, options.diffs, options.delays)


_PARTS: dict[str, Callable[[Setting, argparse.Namespace], None]] = {
    "commit": _commit,
    "hold": _hold,
    "checkpoints": _checkpoints,
    "background": _background,
    "usage": _usage,
    "diff": _diff,
}
