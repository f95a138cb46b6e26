"""Export: the difference of two trees as an OCI layer tar, the same bytes for the same trees."""

import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO

import attrs

from thinpool.errors import TreeError
from thinpool.layer import acl, holes, whiteouts, xattrs
from thinpool.layer.names import names_of
from thinpool.layer.parents import Parents
from thinpool.layer.sink import Compression, Sink
from thinpool.layer.tarformat import END, Entry, EntryType, escape_key, format_entry, padding, record
from thinpool.layer.text import shown
from thinpool.layer.tree import Descent
from thinpool.model import Change

_CHUNK = 1 << 20
_MOST_WARNINGS = 100
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES = {
    stat.S_IFREG: EntryType.REGULAR,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFCHR: EntryType.CHARACTER,
    stat.S_IFBLK: EntryType.BLOCK,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFIFO: EntryType.FIFO,
}
_Id = tuple[int, int]


@attrs.frozen
class ArchiveResult:
    """What an export wrote.

    Attributes:
        diff_id: digest of the uncompressed archive, `sha256:...`.
        digest: digest of what was written.
        size: bytes that were written.
        uncompressed_size: bytes of the uncompressed archive.
        entries: entries in the archive, parent directories and whiteouts included.
        warnings: what could not be put into the archive, and why.
    """

    diff_id: str
    digest: str
    size: int
    uncompressed_size: int
    entries: int
    warnings: tuple[str, ...]


def write_layer(
    fileobj: IO[bytes],
    older: int | None,  # noqa: ARG001 - callers hold both trees, and another form of archive would need it
    newer: int,
    changes: Iterable[Change],
    *,
    compress: Compression = "none",
    progress: Callable[[int], None] | None = None,
) -> ArchiveResult:
    """Write the changes as a layer archive: pax, no time of access, nothing of the process that writes it.

    A changed entry comes in full, after its parent directories; a deleted one as a whiteout. Of a file with several
    names the first has the content and the others are links to it, and names that did not change follow at the end, so
    that no link leads out of the archive. Of a file with much that is zero the zeros are left out, as
    `thinpool.layer.holes` tells. Sockets, and names that would be read as whiteouts, are left out with a
    warning. Memory is
    bounded, but for the names of files with several names of which some are still to come.

    Args:
        fileobj: takes bytes by `write`; its errors pass through.
        older: root directory of the older tree, or None.
        newer: root directory of the newer tree.
        changes: the differences, sorted by the bytes of their paths, as `thinpool.layer.changes.walk` gives them.
        compress: how the archive is compressed.
        progress: called with the number of uncompressed bytes written so far.

    Raises:
        TreeError: the tree cannot be read, or changed meanwhile.
    """
    with ExitStack() as stack:
        if isinstance(changes, Generator):  # which keeps directories open, of trees that are to be unmounted
            stack.callback(changes.close)
        descent = stack.enter_context(Descent(newer))
        sink = stack.enter_context(Sink(fileobj, compress, progress))
        layer = _Layer(descent, sink)
        for change in changes:
            layer.add(change.kind, os.fsencode(change.path)[1:])
        layer.add_other_names(newer)
        sink.write(END)
        written = sink.finish()
        return ArchiveResult(
            written.diff_id,
            written.digest,
            written.size,
            written.uncompressed_size,
            layer.entries,
            tuple(layer.warnings),
        )


@attrs.define(eq=False)
class _Shared:
    """A file with several names, until all of them are in the archive.

    Attributes:
        links: how many it has.
        first: the one that has the content.
        names: all that are in the archive.
    """

    links: int
    first: bytes
    names: set[bytes]


class _Layer:
    def __init__(self, descent: Descent, sink: Sink) -> None:
        self.entries = 0
        self.warnings: list[str] = []
        self._descent = descent
        self._sink = sink
        self._parents = Parents()
        self._shared: dict[_Id, _Shared] = {}
        self._place: bytes | None = None  # where `descent` is, once the directories down to it are in the archive

    def add(self, kind: str, path: bytes) -> None:
        """Add one change; the path has no leading slash, and is empty for the root."""
        above, _, name = path.rpartition(b"/")
        if whiteouts.PREFIX in path and any(whiteouts.is_reserved(part) for part in path.split(b"/")):
            self._warn(f"left out {shown(path)}: its name would be read as a whiteout")
            return
        try:
            if above != self._place:
                for directory in self._parents.missing(path):
                    self._add_directory(directory)
                self._go(above)
            if kind == "D":
                self._emit(Entry(_join(above, whiteouts.whiteout(name)), EntryType.REGULAR))
            else:
                self._add_entry(kind, path, name or b".")
        except OSError as error:
            raise TreeError(f"{shown(path)} cannot be exported: {error.strerror}") from error

    def add_other_names(self, newer: int) -> None:
        """Add the unchanged names of files of which other names are in the archive."""
        for by_status in (False, True):
            wanted = set(self._shared)
            if not wanted:
                return
            self._parents.clear()
            self._place = None
            for path, identity in names_of(newer, wanted, by_status=by_status):
                shared = self._shared.get(identity)
                if shared is not None and path not in shared.names:
                    self.add("C", path)

    def _add_directory(self, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        self._go(above)
        self._add_entry("C", path, name or b".")

    def _go(self, directory: bytes) -> None:
        self._descent.go(directory.split(b"/") if directory else ())
        self._place = directory

    def _add_entry(self, kind: str, path: bytes, name: bytes) -> None:
        fd = self._descent.fd
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        kind_of = _TYPES.get(stat.S_IFMT(status.st_mode))
        if kind_of is None:
            self._warn(f"left out {shown(path)}: a socket")
            if kind == "C":  # what was there before is gone all the same
                above, _, last = path.rpartition(b"/")
                self._emit(Entry(_join(above, whiteouts.whiteout(last)), EntryType.REGULAR))
            return
        if kind_of is EntryType.DIRECTORY:
            self._parents.add(path)
        elif status.st_nlink > 1 and self._add_link(status, path):
            return
        if kind_of is EntryType.REGULAR:
            self._add_file(fd, status, path, name)
        else:
            self._emit(self._describe(status, kind_of, path, xattrs.path_of(fd, name), fd, name))

    def _add_link(self, status: os.stat_result, path: bytes) -> bool:
        """Add a further name of a file; False for its first."""
        identity = (status.st_dev, status.st_ino)
        shared = self._shared.get(identity)
        if shared is None:
            self._shared[identity] = _Shared(status.st_nlink, path, {path})
            return False
        entry = Entry(
            path,
            EntryType.HARDLINK,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            mtime_ns=status.st_mtime_ns,
            link=shared.first,
        )
        self._emit(entry)
        shared.names.add(path)
        if len(shared.names) == shared.links:
            del self._shared[identity]
        return True

    def _add_file(self, dir_fd: int, status: os.stat_result, path: bytes, name: bytes) -> None:
        size = status.st_size
        fd = os.open(name, _READ, dir_fd=dir_fd)
        try:
            entry = self._describe(status, EntryType.REGULAR, path, fd, dir_fd, name, size)
            extents = holes.data_extents(fd, size) if size >= holes.WORTHWHILE else None
            if extents is None:
                self._emit(entry)
                if size:
                    self._copy(fd, path, 0, size)
                    self._sink.write(padding(size))
            else:
                self._add_sparse(fd, entry, extents)
        finally:
            os.close(fd)

    def _add_sparse(self, fd: int, entry: Entry, extents: Sequence[tuple[int, int]]) -> None:
        lead = holes.format_map(extents, entry.size)
        stored = len(lead) + sum(length for _, length in extents)
        records = [*holes.records(entry.name, entry.size), *entry.extra]
        self._emit(attrs.evolve(entry, name=holes.stand_in(entry.name), size=stored, extra=records))
        self._sink.write(lead)
        for offset, length in extents:
            self._copy(fd, entry.name, offset, length)
        self._sink.write(padding(stored))

    def _copy(self, fd: int, path: bytes, offset: int, size: int) -> None:
        while size:
            data = os.pread(fd, min(size, _CHUNK), offset)
            if not data:
                raise TreeError(f"{shown(path)} became shorter while it was exported")
            offset += len(data)
            size -= len(data)
            self._sink.write(data)

    def _describe(
        self,
        status: os.stat_result,
        kind: EntryType,
        path: bytes,
        file: int | str,
        dir_fd: int,
        name: bytes,
        size: int = 0,
    ) -> Entry:
        directory = kind is EntryType.DIRECTORY
        return Entry(
            (path or b".") + b"/" if directory else path,
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            size,
            status.st_mtime_ns,
            os.readlink(name, dir_fd=dir_fd) if kind is EntryType.SYMLINK else b"",
            os.major(status.st_rdev),
            os.minor(status.st_rdev),
            [line for key, value in xattrs.read(file).items() for line in _xattr_records(key, value)],
        )

    def _warn(self, text: str) -> None:
        if len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(text)
        elif len(self.warnings) == _MOST_WARNINGS:
            self.warnings.append("there are more warnings like these")

    def _emit(self, entry: Entry) -> None:
        self.entries += 1
        self._sink.write(format_entry(entry))


def _xattr_records(name: str, value: bytes) -> Iterator[bytes]:
    """An extended attribute; an access control list also as text, the only form that GNU tar and bsdtar take."""
    yield record(b"SCHILY.xattr." + escape_key(os.fsencode(name)), value)
    key = acl.KEYS.get(name)
    text = None if key is None else acl.to_text(value)
    if key is not None and text is not None:
        yield record(key, text)


def _join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above else name
