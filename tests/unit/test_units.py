import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ConfigError
from thinpool.units import GIB, KIB, MIB, TIB, format_size, human_size, parse_size, to_sectors


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 * GIB),
        ("64k", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("1.5T", 3 * TIB // 2),
        ("4096", 4096),
        ("7b", 7),
        ("2 MB", 2 * MIB),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "10X", "0.3", "1 000", "٣", "1.G", "10GG", "NaN"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 64))
def test_format_round_trips(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=1 << 70))
def test_human_sizes_are_short(size: int) -> None:
    assert len(human_size(size)) <= 12


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (3 * GIB // 2, "1.50 GiB"), (100 * GIB, "100 GiB")]
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


def test_sectors() -> None:
    assert to_sectors(MIB) == 2048
    with pytest.raises(ConfigError):
        to_sectors(513)
