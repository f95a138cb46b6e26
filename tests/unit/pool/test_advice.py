"""Advice about pools, against the tool that the kernel's users ask; and what is warned of."""

import subprocess
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.dm.status import PoolMode, ThinPoolStatus
from thinpool.errors import PoolFailed, PoolFull
from thinpool.pool.advice import metadata_advice, promise_warning, room_to_count, space_map_size, warnings
from thinpool.pool.health import PoolStatus, shortage, trouble
from thinpool.pool.options import METADATA_MAX, METADATA_MIN
from thinpool.units import GIB, KIB, MIB

HEALTHY = PoolStatus(
    name="pool",
    mode="rw",
    needs_check=False,
    transaction_id=7,
    data_used=1 * GIB,
    data_total=10 * GIB,
    metadata_used=8 * MIB,
    metadata_total=64 * MIB,
    block_size=64 * KIB,
)
KERNEL = ThinPoolStatus(PoolMode.WRITE, 7, 10, 100, 10, 100)


def said_by_tool(data_size: int, block_size: int, devices: int) -> int:
    command = ["thin_metadata_size", f"-b{block_size}b", f"-s{data_size}b", f"-m{devices}", "-ub", "-n"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    "block_size",
    [64 * KIB, 256 * KIB, 1 * MIB, 64 * MIB],  # powers of two, as the tool wants
)
@pytest.mark.parametrize("data_size", [1 * GIB, 100 * GIB, 10 << 40])
@pytest.mark.parametrize("devices", [1, 1000, 100_000])
def test_the_advice_is_that_of_thin_metadata_size(data_size: int, block_size: int, devices: int) -> None:
    tool = said_by_tool(data_size, block_size, devices)
    expected = min(max(tool, METADATA_MIN), METADATA_MAX)
    assert expected <= metadata_advice(data_size, block_size, devices) <= expected * 1.05


@given(st.integers(1, 1 << 50), st.integers(1, 16384), st.integers(0, 1 << 24))
def test_the_advice_is_something_that_the_kernel_accepts(data_size: int, steps: int, devices: int) -> None:
    advice = metadata_advice(data_size, steps * 64 * KIB, devices)
    assert METADATA_MIN <= advice <= METADATA_MAX
    assert advice % 4096 == 0
    assert advice <= metadata_advice(2 * data_size, steps * 64 * KIB, devices + 1)


def test_counts_take_two_bits_a_block() -> None:
    blocks = 1 << 24
    assert blocks // 4 < space_map_size(blocks * 64 * KIB, 64 * KIB) < blocks // 4 * 1.02


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_growth_needs_room_and_shrinking_none(before: int, after: int) -> None:
    need = room_to_count(before, after, 64 * KIB)
    assert (need > 0) == (after > before)
    assert need >= space_map_size(after, 64 * KIB) - space_map_size(before, 64 * KIB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"mode": "inactive"}, []),
        ({"mode": "fail"}, ["has failed"]),
        ({"mode": "ro"}, ["is read-only"]),
        ({"mode": "ro", "needs_check": True}, ["needs a check"]),
        ({"mode": "out_of_data_space"}, ["out of data space"]),
        ({"data_used": 8 * GIB}, ["data is 80.0 % full"]),
        ({"data_used": 19 * GIB // 2}, ["data is 95.0 % full", "data has less than dm.min_free_space=10% free"]),
        ({"metadata_used": 60 * MIB}, ["metadata is 93.8 % full", "metadata has less"]),
        ({"data_total": 1000 * GIB}, ["64.0 MiB of metadata are few"]),
        ({"data_used": 0, "data_total": 0, "metadata_used": 0, "metadata_total": 0, "block_size": 0}, []),
    ],
)
def test_warnings(change: dict[str, Any], said: list[str]) -> None:
    status = attrs.evolve(HEALTHY, **change)
    found = list(warnings(status, data_percent=80, least_free_percent=10))
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
    assert not any("\n" in text or text.endswith(".") for text in found)


def test_a_promise_that_cannot_be_kept() -> None:
    assert promise_warning(10 * GIB, 10 * GIB) is None
    assert "5.00 GiB free" in (promise_warning(10 * GIB, 5 * GIB) or "")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, None),
        ({"mode": PoolMode.FAIL}, PoolFailed),
        ({"mode": PoolMode.ERROR}, PoolFailed),
        ({"mode": PoolMode.READ_ONLY}, PoolFailed),
        ({"mode": PoolMode.WRITE, "needs_check": True}, PoolFailed),
        ({"mode": PoolMode.OUT_OF_DATA_SPACE}, PoolFull),
    ],
)
def test_trouble(change: dict[str, Any], kind: type[Exception] | None) -> None:
    found = trouble("pool", attrs.evolve(KERNEL, **change))
    assert (None if found is None else type(found)) is kind
    assert found is None or found.hint


@given(st.integers(0, 1000), st.integers(0, 99))
def test_a_shortage_is_less_than_the_percentage_free(used: int, percent: int) -> None:
    status = attrs.evolve(KERNEL, data_used_blocks=used, data_total_blocks=1000)
    found = shortage("pool", status, percent)
    assert (found is not None) == ((1000 - used) / 10 < percent or percent > 90)
    assert found is None or "free" in found.message
