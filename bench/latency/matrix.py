"""Which points of the matrix are measured."""

from collections.abc import Sequence

from bench.latency.records import Cell


def product(files: Sequence[int], changes: Sequence[int], delays: Sequence[int], loads: Sequence[str]) -> list[Cell]:
    """All combinations, with what costs least to change changing most often."""
    return [
        Cell(many, changed, delay, load)
        for many in files
        for changed in changes
        for delay in delays
        for load in loads
        if changed <= many
    ]


def lines(files: Sequence[int], changes: Sequence[int], delays: Sequence[int], loads: Sequence[str]) -> list[Cell]:
    """Every delay with every load at the first numbers of files and changes; on the slowest disk, idle, all others."""
    slowest = max(delays)
    cells = product(files[:1], changes[:1], delays, loads)
    cells += [Cell(files[0], changed, slowest) for changed in changes[1:]]
    cells += [Cell(many, changes[0], slowest) for many in files[1:]]
    return list(dict.fromkeys(cells))
