import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ConfigError, InvalidName
from thinpool.model import Change, Changes, Volume, check_name

PART = st.from_regex(r"[A-Za-z0-9._:@+-]{1,8}", fullmatch=True).filter(lambda part: part not in {".", ".."})


@given(st.lists(PART, min_size=1, max_size=6).map("/".join).filter(lambda name: not name.startswith("-")))
def test_names_of_allowed_parts_are_valid(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "-a",
        "a//b",
        "a/",
        ".",
        "..",
        "a/..",
        "./a",
        "a b",
        "a\n",
        "é",
        "a\0",
        "x" * 256,
        "a\udcff",
        "a*",
        "a\\b",
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_a_name_may_have_255_bytes() -> None:
    assert check_name("x" * 255)


def test_changes_are_a_sequence() -> None:
    entries = (Change("A", "/a"), Change("D", "/b"))
    changes = Changes(entries, "walk")
    assert list(changes) == list(entries)
    assert (changes[0], len(changes), changes[-1:]) == (entries[0], 2, entries[1:])


@given(
    st.lists(PART, min_size=1, max_size=4).filter(lambda parts: not any(":" in part for part in parts)), st.booleans()
)
def test_volumes_are_read(parts: list[str], read_only: bool) -> None:
    target = "/".join(parts)
    volume = Volume.parse(f"/src:/{target}{':ro' if read_only else ':rw'}")
    assert volume == Volume("/src", f"//./{target}/", read_only)
    assert (str(volume.source), volume.target, volume.read_only) == ("/src", f"/{target}", read_only)
    assert read_only or volume == Volume.parse(f"/src:/{target}")


@pytest.mark.parametrize(
    "text", ["", "a", ":b", "a:", "/a:/b:x", "/a:/b:ro:", "/a:b", "/a:/", "/a:/../b", "/a:/b/..", "/a:/."]
)
def test_other_volumes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="accepted is"):
        Volume.parse(text)
