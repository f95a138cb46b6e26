"""Options of a pool: read, shown, compared with recorded ones."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ConfigError
from thinpool.pool.options import BLOCK_SIZE_STEP, PoolOptions, Way, describe, reconcile
from thinpool.units import GIB, KIB, MIB

PATHS = st.from_regex(r"/dev/[a-z]{1,8}[0-9]{0,2}", fullmatch=True)
FREE = st.fixed_dictionaries(
    {},
    optional={
        "basesize": st.integers(4096, 1 << 30).map(lambda pages: pages * 4 * KIB),
        "fs": st.sampled_from(["ext4", "xfs"]),
        "mkfsarg": st.sampled_from(["", "-m 1", "-L 'my layers'"]),
        "mountopt": st.sampled_from(["", "discard", "nodelalloc,discard"]),
        "blkdiscard": st.booleans(),
        "min_free_space": st.integers(0, 99),
        "use_deferred_removal": st.booleans(),
        "use_deferred_deletion": st.booleans(),
    },
)
OWN = st.fixed_dictionaries(
    {},
    optional={
        "blocksize": st.integers(1, GIB // BLOCK_SIZE_STEP).map(lambda steps: steps * BLOCK_SIZE_STEP),
        "thinp_autoextend_threshold": st.integers(1, 100),
        "thinp_autoextend_percent": st.integers(1, 999),
        "error_if_no_space": st.booleans(),
    },
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "loopdatasize": st.integers(64 * MIB // 512, 1 << 51).map(lambda sectors: sectors * 512),
        "loopmetadatasize": st.integers(512, 4 << 20).map(lambda pages: pages * 4 * KIB),
    },
)
DEVICES = st.tuples(PATHS, PATHS).filter(lambda pair: pair[0] != pair[1])
DEVICES_NAMED = DEVICES.map(lambda pair: {"datadev": pair[0], "metadatadev": pair[1]})
FOREIGN = st.sampled_from(["vg-pool", "/dev/vg/pool", "dm-7"]).map(lambda name: {"thinpooldev": name})


@st.composite
def all_options(draw: st.DrawFn) -> PoolOptions:
    way = draw(st.sampled_from(Way))
    lying: dict[Way, st.SearchStrategy[Any]] = {Way.FILES: FILES, Way.DEVICES: DEVICES_NAMED, Way.FOREIGN: FOREIGN}
    values: dict[str, Any] = draw(FREE) | draw(lying[way])
    return PoolOptions(**(values if way is Way.FOREIGN else values | draw(OWN)))


def attempt(action: Callable[[], PoolOptions]) -> PoolOptions | ConfigError:
    try:
        return action()
    except ConfigError as error:
        return error


@given(all_options())
def test_what_is_recorded_is_read_back(options: PoolOptions) -> None:
    recorded = options.in_force()
    assert PoolOptions.parse(recorded) == options
    assert PoolOptions.parse(recorded).in_force() == recorded
    assert recorded.items() <= options.to_mapping().items()


@given(all_options())
def test_naming_what_is_recorded_changes_nothing(options: PoolOptions) -> None:
    assert reconcile(options, options.in_force()) == options
    assert reconcile(options, {}) == options


@given(all_options(), all_options())
def test_a_later_open_changes_grows_or_is_refused(before: PoolOptions, after: PoolOptions) -> None:
    """Whatever comes out, what is fixed has stayed and what can only grow has not shrunk."""
    result = attempt(lambda: reconcile(before, after.in_force()))
    if isinstance(result, ConfigError):
        assert result.message.startswith("dm.")
        return
    assert result.way is before.way
    for option in describe():
        name = option.key.removeprefix("dm.")
        old, new = getattr(before, name), getattr(result, name)
        if option.key in after.in_force():
            assert new == getattr(after, name)
        if option.later == "keep":
            assert new == old
        if option.later == "grow":
            assert new >= old


@given(st.sampled_from([option.key for option in describe()]), st.text(max_size=20))
def test_any_text_is_a_value_or_a_config_error_that_names_the_key(key: str, text: str) -> None:
    result = attempt(lambda: PoolOptions.parse({key: text}))
    if isinstance(result, ConfigError):
        assert result.message.startswith(key)
        assert "\n" not in result.message


@pytest.mark.parametrize(
    ("text", "value"), [("80", 80), ("80%", 80), (" 80 % ", 80), ("\t80", 80), ("1%", 1), ("100", 100)]
)
def test_percentages(text: str, value: int) -> None:
    assert PoolOptions.parse({"dm.thinp_autoextend_threshold": text}).thinp_autoextend_threshold == value


@pytest.mark.parametrize(
    "text", ["", "%", "0", "101", "-1", "8.5", "1000000000000", "80%%", "\u0668\u0660", "eighty"]
)  # fmt: skip
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(ConfigError, match="percentage from 1% to 100%"):
        PoolOptions.parse({"dm.thinp_autoextend_threshold": text})


def test_white_space_around_any_value_is_ignored() -> None:
    given = {"dm.basesize": " 2G ", "dm.fs": " xfs", "dm.min_free_space": "5 % ", "dm.blkdiscard": " FALSE\n"}
    expected = PoolOptions(basesize=2 * GIB, fs="xfs", min_free_space=5, blkdiscard=False)
    assert PoolOptions.parse(given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dm.datadev": "/dev/a"}, "dm.datadev needs dm.metadatadev too"),
        ({"dm.metadatadev": "/dev/a"}, "dm.metadatadev needs dm.datadev too"),
        ({"dm.datadev": "/dev/a", "dm.metadatadev": "/dev/a"}, "must be two devices"),
        ({"dm.datadev": "/dev/a", "dm.metadatadev": "/dev/b", "dm.loopdatasize": "1G"}, "dm.loopdatasize contradicts"),
        ({"dm.thinpooldev": "p", "dm.loopmetadatasize": "2G"}, "dm.loopmetadatasize contradicts dm.thinpooldev=p"),
        ({"dm.thinpooldev": "p", "dm.datadev": "/dev/a", "dm.metadatadev": "/dev/b"}, "dm.datadev contradicts"),
        ({"dm.thinpooldev": "p", "dm.blocksize": "64K"}, "dm.blocksize contradicts dm.thinpooldev=p"),
        ({"dm.thinpooldev": "p", "dm.error_if_no_space": "true"}, "dm.error_if_no_space contradicts"),
        ({"overlay.size": "1G"}, "one of the overlay driver"),
        ({"dm.basesiz": "1G"}, "unknown option 'dm.basesiz'"),
        ({"basesize": "1G"}, "unknown option 'basesize'"),
        ({"dm.loopmetadatasize": "17G"}, "at most 16G"),
        ({"dm.blocksize": "96K"}, "in steps of 64K"),
        ({"dm.thinpooldev": "vg/pool"}, "as in vg-pool or /dev/vg/pool"),
        ({"dm.datadev": "sda", "dm.metadatadev": "/dev/b"}, "absolute path"),
        ({"dm.mkfsarg": "-L 'open"}, "as a shell splits"),
    ],
)  # fmt: skip
def test_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PoolOptions.parse(given)
    assert said in caught.value.message


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        PoolOptions.parse({"dm.basesiz": "1G"})
    assert caught.value.hint == "did you mean dm.basesize?"


def test_empty_values_of_devices_are_none() -> None:
    assert PoolOptions.parse({"dm.datadev": "", "dm.metadatadev": "", "dm.thinpooldev": " "}) == PoolOptions()


def test_a_path_below_dev_mapper_is_a_name() -> None:
    assert PoolOptions.parse({"dm.thinpooldev": "/dev/mapper/vg-pool"}).thinpooldev == "vg-pool"


@pytest.mark.parametrize(
    ("recorded", "given", "said"),
    [
        ({}, {"dm.blocksize": "128K"}, "dm.blocksize is 64K in this store, and 128K was given; it is fixed"),
        ({}, {"dm.datadev": "/dev/a"}, "dm.datadev is not set in this store, and /dev/a was given; it is fixed"),
        ({}, {"dm.loopdatasize": "99G"}, "dm.loopdatasize is 100G in this store, and 99G was given; it can only grow"),
        ({"datadev": "/dev/a", "metadatadev": "/dev/b"}, {"dm.loopdatasize": "1T"}, "dm.loopdatasize contradicts"),
        ({"datadev": "/dev/a", "metadatadev": "/dev/b"}, {"dm.datadev": ""}, "and not set was given; it is fixed"),
        ({"thinpooldev": "p"}, {"dm.thinpooldev": "q"}, "dm.thinpooldev is p in this store, and q was given"),
        ({"thinpooldev": "p"}, {"dm.thinp_autoextend_percent": "30"}, "dm.thinp_autoextend_percent contradicts"),
    ],
)
def test_what_a_later_open_cannot_do(recorded: dict[str, str], given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reconcile(PoolOptions(**recorded), given)  # type: ignore[arg-type]
    assert said in caught.value.message


def test_what_a_later_open_can_do() -> None:
    recorded = PoolOptions(min_free_space=20)
    grown = reconcile(recorded, {"dm.loopdatasize": "1T", "dm.blkdiscard": "no", "dm.basesize": "10G"})
    assert grown == attrs.evolve(recorded, loopdatasize=1 << 40, blkdiscard=False)
