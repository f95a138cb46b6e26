from pathlib import Path

import pytest

from bench.latency.contender import CutShort, limited


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(CutShort):
        limited(0.5, "sh", "-c", f"sleep 1000 & echo $! >{tmp_path}/child; wait")
    assert not Path("/proc", (tmp_path / "child").read_text().strip()).exists()


def test_what_ends_in_time_says_what_it_said() -> None:
    assert limited(60, "echo", "said") == "said\n"
