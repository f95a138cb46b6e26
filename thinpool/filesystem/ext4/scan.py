"""The names in a file system, found by reading all of its directories."""

import stat
from array import array
from collections.abc import Iterator
from typing import Final

from thinpool.filesystem.ext4.entries import DOTS
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.extents import in_inode
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import Inode, parse_inode
from thinpool.filesystem.ext4.manifest import Builder, Name
from thinpool.filesystem.ext4.settled import is_late

__all__ = ["MOST_NAMES", "all_names"]

MOST_NAMES: Final = 1 << 21
"""More names than these are not kept; they would take some 200 MB while the manifest is made."""

_PIECE: Final = 1 << 20
_AHEAD: Final = 256


def all_names(image: Image, complete_ns: int | None) -> Builder:
    """A whole manifest in the making: all names, and the late inodes.

    The inode tables are read in order, and of each group the directories in the order of their first blocks.

    Args:
        image: the file system.
        complete_ns: when the layer was complete, nanoseconds since 1970; None: not known, and every inode is late.

    Raises:
        Unreadable: damage, or more than `MOST_NAMES`.
    """
    builder = Builder()
    scan = _Scan(image, builder, complete_ns)
    found: list[tuple[int, int, bytes]] = []
    for group in range(len(image.groups.all)):
        for number, name, directory in scan.group(group):
            found.append((number, directory, name))
            if len(found) > MOST_NAMES:
                raise Unreadable(f"it has more than {MOST_NAMES} names")
    for number, directory, name in found:
        builder.add(number, Name(directory, name, scan.generation(number)))
    return builder


class _Scan:
    def __init__(self, image: Image, builder: Builder, complete_ns: int | None) -> None:
        self._image = image
        self._builder = builder
        self._complete_ns = complete_ns
        self._generations: dict[int, array[int]] = {}

    def generation(self, number: int) -> int:
        """The generation of an inode that was met."""
        group, index = divmod(number - 1, self._image.superblock.inodes_per_group)
        generations = self._generations.get(group)
        if generations is None or index >= len(generations):
            raise Unreadable(f"inode {number} has a name, but is not in use")
        return generations[index]

    def group(self, group: int) -> Iterator[tuple[int, bytes, int]]:
        """The names in the directories of a group: inode, name, directory."""
        directories = list(self._directories(group))
        directories.sort(key=lambda inode: next((e.block for e in in_inode(self._image.superblock, inode)), 0))
        for start in range(0, len(directories), _AHEAD):
            portion = directories[start : start + _AHEAD]
            self._image.prefetch_entries(portion)
            for inode in portion:
                for name, entry in self._image.entries(inode).items():
                    if name not in DOTS:
                        yield entry.inode, name, inode.number

    def _directories(self, group: int) -> Iterator[Inode]:
        image = self._image
        table, used = image.groups.all[group].table, image.groups.all[group].used
        size, first = image.superblock.inode_size, group * image.superblock.inodes_per_group + 1
        generations = self._generations[group] = array("I", bytes(4 * used))
        for start in range(0, used, _PIECE // size):
            count = min(_PIECE // size, used - start)
            data = image.volume.read(table + start * size, count * size)
            for index in range(count):
                raw = data[index * size : (index + 1) * size]
                if not raw[0x1A] and not raw[0x1B]:
                    continue
                number = first + start + index
                if number in image.superblock.special_inodes:
                    continue
                inode = parse_inode(raw, number, image.superblock)
                if inode is None:
                    continue
                generations[start + index] = inode.generation
                if is_late(inode, self._complete_ns):
                    self._builder.late.append(number)
                if stat.S_ISDIR(inode.mode):
                    yield inode
