"""The bytes of the loop driver's interface."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool import loop
from thinpool.errors import LoopError


@given(st.integers(0, (1 << 12) - 1), st.integers(0, (1 << 20) - 1))
def test_the_kernels_device_numbers_are_those_of_stat(major: int, minor: int) -> None:
    encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # huge_encode_dev of include/linux/kdev_t.h
    assert loop._st_dev(encoded) == os.makedev(major, minor)


def test_the_structures_have_the_sizes_of_the_header() -> None:
    assert loop._INFO.size == 232
    assert loop._CONFIG.size == 304


def test_what_is_no_loop_device(tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="null is no loop device"):
        loop.detach(Path("/dev/null"))
    with pytest.raises(LoopError, match="missing: No such file or directory"):
        loop.refresh_size(tmp_path / "missing")


def test_no_free_loop_device() -> None:
    """What the kernel says where it makes no more of them."""
    with Path("/dev/null").open("rb") as control, pytest.raises(LoopError, match="no free loop device") as caught:
        loop._free_number(control.fileno())
    assert "losetup" in (caught.value.hint or "")
