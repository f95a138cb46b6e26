"""A file system as a comparison sees it (`thinpool.layer.view.View`): what a mount of it would show."""

import os
from collections.abc import Callable, Iterable, Mapping

import attrs

from thinpool.filesystem.ext4.content import FileContent
from thinpool.filesystem.ext4.directory import Entry
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import ROOT_INODE

_S_IFMT = 0o170000
_S_IFDIR = 0o040000


@attrs.frozen
class Ext4Status:
    """What stat(2) tells; `st_dev` is 0 for all."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_rdev: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_dev: int = 0

    @classmethod
    def of(cls, inode: Inode) -> "Ext4Status":
        """Of an inode."""
        return cls(
            inode.mode, inode.number, inode.links, inode.uid, inode.gid, inode.size, inode.rdev, inode.mtime_ns,
            inode.ctime_ns,
        )  # fmt: skip


@attrs.frozen(eq=False)
class _Place:
    """A directory on the way down: its inode and its entries by name."""

    inode: Inode
    entries: Mapping[bytes, Entry]


class Ext4View:
    """The tree of a file system; every method may raise Unreadable.

    A directory is entered through its parent alone, and once only, so that the way down ends and no directory is
    looked at twice, whatever the entries say.
    """

    def __init__(self, image: Image, belongs: Callable[[str], bool]) -> None:
        """Start at the root.

        Args:
            image: the file system.
            belongs: whether an extended attribute of that name is shown.

        Raises:
            Unreadable: there is no root directory.
        """
        self.image = image
        self._belongs = belongs
        root = image.used_inode(ROOT_INODE)
        self._places = [self._open(root, ROOT_INODE)]

    def entries(self, names: Iterable[str] | None = None) -> Mapping[str, int]:
        """The entries, or those of the given names that there are: the inode number of a directory, 0 for all else.

        The inodes of these entries are read ahead.
        """
        here = self._places[-1].entries
        if names is None:
            wanted = {os.fsdecode(name): entry for name, entry in here.items() if name not in {b".", b".."}}
        else:
            pairs = ((name, here.get(os.fsencode(name))) for name in names)
            wanted = {name: entry for name, entry in pairs if entry is not None}
        self.image.prefetch_inodes(entry.inode for entry in wanted.values())
        found = {name: entry.inode if self._kind(entry) == _S_IFDIR else 0 for name, entry in wanted.items()}
        self._check_once(found.values())
        return found

    def status(self, name: str) -> Ext4Status:
        """What stat(2) tells of an entry; of the directory itself by the name `.`."""
        return Ext4Status.of(self._inode(name))

    def attributes(self, name: str) -> Mapping[str, bytes]:
        """The extended attributes of an entry that are shown."""
        found = self.image.attributes(self._inode(name))
        return {key: value for key, value in found.items() if self._belongs(key)}

    def target(self, name: str) -> str:
        """What a symbolic link names."""
        return os.fsdecode(self.image.target(self._inode(name)))

    def content(self, name: str, size: int) -> FileContent:  # noqa: ARG002 - as the protocol has it
        """A regular file's content."""
        return self.image.content(self._inode(name))

    def enter(self, name: str) -> None:
        """Go down into a directory."""
        inode = self._inode(name)
        if inode.number == ROOT_INODE:
            raise Unreadable(f"directory {self._places[-1].inode.number} names the root directory")
        self._places.append(self._open(inode, self._places[-1].inode.number))

    def leave(self) -> None:
        """Go up again."""
        self._places.pop()

    def _open(self, inode: Inode, parent: int) -> _Place:
        entries = self.image.entries(inode)
        if entries[b".."].inode != parent:
            raise Unreadable(f"directory {inode.number} is in directory {parent}, and says that it is elsewhere")
        return _Place(inode, entries)

    def _inode(self, name: str) -> Inode:
        place = self._places[-1]
        if name == ".":
            return place.inode
        entry = place.entries.get(os.fsencode(name))
        if entry is None:
            raise FileNotFoundError(2, "no such entry", name)
        inode = self.image.used_inode(entry.inode)
        if inode.number in self.image.superblock.special_inodes:
            raise Unreadable(f"directory {place.inode.number} names the reserved inode {inode.number}")
        if entry.kind and entry.kind != inode.mode & _S_IFMT:
            raise Unreadable(f"directory {place.inode.number} names inode {inode.number} with another type")
        return inode

    def _kind(self, entry: Entry) -> int:
        return entry.kind or self.image.used_inode(entry.inode).mode & _S_IFMT

    def _check_once(self, numbers: Iterable[int]) -> None:
        directories = [number for number in numbers if number]
        if len(directories) != len(set(directories)):
            raise Unreadable(f"directory {self._places[-1].inode.number} names a directory twice")
