from hypothesis import given
from hypothesis import strategies as st

from bench.latency.matrix import lines, product
from bench.latency.records import Cell

NUMBERS = st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True)
LOADS = st.lists(st.sampled_from(["none", "disk", "pool", "layer"]), min_size=1, unique=True)


@given(NUMBERS, NUMBERS, NUMBERS, LOADS)
def test_a_product_has_every_combination_once(
    files: list[int], changes: list[int], delays: list[int], loads: list[str]
) -> None:
    cells = product(files, changes, delays, loads)
    possible = sum(changed <= many for many in files for changed in changes)
    assert len(set(cells)) == len(cells) == possible * len(delays) * len(loads)


def test_lines_go_through_the_first_of_each() -> None:
    assert lines([20, 10], [1, 5], [0, 10], ["none", "disk"]) == [
        Cell(20, 1, 0, "none"),
        Cell(20, 1, 0, "disk"),
        Cell(20, 1, 10, "none"),
        Cell(20, 1, 10, "disk"),
        Cell(20, 5, 10, "none"),
        Cell(10, 1, 10, "none"),
    ]
