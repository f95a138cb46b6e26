"""The content of a regular file."""

from collections.abc import Hashable

from thinpool.filesystem.ext4.inode import Inode
from thinpool.filesystem.ext4.superblock import Superblock
from thinpool.filesystem.ext4.volume import Volume


class FileContent:
    """A regular file's content, to be read from its beginning towards its end; a `thinpool.layer.view.Content`."""

    def __init__(self, volume: Volume, superblock: Superblock, inode: Inode) -> None:
        """Of a file; see `Image.content`."""
        self._volume = volume
        self._superblock = superblock
        self._inode = inode

    def next_data(self, position: int) -> int:
        """The first position from here on that may hold anything but zeros; the file's size where none does."""
        raise NotImplementedError

    def stored_at(self, position: int) -> tuple[Hashable, int] | None:
        """Where the byte at a position is stored, and for how many bytes on; see `Volume.stored_at`."""
        raise NotImplementedError

    def read(self, position: int, buffer: memoryview) -> int:
        """Fill a buffer from a position on; returns the number of bytes, fewer at the file's end."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""
