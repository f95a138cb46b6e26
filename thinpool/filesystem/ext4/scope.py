"""Where the trees of two file systems may differ, from the inodes that do and the names in one of them.

An entry of both trees can differ in three ways, and each is taken in. Its inode changed: then all names that the inode
has on either side are. It names another inode than before: then its directory changed, and the entries by which it
differs are; what is below a directory that is another one than before is compared as a whole (`thinpool.layer.scope`).
It shares its inode with other paths than before: an inode that got or lost a name has another count of links or another
ctime, so it changed; but where a directory stands in another's place, files below that were not touched show at other
paths. So those with several names are looked for below both, as far as they have paths in common, and all their names
are taken in.

The names of the older side come from manifests, and those of the newer side are the same but for the entries by which
the directories differ. No name is taken on trust: its inode must be of the generation that was noted, its directory
must have that entry, and the names must be as many as the inode counts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from os import fsdecode
from typing import Final

import attrs

from thinpool.filesystem.ext4.changed import Changed, State
from thinpool.filesystem.ext4.directory import Entry
from thinpool.filesystem.ext4.entries import DOTS, Difference, Place
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.naming import Names
from thinpool.filesystem.ext4.superblock import ROOT_INODE
from thinpool.layer import scope as tree

__all__ = ["find_scope"]

_AHEAD: Final = 512

_DEEPEST: Final = 1 << 20
"""Deeper than any directory that can be made in practice; ends a walk up that goes round in a circle."""


def find_scope(
    older: Image, newer: Image, names: Names, changed: Mapping[int, Changed], difference: Difference
) -> tree.Scope:
    """Where the trees of two file systems may differ; which of them is the older one in time does not matter.

    Args:
        older: the one whose names are known.
        newer: the other.
        names: the names in the older one.
        changed: the inodes that differ.
        difference: the entries that differ.

    Raises:
        Unreadable: damage, or the names of an inode do not come out right.
        Unfit: a manifest is damaged.
    """
    return _Survey(older, newer, names, changed, difference).run()


@attrs.define(eq=False)
class _Known:
    """The names of an inode, on either side, and the generations that were noted with those of the older one."""

    older: Collection[Place] = ()
    newer: Collection[Place] = ()
    generations: Collection[int] = frozenset()


class _Survey:
    def __init__(
        self, older: Image, newer: Image, names: Names, changed: Mapping[int, Changed], difference: Difference
    ) -> None:
        self._older = older
        self._newer = newer
        self._names = names
        self._changed = changed
        self._difference = difference
        self._known: dict[int, _Known] = {ROOT_INODE: _Known()}
        self._scope = tree.Scope()
        self._older_places: dict[int, tree.Place] = {ROOT_INODE: self._scope.root}
        self._newer_places: dict[int, tree.Place] = {ROOT_INODE: self._scope.root}

    def run(self) -> tree.Scope:
        self._check_fresh()
        self._check_gone()
        touched = {
            number for number, pair in self._changed.items() if pair.older is not None and pair.newer is not None
        }
        touched.discard(ROOT_INODE)
        self._learn(touched)
        for number in touched:
            self._add_names(number)
        self._add_entries()
        linked = self._linked_below_replaced() - touched
        self._learn(linked)
        for number in linked:
            self._add_names(number)
        return self._scope

    def _check_fresh(self) -> None:
        """Check that the inodes that only the newer side has are named as often as they count."""
        for number, pair in self._changed.items():
            if pair.newer is not None and pair.older is None:
                found = len(self._difference.added.get(number, ()))
                if found != pair.newer.names:
                    raise _unresolved(number, found, pair.newer)

    def _check_gone(self) -> None:
        """Check that the names of the inodes that only the older side has were in directories that changed."""
        for number, pair in self._changed.items():
            if pair.newer is None and any(name.directory not in self._changed for name in self._names.of(number)):
                raise Unreadable(f"inode {number} is gone, and a directory that names it did not change")

    def _add_names(self, number: int) -> None:
        """Take in all names of an inode that both sides have in use."""
        known = self._known[number]
        pair = self._changed.get(number)
        replaced = pair is not None and not pair.is_same
        for places, names in ((self._older_places, known.older), (self._newer_places, known.newer)):
            for directory, name in names:
                self._add(places, directory, name, whole=replaced)

    def _add_entries(self) -> None:
        """Take in the entries that differ in directories that both sides have."""
        parents = set()
        listed = (self._difference.removed, self._difference.added)
        for side in listed:
            for names in side.values():
                parents |= {directory for directory, _ in names if self._is_kept(directory)}
        self._learn(parents)
        for side in listed:
            for names in side.values():
                for directory, name in names:
                    if directory in parents:
                        self._add(self._older_places, directory, name)
                        self._add(self._newer_places, directory, name)

    def _is_kept(self, directory: int) -> bool:
        """Whether a directory that changed is one that both sides have."""
        return self._changed[directory].is_same

    def _add(self, places: dict[int, tree.Place], directory: int, name: bytes, *, whole: bool = False) -> None:
        above = self._place(places, directory)
        place = above.children.setdefault(fsdecode(name), tree.Place())
        place.whole = place.whole or whole

    def _place(self, places: dict[int, tree.Place], directory: int) -> tree.Place:
        """The place of a directory, found by walking up."""
        below: list[tuple[int, bytes]] = []
        number = directory
        while number not in places:
            known = self._known[number]
            names = known.older if places is self._older_places else known.newer
            if len(names) != 1:
                raise Unreadable(f"directory {number} is not named once")
            ((above, name),) = names
            below.append((number, name))
            number = above
            if len(below) > _DEEPEST:
                raise Unreadable(f"directory {directory} lies more than {_DEEPEST} levels deep")
        place = places[number]
        for number, name in reversed(below):
            place = places[number] = place.children.setdefault(fsdecode(name), tree.Place())
        return place

    # -- names

    def _learn(self, numbers: Iterable[int]) -> None:
        """Find the names of some inodes that the older side has in use, and of all directories above them."""
        fresh: list[int] = []
        pending = {number for number in numbers if number not in self._known}
        while pending:
            above: set[int] = set()
            for number in pending:
                known = self._known[number] = self._find(number)
                fresh.append(number)
                above.update(directory for directory, _ in known.older)
                above.update(directory for directory, _ in known.newer)
            pending = above.difference(self._known)
        self._check(fresh)

    def _find(self, number: int) -> _Known:
        pair = self._changed.get(number)
        removed = self._difference.removed.get(number, ())
        added = self._difference.added.get(number, ())
        if pair is not None and pair.older is None:
            return _Known((), added)
        noted = self._names.of(number)
        older = {(name.directory, name.name) for name in noted}
        newer: Collection[Place] = ()
        if pair is None or pair.is_same:
            newer = {place for place in older if place not in removed and not self._is_gone(place[0])}.union(added)
        elif pair.newer is not None:
            newer = added
        return _Known(older, newer, {name.generation for name in noted})

    def _is_gone(self, directory: int) -> bool:
        pair = self._changed.get(directory)
        return pair is not None and not pair.is_same

    def _check(self, numbers: list[int]) -> None:
        """Check generations and numbers of names, and look the names of the older side up in their directories."""
        by_directory: dict[int, list[tuple[bytes, int]]] = {}
        for portion in _portions(numbers):
            self._older.prefetch_inodes(portion)
            for number in portion:
                known, (older, newer) = self._known[number], self._states(number)
                if older is not None:
                    if len(known.older) != older.names:
                        raise _unresolved(number, len(known.older), older)
                    if not older.generation == max(known.generations) == min(known.generations):
                        raise Unreadable(f"inode {number} is not the one whose names were noted")
                if newer is not None and len(known.newer) != newer.names:
                    raise _unresolved(number, len(known.newer), newer)
                for directory, name in known.older:
                    by_directory.setdefault(directory, []).append((name, number))
        for portion in _portions(by_directory):
            for image in (self._older, self._newer):  # both, as what is in one chunk with a change is stored twice
                image.prefetch_inodes(portion)
                image.prefetch_entries(filter(None, map(image.inode, portion)))
            for directory in portion:
                self._look_up(directory, by_directory[directory])

    def _states(self, number: int) -> Changed:
        pair = self._changed.get(number)
        if pair is None:
            state = State.of(self._older.used_inode(number))
            pair = Changed(state, state)
        return pair

    def _look_up(self, directory: int, names: list[tuple[bytes, int]]) -> None:
        entries = self._older.entries(self._older.used_inode(directory))
        for name, number in names:
            entry = entries.get(name)
            if entry is None or entry.inode != number:
                raise Unreadable(f"directory {directory} has no longer the entry that was noted of inode {number}")

    # -- below directories in another's place

    def _linked_below_replaced(self) -> set[int]:
        """The inodes with several names at paths that both sides have below directories in another's place."""
        found: set[int] = set()
        pending = [pair for pair in self._difference.replaced if self._differ(*pair)]
        while pending:
            before, after = pending.pop()
            ours, theirs = _entries(self._older, before), _entries(self._newer, after)
            common = (ours.keys() & theirs.keys()) - DOTS
            self._older.prefetch_inodes(ours[name].inode for name in common)
            self._newer.prefetch_inodes(theirs[name].inode for name in common)
            for name in common:
                number, other = ours[name].inode, theirs[name].inode
                if not self._differ(number, other):
                    continue
                older, newer = self._older.used_inode(number), self._newer.used_inode(other)
                if older.is_directory and newer.is_directory:
                    pending.append((number, other))
                found.update(inode.number for inode in (older, newer) if not inode.is_directory and inode.links > 1)
        return {number for number in found if self._is_kept_in_use(number)}

    def _differ(self, number: int, other: int) -> bool:
        pair = self._changed.get(number)
        return number != other or (pair is not None and not pair.is_same)

    def _is_kept_in_use(self, number: int) -> bool:
        pair = self._changed.get(number)
        return pair is None or (pair.older is not None and pair.newer is not None)


def _entries(image: Image, number: int) -> Mapping[bytes, Entry]:
    inode = image.used_inode(number)
    image.prefetch_entries((inode,))
    return image.entries(inode)


def _portions(numbers: Collection[int]) -> Iterator[list[int]]:
    ordered = sorted(numbers)
    for start in range(0, len(ordered), _AHEAD):
        yield ordered[start : start + _AHEAD]


def _unresolved(number: int, found: int, state: State) -> Unreadable:
    kind = "directory" if state.directory else "inode"
    return Unreadable(f"{kind} {number} has {state.names} names, and {found} of them were found")
