"""The results as tables, for a terminal; the page shows the same ones."""

from collections.abc import Iterator, Sequence

import attrs

from bench.latency.records import Cell, Run
from bench.latency.summary import THINPOOL, Index, made_on, percentile, targets
from bench.measure import Row

_PARTS = ("commit", "load", "hold", "checkpoints", "background", "usage", "diff")
_COMPARED = ("commit", "diff")


@attrs.frozen
class Table:
    """A table with a title, its cells as text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(run: Run) -> list[Table]:
    """All tables: targets, the disk, and every cell of every part."""
    index = Index(run)
    found = [_targets(targets(index)), _disk(index)]
    for part in _PARTS:
        found += [_cell(index, part, cell) for cell in index.cells(part)]
    return [table for table in found if table.rows]


def _targets(rows: Sequence[Row]) -> Table:
    return Table(
        "Targets",
        ("what", "figure", "target", "", "from"),
        [
            (
                row.what,
                f"{row.figure:.3g} {row.unit}",
                f"{'≥' if row.at_least else '≤'} {row.target:g} {row.unit}",
                "met" if row.met else "MISSED",
                row.detail,
            )
            for row in rows
        ],
    )


def _disk(index: Index) -> Table:
    rows = []
    for cell in index.cells("disk"):
        latency = index.read_latency(cell.delay)
        assert latency is not None
        rows.append((f"{cell.delay} ms", f"{latency * 1e3:.2f} ms"))
    return Table("The disk: dm-delay's setting, and what a read of 4 KiB takes", ("asked for", "read"), rows)


def _cell(index: Index, part: str, cell: Cell) -> Table:
    rows = []
    for contender, operation in index.things(part, cell):
        figure = index.figure(part, contender, operation, cell)
        assert figure is not None
        times = "" if part not in _COMPARED else _times(index, part, (contender, operation), cell)
        tail = ""
        if part == "hold":
            values = figure.sample.seconds
            tail = ", ".join(f"p{p} {percentile(values, p) * 1e3:.2f} ms" for p in (50, 90, 99, 100))
        rows.append((contender, operation, str(figure), str(len(figure.sample.seconds)), times or tail))
    where = f"{cell.files:,} {made_on(cell.changes)}, {cell.delay} ms" if part == "usage" else str(cell)
    return Table(f"{part}: {where}", ("who", "what", "median (quartiles)", "n", "against thinpool"), rows)


def _times(index: Index, part: str, thing: tuple[str, str], cell: Cell) -> str:
    """How many times as long as thinpool's own operation of that name, or its commit."""
    figure = index.figure(part, *thing, cell)
    name = thing[1] if index.figure(part, THINPOOL, thing[1], cell) is not None else "commit"
    ours = index.figure(part, THINPOOL, name, cell)
    if thing[0] == THINPOOL or figure is None or ours is None:
        return ""
    return f"{figure.sample.median / ours.sample.median:.3g} x its {name}"


def text(table: Table) -> Iterator[str]:
    """The lines of a table."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    yield table.title
    for line in lines:
        yield "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def show(run: Run) -> bool:
    """Print all tables; whether a target was missed."""
    for machine in run.machines:
        print(machine)
    for table in tables(run):
        print()
        for line in text(table):
            print(line)
    return any(not row.met for row in targets(Index(run)))
