import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.btrfs.options import BtrfsOptions
from thinpool.errors import ConfigError


@given(st.integers(0, 1 << 60))
def test_what_is_shown_reads_as_the_same(size: int) -> None:
    options = BtrfsOptions(size)
    assert BtrfsOptions.parse(options.in_force()) == options


def test_white_space_and_defaults() -> None:
    assert BtrfsOptions.parse({}).in_force() == {"btrfs.min_space": "0"}
    assert BtrfsOptions.parse({"btrfs.min_space": " 10G "}).min_space == 10 << 30


@pytest.mark.parametrize("key", ["dm.fs", "overlay.size", "aufs.x", "btrfs.max_space", "min_space", ""])
def test_an_unknown_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=repr(key)):
        BtrfsOptions.parse({key: "1"})
