"""The manifest of a file system in the making, from what differs from another one whose manifest there is."""

from collections.abc import Collection, Mapping

from thinpool.filesystem.ext4.changed import Changed
from thinpool.filesystem.ext4.entries import Difference
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.manifest import Builder, Name
from thinpool.filesystem.ext4.settled import is_late

__all__ = ["names_since"]

_AHEAD = 1024


def names_since(
    base: Image,
    image: Image,
    changed: Mapping[int, Changed],
    difference: Difference,
    late: Collection[int],
    complete_ns: int | None,
) -> Builder:
    """The names by which a file system differs from its base, and its late inodes.

    Args:
        base: the file system that there are names of.
        image: the other.
        changed: the inodes that differ.
        difference: the entries that differ, those in removed directories too.
        late: the late inodes of the base, which was complete no later than this one.
        complete_ns: when the layer was complete; None: not known, and every inode that may be late is.

    Raises:
        Unreadable: damage.
    """
    builder = Builder()
    for number, places in difference.removed.items():
        pair = changed.get(number)
        known = None if pair is None else pair.older
        generation = base.used_inode(number).generation if known is None else known.generation
        for directory, name in places:
            builder.remove(number, Name(directory, name, generation))
    for number, places in difference.added.items():
        pair = changed.get(number)
        known = None if pair is None else pair.newer
        generation = image.used_inode(number).generation if known is None else known.generation
        for directory, name in places:
            builder.add(number, Name(directory, name, generation))
    candidates = sorted(number for number in set(late).union(changed) if number <= image.superblock.inodes)
    for start in range(0, len(candidates), _AHEAD):
        portion = candidates[start : start + _AHEAD]
        image.prefetch_inodes(portion)
        for number in portion:
            inode = image.inode(number)
            if inode is not None and is_late(inode, complete_ns):
                builder.late.append(number)
    return builder
