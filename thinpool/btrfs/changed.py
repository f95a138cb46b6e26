"""Where a subvolume differs from one that it descends from, in time that grows with what differs.

Every change writes the item of the inode that it changes, and those of the directories whose entries it changes, with
the number of the transaction (`transid` in struct btrfs_inode_item). So the inodes that changed since a subvolume was
complete are those with a later number, and the kernel finds them by skipping all older nodes of the tree. What is
gone has no item; it is missed in a directory that changed: there, the lengths of the names that are known to have come
and gone must make up the difference of the directory's two sizes, or its entries are compared.

Inode numbers survive snapshots, but are not unique in time: the number of the newest inode may be used again after it
is gone and the file system was mounted anew, and siblings use the same numbers for different files. An inode that took
over a number was written later, so it counts as changed, and its names in both trees are looked at.

A directory that moved takes the names below it along, without a change to what they name. What is below is looked at
as a whole where it is; but of a file with other names elsewhere, those are part of the comparison too.
"""

from collections.abc import Iterator, Mapping
from os import fsdecode

import attrs

from thinpool.btrfs.ioctl import FIRST_INODE
from thinpool.btrfs.tree import ANY, INODE_EXTREF, INODE_ITEM, INODE_REF, Inode, Key, Tree, inode, names
from thinpool.layer.scope import Place, Scope

MOST_INODES = 1 << 19
"""More changed inodes than these are not kept in memory: everything is compared then."""

_SHORT_DIRECTORY = 1 << 16  # of that size, reading the entries costs nothing, and the size need not be relied on
_LONGEST_RUN = 256

Name = tuple[int, bytes]
"""A directory's inode number, and a name in it."""


class Undecidable(Exception):
    """Why it cannot be said where two subvolumes differ, in words for people."""


@attrs.define(eq=False)
class _Found:
    """An inode in one tree: its item, where it has one, and its names."""

    item: Inode | None = None
    names: set[Name] = attrs.field(factory=set)

    @property
    def is_linked(self) -> bool:
        """Whether it has several names."""
        return self.item is not None and self.item.links > 1


def add_differences(scope: Scope, base: Tree, later: Tree, since: int, *, alone: bool) -> None:
    """Take into a scope where a subvolume may differ from one that it descends from.

    Both must be without unwritten changes, as snapshots are.

    Args:
        scope: what to add to.
        base: the ancestor, complete.
        later: the descendant.
        since: the last transaction that changed the ancestor.
        alone: nothing but these two is compared, so a directory that is new needs no account of what is in it.

    Raises:
        Undecidable: too much changed, or the descendant holds other subvolumes.
    """
    changed = _changed(later, since)
    now, before = _Places(later, scope.root), _Places(base, scope.root)
    sizes: dict[int, int] = {}
    gone = _without_items(base, changed) if alone else frozenset()
    moved: list[int] = []
    for number, after, earlier in _pairs(later, base, changed):
        if number == FIRST_INODE:  # which is named `..` in itself
            continue
        if changed[number] is not None and earlier.names and earlier.names != after.names:
            moved.append(number)
        for place, found in ((now, after), (before, earlier)):
            for directory, name in found.names:
                if place is now and directory in gone:
                    continue
                place.add(directory, name)
        for directory, name in after.names - earlier.names:
            sizes[directory] = sizes.get(directory, 0) + 2 * len(name)
        for directory, name in earlier.names - after.names:
            sizes[directory] = sizes.get(directory, 0) - 2 * len(name)
    for number, directory_size in changed.items():
        if directory_size is not None:
            _add_entries(number, directory_size, sizes.get(number, 0), now, before)
    for number in moved:
        _add_links_below(number, now, before)


def _changed(later: Tree, since: int) -> Mapping[int, int | None]:
    """The inodes that changed, in the order of their numbers; of directories, the size."""
    found: dict[int, int | None] = {}
    for number, item in later.inodes(since=since + 1):
        if item.changed > since:
            found[number] = item.size if item.directory else None
            if len(found) > MOST_INODES:
                raise Undecidable(f"more than {MOST_INODES} files changed")
    return found


def _without_items(base: Tree, changed: Mapping[int, int | None]) -> frozenset[int]:
    """The directories among the changed inodes that the ancestor does not have."""
    directories = {number: size for number, size in changed.items() if size is not None}
    return frozenset(number for number, found in _lookup(base, directories) if found.item is None)


def _pairs(later: Tree, base: Tree, changed: Mapping[int, int | None]) -> Iterator[tuple[int, _Found, _Found]]:
    """The changed inodes in both trees."""
    for (number, after), (_, earlier) in zip(_lookup(later, changed), _lookup(base, changed), strict=True):
        yield number, after, earlier


def _lookup(tree: Tree, numbers: Mapping[int, int | None]) -> Iterator[tuple[int, _Found]]:
    """Inodes by number, in ascending order; those with neighbouring numbers in one search."""
    for run in _runs(numbers):
        found = {number: _Found() for number in run}
        for item in tree.items(Key(run[0], INODE_ITEM, 0), Key(run[-1], INODE_EXTREF, ANY)):
            if item.kind == INODE_ITEM:
                found[item.number].item = inode(item)
            elif item.kind in {INODE_REF, INODE_EXTREF}:
                found[item.number].names.update(names(item))
        yield from found.items()


def _runs(numbers: Mapping[int, int | None]) -> Iterator[range]:
    """Ascending numbers as ranges; a directory ends one, so that no search goes over its entries."""
    first = last = 0
    for number, directory_size in numbers.items():
        if number != last or last - first == _LONGEST_RUN:
            if last > first:
                yield range(first, last)
            first = last = number
        last += 1
        if directory_size is not None:
            yield range(first, last)
            first = last
    if last > first:
        yield range(first, last)


def _add_entries(number: int, size: int, known: int, now: "_Places", before: "_Places") -> None:
    """Take in the entries by which a directory differs, where not all of them are known."""
    earlier = before.directory_size(number)
    if earlier is None or (size > _SHORT_DIRECTORY and earlier + known == size):
        return
    ours, theirs = set(now.tree.entries(number)), set(before.tree.entries(number))
    if any(entry.subvolume for entry in ours):
        raise Undecidable("there is a subvolume in it")
    for entry in ours ^ theirs:
        now.add(number, entry.name)
        before.add(number, entry.name)


def _add_links_below(directory: int, now: "_Places", before: "_Places") -> None:
    """Take in all names of the files with several of them below a directory that moved, and their names with it."""
    pending = [directory]
    while pending:
        files: dict[int, int | None] = {}
        for entry in now.tree.entries(pending.pop()):
            if entry.directory:
                pending.append(entry.number)
            else:
                files[entry.number] = None
        linked = {number: None for number, found in _lookup(now.tree, dict(sorted(files.items()))) if found.is_linked}
        for places in (now, before):
            for _, found in _lookup(places.tree, linked):
                for above, name in found.names:
                    places.add(above, name)


class _Places:
    """The places of a tree's directories in a scope, found by walking up from their inodes."""

    def __init__(self, tree: Tree, root: Place) -> None:
        self.tree = tree
        self._places: dict[int, Place | None] = {FIRST_INODE: root}

    def add(self, directory: int, name: bytes) -> None:
        """Take an entry of a directory into the scope."""
        place = self._of(directory)
        if place is not None:
            place.children.setdefault(fsdecode(name), Place())

    def directory_size(self, number: int) -> int | None:
        """The size of a directory, None where the tree has none of that number."""
        ((_, found),) = _lookup(self.tree, {number: 0})
        return None if found.item is None or not found.item.directory else found.item.size

    def _of(self, directory: int) -> Place | None:
        """The place of a directory; None where it has no name any more, or is not there."""
        below: list[tuple[int, bytes]] = []
        while directory not in self._places:
            ((_, found),) = _lookup(self.tree, {directory: 0})
            if not found.names:
                self._places[directory] = None
                break
            above, name = min(found.names)
            below.append((directory, name))
            directory = above
        place = self._places[directory]
        for number, name in reversed(below):
            if place is not None:
                place = place.children.setdefault(fsdecode(name), Place())
            self._places[number] = place
        return place
