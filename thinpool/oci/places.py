"""Where an image lies: a directory, or a tar archive of one. Both give files by their paths and nothing else."""

import io
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

import attrs

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.limits import Limits
from thinpool.layer.openat2 import Resolver
from thinpool.layer.paths import clean
from thinpool.layer.reader import TarReader
from thinpool.layer.tarformat import EntryType
from thinpool.layer.text import shown

_CHUNK = 1 << 16
_MOST_LINKS = 8
_INDEX_LIMITS = Limits(entries=20_000, path_length=512)


class Blob(io.RawIOBase):
    """A part of an open file, read from its beginning; closing it closes the file if it is the owner's last use.

    Attributes:
        size: its bytes.
    """

    def __init__(self, fd: int, offset: int, size: int, *, owned: bool) -> None:
        super().__init__()
        self.size = size
        self._fd = fd
        self._next = offset
        self._end = offset + size
        self._owned = owned

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Read what comes next; 0 at the end, or where the file has become shorter."""
        with memoryview(buffer) as view:
            count = os.preadv(self._fd, [view[: self._end - self._next]], self._next)
        self._next += count
        return count

    def close(self) -> None:
        """Let go of the file."""
        if self._owned and not self.closed:
            os.close(self._fd)
        super().close()


class Place(Protocol):
    """Files by path."""

    def open(self, path: str) -> Blob | None:
        """A file, or None where there is none.

        Raises:
            ArchiveError: it is no regular file, or cannot be read.
        """


class DirectoryPlace:
    """A directory of files; symbolic links in it lead nowhere out of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._resolver = Resolver(self._fd)

    def open(self, path: str) -> Blob | None:
        """A file of the directory."""
        try:
            found = self._resolver.open(_name(path), os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ArchiveError(f"{shown(path)} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):  # before it is opened, which may make a device do something
                raise ArchiveError(f"{shown(path)} is no regular file")
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ArchiveError(f"{shown(path)} cannot be read: {error.strerror}") from error
        finally:
            os.close(found)
        return Blob(fd, 0, status.st_size, owned=True)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@attrs.frozen
class _File:
    offset: int
    size: int


class ArchivePlace:
    """A tar archive in a file that can be read anywhere: its entries are listed once, and their data left where it is.

    Where two entries have one name, the later counts. Links are followed within the archive, by their names alone.
    """

    def __init__(self, fd: int) -> None:
        """List the entries.

        Args:
            fd: the archive, plain; it stays the caller's, and its position as it is.

        Raises:
            ArchiveError: cut short, damaged, or no tar archive at all.
            UnsafeArchive: it has more entries, or longer names, than an image has.
        """
        self._fd = fd
        self._position = 0
        self._entries: dict[bytes, _File | bytes | None] = {}
        reader = TarReader(self._chunks(), _INDEX_LIMITS)
        for member in reader.members():
            path = clean(member.name)
            if member.type is EntryType.REGULAR:
                self._entries[path] = self._locate(reader, member.size)
            elif member.type is EntryType.SYMLINK:
                self._entries[path] = path.rpartition(b"/")[0] + b"/" + member.link
            elif member.type is EntryType.HARDLINK:
                self._entries[path] = member.link
            else:
                self._entries[path] = None

    def open(self, path: str) -> Blob | None:
        """A file of the archive."""
        name = _name(path)
        entry = self._entries.get(name)
        for _ in range(_MOST_LINKS):
            if not isinstance(entry, bytes):
                break
            entry = self._entries.get(_resolve(entry))
        if isinstance(entry, bytes):
            raise UnsafeArchive(f"{shown(path)} is a link to a link, and so on")
        if entry is None:
            if name in self._entries:
                raise ArchiveError(f"{shown(path)} is no regular file, nor a link to one of the archive")
            return None
        return Blob(self._fd, entry.offset, entry.size, owned=False)

    def _chunks(self) -> Iterator[bytes]:
        while piece := os.pread(self._fd, _CHUNK, self._position):
            self._position += len(piece)
            yield piece

    def _locate(self, reader: TarReader, size: int) -> _File | None:
        """Where the data of the present entry is, which is passed over; None for one that is stored with holes."""
        before = self._position
        if reader.is_sparse:
            return None
        at_hand, beyond = reader.pass_over()
        self._position = before + beyond
        return _File(before - at_hand, size)


def _name(path: str) -> bytes:
    """A path of a document as the bytes of a file name."""
    if "\0" in path:
        raise ArchiveError(f"the path {shown(path)} has a NUL in it")
    return path.encode()


def _resolve(path: bytes) -> bytes:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                return b""
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)
