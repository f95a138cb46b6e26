"""What a subvolume holds, counted in its tree: exact for whole extents, without quota groups.

An extent counts with its whole size on disk (compressed, if it is) and once, however often and however partly it is
referred to; data that lies within the tree (small files) counts with its length. The nodes of the trees themselves are
not counted.
"""

from collections.abc import Iterable

import attrs

from thinpool.btrfs.tree import Tree


@attrs.define
class Held:
    """Data by where it is on disk, and data within the tree; bytes."""

    extents: dict[int, int] = attrs.field(factory=dict)
    inline: int = 0

    @property
    def size(self) -> int:
        """All of it."""
        return sum(self.extents.values()) + self.inline


def held_since(tree: Tree, since: int) -> Held:
    """What was written after a transaction and is referred to by a subvolume, in time that grows with it."""
    found = Held()
    for extent in tree.extents(since=since + 1):
        if extent.made <= since:
            continue
        if extent.address is None:
            found.inline += extent.size
        elif extent.address:
            found.extents[extent.address] = extent.size
    return found


def exclusive(ours: Held, children: Iterable[Tree], since: int) -> int:
    """The bytes of what is held that none of some snapshots refers to.

    Data within the tree is taken to be shared as soon as there is a snapshot.
    """
    left = dict(ours.extents)
    inline = ours.inline
    for child in children:
        inline = 0
        for extent in child.extents(since=since + 1):
            if extent.address:
                left.pop(extent.address, None)
        if not left:
            break
    return sum(left.values()) + inline


def totals(tree: Tree) -> tuple[int, int]:
    """The bytes of data that a subvolume's files have, as du(1) counts them, and how many inodes there are.

    It is read through all inodes of the tree.
    """
    occupied = inodes = 0
    for _, item in tree.inodes():
        if item.links:
            occupied += item.occupied
            inodes += 1
    return occupied, inodes
