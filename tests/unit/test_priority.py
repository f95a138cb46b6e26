"""I/O priorities as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ConfigError
from thinpool.priority import IoClass, IoPriority, background


@given(st.integers(0, 7))
def test_levels(level: int) -> None:
    found = IoPriority.parse(f"best-effort:{level}")
    assert (found.io_class, found.level, found.value) == (IoClass.BEST_EFFORT, level, 2 << 13 | level)


def test_without_a_level() -> None:
    assert IoPriority.parse("best-effort") == IoPriority(IoClass.BEST_EFFORT, 4)
    assert IoPriority.parse("idle").value == 3 << 13


@given(st.text() | st.sampled_from(["idle:0", "best-effort:", "best-effort:8", "best-effort:-1", "realtime", "Idle"]))
def test_what_is_none(text: str) -> None:
    if text not in {"idle", "best-effort"}:
        with pytest.raises(ConfigError, match="accepted are idle, best-effort"):
            IoPriority.parse(text)


def test_a_group_that_is_none(tmp_path: str) -> None:
    with pytest.raises(ConfigError), background(cgroup=tmp_path):
        raise AssertionError
