"""The entries by which two file systems differ, from the directories that changed."""

import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

import attrs

from thinpool.filesystem.ext4.changed import Changed
from thinpool.filesystem.ext4.directory import Entry
from thinpool.filesystem.ext4.image import Image

__all__ = ["DOTS", "Difference", "difference"]

DOTS: Final = frozenset((b".", b".."))

_AHEAD: Final = 256

Place = tuple[int, bytes]
"""A directory's inode number, and a name in it."""


@attrs.frozen(eq=False)
class Difference:
    """Entries that are on one side only; one that names another inode is on both lists.

    Attributes:
        removed: of the older side, by the inode that they name.
        added: of the newer side, the same.
        replaced: directories with another directory in their place: the older one's inode, and the newer one's.
    """

    removed: dict[int, set[Place]] = attrs.field(factory=dict)
    added: dict[int, set[Place]] = attrs.field(factory=dict)
    replaced: list[tuple[int, int]] = attrs.field(factory=list)


def difference(older: Image, newer: Image, changed: Mapping[int, Changed], *, removed_trees: bool) -> Difference:
    """The entries by which two file systems differ.

    Args:
        older: one file system.
        newer: the other.
        changed: the inodes that differ.
        removed_trees: list also what is in directories that the newer side does not have.

    Raises:
        Unreadable: a directory is damaged.
    """
    found = Difference()
    both = (number for number, pair in changed.items() if pair.is_same and pair.newer is not None and pair.newer[2])
    for portion in _portions(both):
        _read_ahead(older, portion)
        _read_ahead(newer, portion)
        for number in portion:
            _compare(number, older, newer, changed, found)
    fresh = (n for n, pair in changed.items() if pair.newer is not None and pair.newer.directory and not pair.is_same)
    for number, entries in _all_entries(newer, fresh):
        for name, entry in entries.items():
            if name not in DOTS:
                found.added.setdefault(entry.inode, set()).add((number, name))
    gone = (n for n, pair in changed.items() if pair.older is not None and pair.older.directory and not pair.is_same)
    for number, entries in _all_entries(older, gone if removed_trees else ()):
        for name, entry in entries.items():
            if name not in DOTS:
                found.removed.setdefault(entry.inode, set()).add((number, name))
    return found


def _compare(number: int, older: Image, newer: Image, changed: Mapping[int, Changed], found: Difference) -> None:
    before = older.entries(older.used_inode(number))
    after = newer.entries(newer.used_inode(number))
    for name, entry in after.items():
        if name in DOTS:
            continue
        other = before.get(name)
        if other is not None:
            if other.inode == entry.inode and not _is_reused(changed.get(entry.inode)):
                continue
            found.removed.setdefault(other.inode, set()).add((number, name))
            if _is_directory(older, other) and _is_directory(newer, entry):
                found.replaced.append((other.inode, entry.inode))
        found.added.setdefault(entry.inode, set()).add((number, name))
    for name, entry in before.items():
        if name not in after and name not in DOTS:
            found.removed.setdefault(entry.inode, set()).add((number, name))


def _is_reused(pair: Changed | None) -> bool:
    return pair is not None and not pair.is_same


def _is_directory(image: Image, entry: Entry) -> bool:
    return stat.S_ISDIR(entry.kind) if entry.kind else image.used_inode(entry.inode).is_directory


def _all_entries(image: Image, numbers: Iterable[int]) -> Iterator[tuple[int, Mapping[bytes, Entry]]]:
    for portion in _portions(numbers):
        _read_ahead(image, portion)
        for number in portion:
            yield number, image.entries(image.used_inode(number))


def _portions(numbers: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(numbers)
    while portion := list(islice(rest, _AHEAD)):
        yield portion


def _read_ahead(image: Image, numbers: list[int]) -> None:
    image.prefetch_inodes(numbers)
    image.prefetch_entries(image.used_inode(number) for number in numbers)
