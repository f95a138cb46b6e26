import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.latency.records import Cell, Record, Run
from bench.latency.summary import CONTAINERD, DOCKER, THINPOOL, Index, percentile, ratios, targets
from bench.measure import Row

CELL = Cell(20_000, 1, 10)
VALUES = st.lists(st.floats(0, 1e6), min_size=1)


def records(part: str, contender: str, operation: str, values: list[float], cell: Cell = CELL) -> list[Record]:
    return [Record(part, contender, operation, cell, number, value) for number, value in enumerate(values)]


def rows_of(*lists: list[Record]) -> dict[str, Row]:
    run = Run((), (), tuple(record for one in lists for record in one))
    return {row.what: row for row in targets(Index(run))}


@given(VALUES, st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_cannot_be(values: list[float], percent: int) -> None:
    with pytest.raises(ValueError, match=f"percentile {percent} of {len(values)} values"):
        percentile(values, percent)


def test_rounds_that_only_one_has_are_not_compared() -> None:
    assert ratios({0: 8.0, 1: 6.0, 3: 1.0}, {1: 2.0, 0: 4.0, 2: 1.0}) == [2.0, 3.0]


def test_a_figure_says_when_it_is_only_a_bound() -> None:
    whole = Record("commit", "by hand", "tar", CELL, 0, 1.0)
    cut = Record("commit", "by hand", "tar", CELL, 1, 30.0, cut=True)
    assert str(Index(Run((), (), (whole,))).figure("commit", "by hand", "tar", CELL)) == "1 s (1 s-1 s)"
    found = Index(Run((), (), (whole, cut))).figure("commit", "by hand", "tar", CELL)
    assert str(found).startswith("over ")


def test_a_commit_is_compared_round_by_round() -> None:
    rows = rows_of(
        records("commit", THINPOOL, "commit", [0.1, 0.2, 0.1]),
        records("commit", THINPOOL, "commit + export", [1.0, 1.0, 1.0]),
        records("commit", DOCKER, "commit", [10.0, 30.0, 11.0]),
        records("commit", CONTAINERD, "commit", [0.5, 0.8, 0.3]),
        records("commit", CONTAINERD, "ctr alone", [0.1, 0.2, 0.1]),
    )
    where = "20,000 files, 10 ms, load: none"
    assert rows[f"commit against docker's: {where}"].figure == pytest.approx(110)
    assert rows[f"commit + export against docker's commit: {where}"].figure == pytest.approx(11)
    assert rows[f"commit against ctr's: {where}"].figure == pytest.approx(4)
    assert rows[f"the same, less ctr's own start: {where}"].figure == pytest.approx(3)
    assert rows[f"the same, less ctr's own start: {where}"].met is False


@pytest.mark.parametrize(("load", "target"), [("none", 50), ("disk", 100), ("pool", 100), ("layer", 100)])
def test_a_busy_disk_has_a_target_of_its_own(load: str, target: float) -> None:
    cell = Cell(20_000, 1, 10, load)
    rows = rows_of(
        records("commit", THINPOOL, "commit", [1.0], cell), records("commit", DOCKER, "commit", [99.0], cell)
    )
    row = rows[f"commit against docker's: 20,000 files, 10 ms, load: {load}"]
    assert (row.target, row.met) == (target, target < 99)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert rows_of(records("commit", THINPOOL, "commit", [1.0])) == {}


def test_holds_are_compared_by_their_99th_percentile() -> None:
    holds = [number / 1000 for number in range(1, 101)]
    rows = rows_of(
        records("hold", THINPOOL, "hold", holds),
        records("hold", "bare ioctls", "hold", [hold / 2 for hold in holds]),
    )
    (row,) = rows.values()
    assert row.figure == pytest.approx(2)
    assert "p50 50.00 ms, p99 99.00 ms" in row.detail


def test_lost_throughput_is_what_goes_beyond_bare_ioctls() -> None:
    (row,) = rows_of(
        records("checkpoints", THINPOOL, "writes per second", [80.0]),
        records("checkpoints", "bare ioctls", "writes per second", [90.0]),
        records("checkpoints", "undisturbed", "writes per second", [200.0]),
    ).values()
    assert (row.figure, row.unit, row.met) == (5, "%", True)


def test_the_diff_of_many_files_is_held_against_that_of_few() -> None:
    rows = rows_of(
        records("diff", THINPOOL, "auto", [1.0, 3.0, 2.0], Cell(10_000, 1, 10)),
        records("diff", THINPOOL, "auto", [4.0, 4.0], Cell(200_000, 1, 10)),
    )
    assert rows["diff of 1 change, 200,000 files against 10,000: 10 ms"].figure == 2
