"""Time contestants in turn, and hold the ratios against targets."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import attrs


@attrs.frozen
class Sample:
    """Seconds that one contestant took, run by run."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@attrs.frozen
class Row:
    """One line of a result table.

    Attributes:
        what: what is compared.
        figure: the figure that has a target.
        unit: `x` for a ratio, else the figure's unit.
        target: the bound; `at_least` says on which side.
        at_least: whether the figure must reach the target, or must not exceed it.
        detail: the contestants' own figures, for people.
    """

    what: str
    figure: float
    unit: str
    target: float
    at_least: bool
    detail: str

    @property
    def met(self) -> bool:
        return self.figure >= self.target if self.at_least else self.figure <= self.target


def in_turn(contestants: Mapping[str, Callable[[], None]], rounds: int, *, warm_up: int = 2) -> dict[str, Sample]:
    """Run each contestant once a round, in an order that turns round each time."""
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        order = names if number % 2 == 0 else names[::-1]
        for name in order:
            begun = time.perf_counter()
            contestants[name]()
            taken = time.perf_counter() - begun
            if number >= 0:
                times[name].append(taken)
    return {name: Sample(tuple(taken)) for name, taken in times.items()}


def milliseconds(sample: Sample) -> str:
    first, third = sample.spread
    return f"{sample.median * 1e3:.2f} ms ({first * 1e3:.2f}-{third * 1e3:.2f})"


def ratio(what: str, over: tuple[str, Sample], under: tuple[str, Sample], target: float, *, at_least: bool) -> Row:
    """The median, over the rounds, of what `over` took divided by what `under` took right beside it.

    Round by round, as a machine that slows down for a while slows both down.
    """
    rounds = zip(over[1].seconds, under[1].seconds, strict=True)
    figure = statistics.median(first / second for first, second in rounds)
    detail = f"{over[0]} {milliseconds(over[1])}, {under[0]} {milliseconds(under[1])}"
    return Row(what, figure, "x", target, at_least, detail)


def machine() -> str:
    """One line about where the figures come from."""
    with open("/proc/cpuinfo") as file:
        info = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in info.items()}
    model = fields.get("model name", "unknown processor")
    return f"Linux {os.uname().release}, {os.cpu_count()} cpu, {model}, Python {sys.version.split()[0]}"


def is_uml() -> bool:
    """Whether this kernel is User Mode Linux, where system calls and forks are dear and computing is not."""
    with open("/proc/cpuinfo") as file:
        return "User Mode Linux" in file.read()


def report(rows: Sequence[Row], *, as_json: bool) -> int:
    """Print the table, or one JSON document: 1 where a target was missed, else 0."""
    if as_json:
        results = [attrs.asdict(row) | {"met": row.met} for row in rows]
        print(json.dumps({"machine": machine(), "results": results}, indent=2))
    else:
        print(machine())
        wide = max(len(row.what) for row in rows)
        for row in rows:
            bound = f"{'>=' if row.at_least else '<='} {row.target:g} {row.unit}"
            print(f"{row.what:{wide}}  {row.figure:9.2f} {row.unit:3}  {bound:>12}  {'ok  ' if row.met else 'MISS'}")
            print(f"{'':{wide}}  {row.detail}")
    return 0 if all(row.met for row in rows) else 1
