"""A file system as a comparison sees it (`thinpool.layer.view.View`): what a mount of it would show."""

from collections.abc import Callable, Iterable, Mapping

import attrs

from thinpool.filesystem.ext4.content import FileContent
from thinpool.filesystem.ext4.image import Image


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


class Ext4View:
    """The tree of a file system; every method may raise Unreadable."""

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

    def entries(self, names: Iterable[str] | None = None) -> Mapping[str, int]:
        """The entries, or those of the given names that there are: the inode number of a directory, 0 for all else."""
        raise NotImplementedError

    def status(self, name: str) -> Ext4Status:
        """What stat(2) tells of an entry; of the directory itself by the name `.`."""
        raise NotImplementedError

    def attributes(self, name: str) -> Mapping[str, bytes]:
        """The extended attributes of an entry that are shown."""
        raise NotImplementedError

    def target(self, name: str) -> str:
        """What a symbolic link names."""
        raise NotImplementedError

    def content(self, name: str, size: int) -> FileContent:
        """A regular file's content."""
        raise NotImplementedError

    def enter(self, name: str) -> None:
        """Go down into a directory."""
        raise NotImplementedError

    def leave(self) -> None:
        """Go up again."""
        raise NotImplementedError
