import attrs
import pytest

from thinpool.errors import ConfigError
from thinpool.layer.limits import Limits


def test_limits_as_text() -> None:
    found = Limits.parse({"size": "20G", "entries": "100000", "path_length": "4096"})
    assert found == attrs.evolve(Limits(), size=20 << 30, entries=100_000, path_length=4096)
    assert Limits.parse({}) == Limits()


@pytest.mark.parametrize("field", attrs.fields(Limits))
def test_each_limit_can_be_given(field: "attrs.Attribute[int]") -> None:
    assert getattr(Limits.parse({field.name: "7"}), field.name) == 7


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("sizes", "1", "limit 'sizes': accepted are entries, size, ratio, ratio_from, path_length, header_size"),
        ("", "1", "limit '': accepted are"),
        ("size", "x", "limit size='x': accepted is a number, or a size as in 20G"),
        ("size", "-1", "limit size='-1': accepted is a number"),
        ("size", "0.3", "limit size='0.3': accepted is a number"),
        ("size", "", "limit size='': accepted is a number"),
        ("entries", "0", "limit entries=0: accepted is 1 or more"),
    ],
)
def test_what_is_no_limit(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.parse({key: text})
    assert caught.value.message.startswith(message)
