"""What the measurements come to: figures with their spread, ratios round by round, and the targets."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import attrs

from bench.latency.records import LOADS, Cell, Record, Run
from bench.measure import Row, Sample

THINPOOL = "thinpool"
DOCKER = "docker devicemapper"
CONTAINERD = "containerd devmapper"
_IDLE = "none"


@attrs.frozen
class Figure:
    """One thing in one cell, over the rounds.

    Attributes:
        sample: the values.
        unit: of them.
        cut: at least one was ended at the limit of time.
    """

    sample: Sample
    unit: str
    cut: bool

    def __str__(self) -> str:
        first, third = self.sample.spread
        more = "over " if self.cut else ""
        median, low, high = (_short(value, self.unit) for value in (self.sample.median, first, third))
        return f"{more}{median} ({low}-{high})"


def _short(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.4g} {unit}".rstrip()


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed."""
    if not values or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values: accepted are 1 to 100, of at least one value")
    return sorted(values)[-(-len(values) * percent // 100) - 1]


class Index:
    """The measurements of a run, found by what they are of."""

    def __init__(self, run: Run) -> None:
        self._found: dict[tuple[str, str, str, Cell], dict[int, Record]] = {}
        for record in run.records:
            self._found.setdefault(record.thing, {})[record.round] = record

    def cells(self, part: str) -> list[Cell]:
        """The cells of a part, smallest and fastest first, idle before busy."""
        found = {cell for where, _, _, cell in self._found if where == part}
        return sorted(found, key=lambda cell: (cell.files, cell.changes, cell.delay, LOADS.index(cell.load)))

    def things(self, part: str, cell: Cell) -> list[tuple[str, str]]:
        """Contenders and operations in a cell, in the order in which they were first measured."""
        return [(who, what) for found, who, what, where in self._found if found == part and where == cell]

    def rounds(self, part: str, contender: str, operation: str, cell: Cell) -> Mapping[int, float]:
        """The values, by round."""
        found = self._found.get((part, contender, operation, cell), {})
        return {number: record.value for number, record in found.items()}

    def figure(self, part: str, contender: str, operation: str, cell: Cell) -> Figure | None:
        """The values summed up; None where there are none."""
        records = list(self._found.get((part, contender, operation, cell), {}).values())
        if not records:
            return None
        sample = Sample(tuple(record.value for record in records))
        return Figure(sample, records[0].unit, any(record.cut for record in records))

    def read_latency(self, delay: int) -> float | None:
        """Seconds that a read took on the disk of that delay."""
        figure = self.figure("disk", "disk", "read 4 KiB", Cell(0, 0, delay))
        return None if figure is None else figure.sample.median


def ratios(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    """Round by round, as a machine that slows down for a while slows both down."""
    return [over[number] / under[number] for number in sorted(over.keys() & under.keys())]


def targets(index: Index) -> list[Row]:
    """The figures that have a target, where they were measured."""
    return [*_commits(index), *_holds(index), *_checkpoints(index), *_usages(index), *_diffs(index)]


def _row(
    what: str,
    over: tuple[str, Mapping[int, float]],
    under: tuple[str, Mapping[int, float]],
    target: float,
) -> Iterator[Row]:
    found = ratios(over[1], under[1])
    if found:
        names = (f"{name} {Figure(Sample(tuple(values.values())), 's', cut=False)}" for name, values in (over, under))
        yield Row(what, statistics.median(found), "x", target, at_least=True, detail=", ".join(names))


def _commits(index: Index) -> Iterator[Row]:
    """Commits, with one file changed, in trees of every size that was measured."""
    for cell in index.cells("commit"):
        if cell.changes != 1:
            continue
        idle = cell.load == _IDLE
        commit = index.rounds("commit", THINPOOL, "commit", cell)
        export = index.rounds("commit", THINPOOL, "commit + export", cell)
        docker = index.rounds("commit", DOCKER, "commit", cell)
        ctr = index.rounds("commit", CONTAINERD, "commit", cell)
        alone = index.rounds("commit", CONTAINERD, "ctr alone", cell)
        less = {number: taken - alone[number] for number, taken in ctr.items() if number in alone}
        where = f"{cell.files:,} files, {cell.delay} ms, load: {cell.load}"
        ours = ("thinpool", commit)
        yield from _row(f"commit against docker's: {where}", ("docker", docker), ours, 50 if idle else 100)
        yield from _row(
            f"commit + export against docker's commit: {where}", ("docker", docker), ("thinpool", export), 10
        )
        bound = 10 if idle else 3
        yield from _row(f"commit against ctr's: {where}", ("ctr", ctr), ours, bound)
        yield from _row(f"the same, less ctr's own start: {where}", ("ctr", less), ours, bound)


def _holds(index: Index) -> Iterator[Row]:
    for cell in index.cells("hold"):
        ours = list(index.rounds("hold", THINPOOL, "hold", cell).values())
        bare = list(index.rounds("hold", "bare ioctls", "hold", cell).values())
        if ours and bare and percentile(bare, 99) > 0:
            figure = percentile(ours, 99) / percentile(bare, 99)
            detail = ", ".join(
                f"{name} p50 {percentile(values, 50) * 1e3:.2f} ms, p99 {percentile(values, 99) * 1e3:.2f} ms"
                for name, values in (("thinpool", ours), ("bare", bare))
            )
            what = f"hold of a writer, p99, against bare ioctls: {cell.delay} ms, {len(ours)} times"
            yield Row(what, figure, "x", 1.2, at_least=False, detail=detail)


def _checkpoints(index: Index) -> Iterator[Row]:
    for cell in index.cells("checkpoints"):
        found = {
            name: index.rounds("checkpoints", name, "writes per second", cell)
            for name in (THINPOOL, "bare ioctls", "undisturbed")
        }
        rounds = sorted(set.intersection(*(set(values) for values in found.values())))
        if rounds:
            lost = [
                100 * (found["bare ioctls"][number] - found[THINPOOL][number]) / found["undisturbed"][number]
                for number in rounds
            ]
            detail = ", ".join(
                f"{name} {statistics.median(values.values()):.0f} writes/s" for name, values in found.items()
            )
            what = f"throughput lost by a checkpoint every second, beyond bare ioctls: {cell.delay} ms"
            yield Row(what, statistics.median(lost), "%", 5, at_least=False, detail=detail)


def made_on(image: int) -> str:
    """What the layers of a cell of the part `usage` stand on, by the files in it."""
    return f"layers on an image of {image:,} files" if image else "layers on an empty file system"


def _usages(index: Index) -> Iterator[Row]:
    for cell in index.cells("usage"):
        over = index.rounds("usage", "thin_ls", "exclusive space", cell)
        for operation in ("exclusive space", "all of usage"):
            under = index.rounds("usage", THINPOOL, operation, cell)
            what = f"{operation}, {cell.files} {made_on(cell.changes)}, against thin_ls: {cell.delay} ms"
            yield from _row(what, ("thin_ls", over), ("thinpool", under), 5)


def _diffs(index: Index) -> Iterator[Row]:
    for cell in index.cells("diff"):
        walk = index.rounds("diff", THINPOOL, "walk", cell)
        auto = index.rounds("diff", THINPOOL, "auto", cell)
        what = f"diff of {cell.changes} changes in {cell.files:,} files against the walk: {cell.delay} ms"
        if cell.changes == 122:
            yield from _row(what, ("walk", walk), ("auto", auto), 200 if cell.delay else 50)
        peak = index.figure("diff", THINPOOL, "peak memory", cell)
        if peak is not None and (cell.files, cell.changes) == (200_000, 1_000):
            what = "peak memory of a diff of 1,000 changes in 200,000 files"
            yield Row(what, peak.sample.median, "MiB", 96, at_least=False, detail="one process, Python included")
    for cell in index.cells("diff"):
        large = index.rounds("diff", THINPOOL, "auto", attrs.evolve(cell, files=200_000))
        small = index.rounds("diff", THINPOOL, "auto", cell)
        if (cell.files, cell.changes) == (10_000, 1) and large and small:
            figure = statistics.median(large.values()) / statistics.median(small.values())
            what = f"diff of 1 change, 200,000 files against 10,000: {cell.delay} ms"
            yield Row(what, figure, "x", 1.2, at_least=False, detail="medians of thinpool's changes by auto")
