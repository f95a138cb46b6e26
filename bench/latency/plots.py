"""Plots of the results, as SVG."""

import io
from collections.abc import Callable, Iterator

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.latency.records import Cell
from bench.latency.summary import THINPOOL, Index

_IDLE = "none"
_MS = 1e3
_SIZE = (9.0, 4.8)


def plots(index: Index) -> Iterator[tuple[str, str]]:
    """Each plot with its caption, where there is enough to plot."""
    cells = [cell for cell in index.cells("commit") if cell.load == _IDLE]
    if cells:
        first = cells[0]
        axes: tuple[tuple[str, Callable[[Cell], float]], ...] = (
            ("delay", lambda cell: (index.read_latency(cell.delay) or 0) * _MS),
            ("files", lambda cell: cell.files),
            ("changes", lambda cell: cell.changes),
        )
        for field, place in axes:
            along = _along(cells, field, index)
            if len(along) > 1:
                yield _caption(field, along[0]), _lines(index, along, field, place)
        loaded = [cell for cell in index.cells("commit") if (cell.files, cell.changes) == (first.files, first.changes)]
        for delay in sorted({cell.delay for cell in loaded}):
            some = [cell for cell in loaded if cell.delay == delay]
            if len(some) > 1:
                yield f"Commit under load: {first.files:,} files, 1 changed, {delay} ms.", _bars(index, some)
    for cell in index.cells("hold"):
        yield (
            f"How long a writer is held by a checkpoint, {cell.delay} ms: the share of all that took no longer.",
            _distribution(index, cell),
        )


def _along(cells: list[Cell], field: str, index: Index) -> list[Cell]:
    """The cells of the longest line along one axis; of two as long, that with more contenders, on the slower disk."""
    groups: dict[tuple[int, ...], list[Cell]] = {}
    for cell in cells:
        rest = tuple(getattr(cell, name) for name in ("files", "changes", "delay") if name != field)
        groups.setdefault(rest, []).append(cell)
    return max(groups.values(), key=lambda group: (len(group), len(index.things("commit", group[0])), group[0].delay))


def _caption(field: str, cell: Cell) -> str:
    fixed = {"files": f"{cell.files:,} files", "changes": f"{cell.changes:,} changed", "delay": f"{cell.delay} ms"}
    names = {
        "files": "the number of files",
        "changes": "the number of changes",
        "delay": "what a read of the disk takes",
    }
    others = ", ".join(text for name, text in fixed.items() if name != field)
    return f"Commit against {names[field]}: {others}, idle. Bars are quartiles."


def _lines(index: Index, cells: list[Cell], field: str, place: Callable[[Cell], float]) -> str:
    figure, axes = _new()
    for contender, operation in index.things("commit", cells[0]):
        if operation not in {"commit", "commit + export"}:
            continue
        points = []
        for cell in cells:
            found = index.figure("commit", contender, operation, cell)
            if found is not None:
                low, high = found.sample.spread
                points.append((place(cell), found.sample.median, low, high))
        if points:
            x, middle, low_, high_ = (list(column) for column in zip(*points, strict=True))
            _plot(axes, f"{contender}: {operation}", x, middle, low_, high_, contender)
    axes.set_xlabel({"delay": "a read of 4 KiB, ms", "files": "files", "changes": "changes"}[field])
    axes.set_ylabel("seconds")
    axes.set_yscale("log")
    if field != "delay":
        axes.set_xscale("log")
        places = sorted({place(cell) for cell in cells})
        axes.set_xticks(places, [f"{at:,.0f}" for at in places])
        axes.minorticks_off()
    return _done(figure, axes)


def _plot(
    axes: Axes, label: str, x: list[float], middle: list[float], low: list[float], high: list[float], contender: str
) -> None:
    below = [max(m - v, 0.0) for m, v in zip(middle, low, strict=True)]
    above = [max(v - m, 0.0) for m, v in zip(middle, high, strict=True)]
    width = 2.5 if contender == THINPOOL else 1.2
    axes.errorbar(x, middle, yerr=[below, above], label=label, marker="o", linewidth=width, capsize=3)


def _bars(index: Index, cells: list[Cell]) -> str:
    figure, axes = _new()
    things = [thing for thing in index.things("commit", cells[-1]) if thing[1] in {"commit", "commit + export"}]
    width = 0.8 / max(len(things), 1)
    for number, (contender, operation) in enumerate(things):
        found = [index.figure("commit", contender, operation, cell) for cell in cells]
        places = [position + number * width for position, figure_ in enumerate(found) if figure_ is not None]
        heights = [figure_.sample.median for figure_ in found if figure_ is not None]
        axes.bar(places, heights, width, label=f"{contender}: {operation}")
    axes.set_xticks([position + 0.4 - width / 2 for position in range(len(cells))], [cell.load for cell in cells])
    axes.set_ylabel("seconds")
    axes.set_yscale("log")
    return _done(figure, axes)


def _distribution(index: Index, cell: Cell) -> str:
    figure, axes = _new()
    for contender, operation in index.things("hold", cell):
        if operation == "hold":
            values = sorted(index.rounds("hold", contender, operation, cell).values())
            shares = [(position + 1) / len(values) for position in range(len(values))]
            axes.step([value * _MS for value in values], shares, where="post", label=contender)
    axes.axhline(0.5, color="#bbb", linewidth=0.8)
    axes.axhline(0.99, color="#bbb", linewidth=0.8)
    axes.set_xlabel("held for, ms")
    axes.set_ylabel("share")
    return _done(figure, axes)


def _new() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _done(figure: Figure, axes: Axes) -> str:
    axes.grid(visible=True, which="major", color="#eee")
    axes.set_axisbelow(True)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "thinpool"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
