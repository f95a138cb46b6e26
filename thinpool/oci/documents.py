"""JSON that may have been made to do harm: bounded, unambiguous, and of the types that are expected."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import attrs

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.text import shown
from thinpool.units import MIB, human_size

MOST = MIB
"""Bytes of one document. The worst of that size takes some 40 MiB once it is read; real ones seldom have 100 KiB."""


@attrs.frozen
class Node:
    """An object of a document; asking for a value of another type than it has is an ArchiveError.

    Attributes:
        what: names the object in messages.
        values: its members.
    """

    what: str
    values: Mapping[str, object]

    def has(self, key: str) -> bool:
        """Whether there is a value; null is none."""
        return self.values.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string; an error where there is none and no default."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not _is_text(value):
            raise self._wrong(key, "a string")
        return value

    def number(self, key: str) -> int:
        """A whole number, not negative."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number, at least 0")
        return value

    def node(self, key: str) -> "Node":
        """An object, with no members where there is none."""
        value = self.values.get(key)
        if value is None:
            return Node(f"{self.what}: {key}", {})
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Node(f"{self.what}: {key}", value)

    def nodes(self, key: str) -> Sequence["Node"]:
        """A list of objects, empty where there is none."""
        return _nodes(self._list(key), f"{self.what}: {key}")

    def texts(self, key: str) -> Sequence[str]:
        """A list of strings, empty where there is none."""
        values = [value for value in self._list(key) if _is_text(value)]
        if len(values) != len(self._list(key)):
            raise self._wrong(key, "a list of strings")
        return values

    def pairs(self, key: str) -> Mapping[str, str]:
        """An object whose values are strings, empty where there is none."""
        inner = self.node(key)
        return {name: inner.text(name) for name in inner.names()}

    def names(self) -> Sequence[str]:
        """The names of all members."""
        if not all(map(_is_text, self.values)):
            raise ArchiveError(f"{self.what} has a name that is no text")
        return list(self.values)

    def _list(self, key: str) -> list[object]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def _wrong(self, key: str, wanted: str) -> ArchiveError:
        given = "missing" if self.values.get(key) is None else f"not {wanted}"
        return ArchiveError(f"{self.what}: {shown(key)} is {given}")


def parse_object(data: bytes, what: str) -> Node:
    """Read a document that is an object.

    Raises:
        ArchiveError: no JSON, another type, or a key that stands twice in one object.
        UnsafeArchive: it is too long.
    """
    value = _parse(data, what)
    if not isinstance(value, dict):
        raise ArchiveError(f"{what} is not a JSON object")
    return Node(what, value)


def parse_list(data: bytes, what: str) -> Sequence[Node]:
    """Read a document that is a list of objects; raises as `parse_object`."""
    value = _parse(data, what)
    if not isinstance(value, list):
        raise ArchiveError(f"{what} is not a JSON list")
    return _nodes(value, what)


def format_document(value: Mapping[str, object]) -> bytes:
    """A document as bytes, the same for the same values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def refuse_long(size: int, what: str) -> None:
    """Raise UnsafeArchive for a document of more bytes than are ever read."""
    if size > MOST:
        raise UnsafeArchive(f"{what} has {human_size(size)}; at most {human_size(MOST)} are read")


def _nodes(values: list[object], what: str) -> Sequence[Node]:
    nodes = [Node(f"{what}[{number}]", value) for number, value in enumerate(values) if isinstance(value, dict)]
    if len(nodes) != len(values):
        raise ArchiveError(f"{what} is not a list of objects")
    return nodes


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string that can be written down: JSON can also say half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse(data: bytes, what: str) -> object:
    refuse_long(len(data), what)
    try:
        value: object = json.loads(data.decode("utf-8"), object_pairs_hook=_unambiguous, parse_constant=_no_number)
    except RecursionError as error:
        raise UnsafeArchive(f"{what} is nested too deeply") from error
    except ValueError as error:
        raise ArchiveError(f"{what} is not JSON: {error}") from error
    return value


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Another reader might take the other value of a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number")
