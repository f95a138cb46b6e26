"""Tables' parameters, both ways."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinpool.dm import (
    Delay,
    Delayed,
    Error,
    Flakey,
    Linear,
    LogWrites,
    SnapshotOrigin,
    Stripe,
    Striped,
    Target,
    Thin,
    ThinPool,
    Unknown,
    Zero,
    parse_target,
)
from thinpool.dm.targets import Malformed

_numbers = st.integers(0, (1 << 64) - 1)
_devices = st.one_of(
    st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, (1 << 20) - 1)),
    st.binary(min_size=1).filter(lambda raw: b"\0" not in raw).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
_delayed = st.builds(Delayed, _devices, _numbers, _numbers)
_features = st.lists(_devices, max_size=6).map(tuple)
_targets: st.SearchStrategy[Target] = st.one_of(
    st.builds(Linear, _devices, _numbers),
    st.builds(Striped, _numbers, st.lists(st.builds(Stripe, _devices, _numbers), min_size=1, max_size=5).map(tuple)),
    st.just(Zero()),
    st.just(Error()),
    st.builds(Delay, _delayed),
    st.builds(Delay, _delayed, _delayed),
    st.builds(Delay, _delayed, _delayed, _delayed),
    st.builds(Flakey, _devices, _numbers, _numbers, _numbers, _features),
    st.builds(LogWrites, _devices, _devices),
    st.builds(SnapshotOrigin, _devices),
    st.builds(ThinPool, _devices, _devices, _numbers, _numbers, _features),
    st.builds(Thin, _devices, _numbers, st.none() | _devices),
)
_KINDS = [
    "linear", "striped", "zero", "error", "delay", "flakey", "log-writes", "snapshot-origin", "thin-pool", "thin",
    "crypt",
]  # fmt: skip


@given(_targets)
@example(Linear("/dev/a b\\c", 7))
@example(ThinPool("m", "d", 128, 0, (" ",)))
@example(LogWrites("/dev/\u00e0", "/dev/\udcff"))
def test_rendered_parameters_are_read_back(target: Target) -> None:
    assert parse_target(target.kind, target.params()) == target


@given(_targets)
def test_the_kernel_sees_each_device_as_one_word(target: Target) -> None:
    raw = target.params().encode("utf-8", "surrogateescape")
    for byte in b"\t\n\v\f\r\xa0":
        for at in (place for place, found in enumerate(raw) if found == byte):
            assert raw[at - 1] == ord("\\")


@given(st.sampled_from(_KINDS), st.text(alphabet="01 7:/dev-_rw\\\t\u00a0", max_size=40))
@example("thin-pool", "7:0 7:1 128 0 1 error_if_no_space")
@example("thin-pool", "7:0 7:1 128 0 2 error_if_no_space")
@example("thin-pool", "7:0 7:1 128 0")
@example("linear", "7:0 007")
@example("linear", "7:0  0")
@example("linear", "7:0 0 ")
@example("linear", "7:0 18446744073709551616")
@example("zero", " ")
@example("striped", "0 8")
@example("striped", "2 8 7:0 0")
@example("delay", "7:0 0 1 7:0 0")
@example("thin", "253:0 \u0661")
def test_any_text_is_kept(kind: str, text: str) -> None:
    target = parse_target(kind, text)
    assert target.kind == kind
    same = {text, text.removesuffix(" ")} if kind in {"thin-pool", "flakey"} else {text}
    assert target.params() in same


@pytest.mark.parametrize(
    ("kind", "text", "target"),
    [
        ("linear", "7:0 2048", Linear("7:0", 2048)),
        ("striped", "2 8 7:0 0 7:1 16", Striped(8, (Stripe("7:0", 0), Stripe("7:1", 16)))),
        ("zero", "", Zero()),
        ("error", "", Error()),
        ("delay", "7:0 0 5", Delay(Delayed("7:0", 0, 5))),
        ("delay", "7:0 0 5 7:1 8 6", Delay(Delayed("7:0", 0, 5), Delayed("7:1", 8, 6))),
        ("flakey", "7:0 0 1 0 1 drop_writes ", Flakey("7:0", 0, 1, 0, ("drop_writes",))),
        ("log-writes", "7:0 7:1", LogWrites("7:0", "7:1")),
        ("snapshot-origin", "7:0", SnapshotOrigin("7:0")),
        (
            "thin-pool",
            "7:0 7:1 128 0 2 skip_block_zeroing error_if_no_space ",
            ThinPool("7:0", "7:1", 128, 0, ("skip_block_zeroing", "error_if_no_space")),
        ),
        ("thin", "253:0 17", Thin("253:0", 17)),
        ("thin", "253:0 17 7:3", Thin("253:0", 17, "7:3")),
        ("crypt", "aes-xts-plain64 :32:logon:key 0 7:0 0", Unknown("crypt", "aes-xts-plain64 :32:logon:key 0 7:0 0")),
        ("linear", "7:0", Unknown("linear", "7:0")),
        ("thin-pool", "7:0 7:1 128 0 3 one", Unknown("thin-pool", "7:0 7:1 128 0 3 one")),
    ],
)
def test_what_the_kernel_prints(kind: str, text: str, target: Target) -> None:
    assert parse_target(kind, text) == target


@pytest.mark.parametrize("text", ["", "7:0", "7:0 x", "7:0 0 0", "7:0 -1", "7:0 +1", "7:0 1_0"])
def test_a_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        Linear.parse(text)
