import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.oci.documents import MOST, Node, format_document, parse_list, parse_object
from thinpool.oci.values import Descriptor, ImageConfig, Manifest

DESCRIPTOR = ("mediaType", "digest", "size", "annotations", "platform")
KEYS = (*DESCRIPTOR, "config", "layers", "rootfs", "architecture", "os", "type", "diff_ids", "Env", "Labels", "Volumes")

texts = st.text(st.characters(codec="utf-8"), max_size=4)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
lists: st.SearchStrategy[Any] = st.lists(plain | st.just({}), max_size=3)
values: st.SearchStrategy[Any] = plain | lists | st.dictionaries(texts, plain, max_size=3)
objects = st.dictionaries(texts, values, max_size=5)

READS: dict[str, Callable[[Node], Any]] = {
    "text": lambda node: node.text("k"),
    "number": lambda node: node.number("k"),
    "node": lambda node: node.node("k"),
    "nodes": lambda node: node.nodes("k"),
    "texts": lambda node: node.texts("k"),
    "pairs": lambda node: node.pairs("k"),
}


def outcome(read: Callable[[], object]) -> object:
    """What a reader gives, or its error, which names what was read, on one line."""
    try:
        return read()
    except ArchiveError as error:
        if "the thing" not in error.message or "\n" in error.message:
            raise AssertionError(error.message) from error
        return error


@given(objects)
def test_what_is_written_is_read(value: dict[str, object]) -> None:
    assert parse_object(format_document(value), "the thing").values == value


@given(objects)
def test_the_same_values_are_the_same_bytes(value: dict[str, object]) -> None:
    assert format_document(value) == format_document(dict(reversed(list(value.items()))))


@given(st.binary())
@example(b"")
@example(b"\xff")
@example(b"[]")
@example(b"{} {}")
@example(b'{"a":NaN}')
@example(b'{"a":-Infinity}')
@example(b'{"a":' + b"9" * 5000 + b"}")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
def test_any_bytes_are_an_object_or_an_error(data: bytes) -> None:
    assert isinstance(outcome(lambda: parse_object(data, "the thing")), Node | ArchiveError)


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', '{"x":{"a":1,"a":1}}', '[{"a":1,"\\u0061":1}]'])
def test_a_key_stands_once(text: str) -> None:
    read = parse_object if text.startswith("{") else parse_list
    with pytest.raises(ArchiveError, match="stands twice"):
        read(text.encode(), "the thing")


def test_a_document_has_an_end() -> None:
    padded = b"{}" + b" " * (MOST - 2)
    assert parse_object(padded, "the thing").values == {}
    with pytest.raises(UnsafeArchive, match=r"at most 1\.00 MiB"):
        parse_object(padded + b" ", "the thing")


@pytest.mark.parametrize("read", READS)
@given(value=values)
def test_a_value_is_of_its_type_or_an_error(read: str, value: object) -> None:
    found = outcome(lambda: READS[read](Node("the thing", {"k": value})))
    if isinstance(found, ArchiveError):
        return
    match read:
        case "text":
            assert found is value
            assert isinstance(found, str)
        case "number":
            assert type(found) is int
            assert found == value
            assert found >= 0
        case "node":
            assert isinstance(found, Node)
            assert found.values == (value or {})
        case "nodes":
            assert isinstance(found, list)
            assert [one.values for one in found] == (value or [])
        case "texts":
            assert found == (value or [])
            assert isinstance(found, list)
            assert all(isinstance(one, str) for one in found)
        case _:
            assert found == (value or {})
            assert isinstance(found, dict)
            assert all(isinstance(one, str) for one in found.values())


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"k":"\\ud800"}', "text"),
        ('{"k":["\\udfff"]}', "texts"),
        ('{"k":{"\\ud800":""}}', "pairs"),
        ('{"k":{"a":"\\udc80"}}', "pairs"),
    ],
)
def test_half_a_character_is_no_text(text: str, read: str) -> None:
    with pytest.raises(ArchiveError):
        READS[read](parse_object(text.encode(), "the thing"))


@pytest.mark.parametrize("kind", [Descriptor, Manifest, ImageConfig])
@given(members=st.dictionaries(st.sampled_from(KEYS), values, max_size=8))
def test_random_members_are_an_error_or_a_value(
    kind: type[Descriptor | Manifest | ImageConfig], members: dict[str, object]
) -> None:
    node = parse_object(json.dumps(members).encode(), "the thing")
    found = outcome(lambda: kind.read(node))
    assert isinstance(found, kind | ArchiveError)
