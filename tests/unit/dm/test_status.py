"""Statuses, both ways."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinpool.dm.status import Discards, PoolMode, ThinMode, ThinPoolStatus, ThinStatus
from thinpool.errors import DriverUnsupported

_numbers = st.integers(0, (1 << 64) - 1)
_pools = st.one_of(
    st.builds(ThinPoolStatus, st.sampled_from([PoolMode.FAIL, PoolMode.ERROR])),
    st.builds(
        ThinPoolStatus,
        st.sampled_from([PoolMode.WRITE, PoolMode.READ_ONLY, PoolMode.OUT_OF_DATA_SPACE]),
        _numbers,
        _numbers,
        _numbers,
        _numbers,
        _numbers,
        st.none() | _numbers,
        st.booleans(),
        st.booleans(),
        st.sampled_from(Discards),
        st.none() | _numbers,
    ),
)
_thins = st.one_of(
    st.builds(ThinStatus, st.sampled_from([ThinMode.FAIL, ThinMode.ERROR, ThinMode.NO_DEVICE])),
    st.builds(ThinStatus, st.just(ThinMode.KNOWN), _numbers, st.none() | _numbers),
)


@given(_pools)
def test_a_pool_status_is_read_back(status: ThinPoolStatus) -> None:
    assert ThinPoolStatus.parse(status.render()) == status
    assert ThinPoolStatus.parse(status.render() + " ") == status


@given(_thins)
def test_a_thin_status_is_read_back(status: ThinStatus) -> None:
    assert ThinStatus.parse(status.render()) == status


def test_a_pool_status_of_the_kernel() -> None:
    text = "7 164/4096 1/8192 160 out_of_data_space no_discard_passdown error_if_no_space needs_check 1024 "
    assert ThinPoolStatus.parse(text) == ThinPoolStatus(
        mode=PoolMode.OUT_OF_DATA_SPACE,
        transaction_id=7,
        metadata_used_blocks=164,
        metadata_total_blocks=4096,
        data_used_blocks=1,
        data_total_blocks=8192,
        held_root=160,
        error_if_no_space=True,
        needs_check=True,
        discards=Discards.NOT_PASSED_DOWN,
        metadata_low_watermark_blocks=1024,
    )


@pytest.mark.parametrize(("text", "mode"), [("Fail", PoolMode.FAIL), ("Error", PoolMode.ERROR)])
def test_a_pool_that_the_kernel_gave_up(text: str, mode: PoolMode) -> None:
    status = ThinPoolStatus.parse(text)
    assert status.mode is mode
    assert status.failed


@given(st.text(alphabet="0123456789/- rwoFailqueue_if_no_space", max_size=60))
@example("0 1/2 3/4 - rw discard_passdown queue_if_no_space - 1 more")
@example("0 1/2 3/4 - rw discard_passdown queue_if_no_space")
@example("0 1/2 3/4 - rx discard_passdown queue_if_no_space -")
@example("00 1/2 3/4 - rw discard_passdown queue_if_no_space -")
@example("Failed")
@example("")
def test_any_other_text_is_refused_with_the_text(text: str) -> None:
    rendered = {_again(text, ThinPoolStatus), _again(text, ThinStatus)} - {None}
    assert rendered <= {text, text.removesuffix(" ")}


def _again(text: str, form: type[ThinPoolStatus] | type[ThinStatus]) -> str | None:
    try:
        return form.parse(text).render()
    except DriverUnsupported as error:
        assert repr(text) in error.message  # noqa: PT017 - most texts are refused
        return None
