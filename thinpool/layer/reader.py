"""Reading an archive that may have been made to do harm: entry by entry, with limits, never back.

All that is held is a piece of the archive, one entry's extended headers and its sparse map, each within the limits.
Understood are v7, ustar, pax (extended and global headers) and GNU (long names, base-256 numbers), and sparse members
in all four of GNU's formats. Like GNU tar and Go's archive/tar, entries that are no files have no data, whatever size
they state.
"""

from collections.abc import Iterator, Mapping

import attrs

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer import sparse
from thinpool.layer.extended import Extended
from thinpool.layer.limits import Limits
from thinpool.layer.tarformat import BLOCK, ZERO_BLOCK, EntryType, Header, parse_header
from thinpool.layer.text import shown
from thinpool.units import human_size

_MOST_WARNINGS = 20
_REGULAR = frozenset({b"0", b"\0", b"7", b"S"})
_SKIPPED = frozenset({b"V"})  # GNU: the volume's label
_TYPES = {entry_type.value: entry_type for entry_type in EntryType} | {b"D": EntryType.DIRECTORY}


@attrs.frozen
class Member:
    """One entry of an archive.

    Attributes:
        name: as it stands in the archive.
        type: what it is.
        mode: permission bits, set-id and sticky bits.
        uid: owner.
        gid: group.
        size: bytes of the file, holes included.
        mtime_ns: time of modification in nanoseconds.
        link: target of a link.
        major: major device number.
        minor: minor device number.
        xattrs: extended attributes.
    """

    name: bytes
    type: EntryType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    major: int
    minor: int
    xattrs: Mapping[str, bytes]


class TarReader:
    """The entries of an archive, one after the other."""

    def __init__(self, chunks: Iterator[bytes], limits: Limits) -> None:
        """Begin.

        Args:
            chunks: the uncompressed archive in pieces of any size.
            limits: what it may ask for.
        """
        self.warnings: list[str] = []
        self._chunks = chunks
        self._limits = limits
        self._data = b""
        self._position = 0
        self._left = 0
        self._padding = 0
        self._map: sparse.Map | None = None
        self._globals = Extended()
        self._begun = False

    def members(self) -> Iterator[Member]:
        """The entries. Data of an entry that was not read is skipped when the next one is asked for.

        Raises:
            ArchiveError: cut short, damaged, or no tar archive at all.
            UnsafeArchive: beyond a limit.
        """
        entries = total = 0
        while (member := self._next()) is not None:
            entries += 1
            if entries > self._limits.entries:
                raise UnsafeArchive(f"more than {self._limits.entries} entries: beyond the limit")
            total += member.size
            if total > self._limits.size:
                raise UnsafeArchive(f"files of more than {human_size(self._limits.size)} in all: beyond the limit")
            yield member

    def data(self) -> Iterator[tuple[int, bytes]]:
        """The data of the present entry: pieces, each with its offset in the file; holes are left out."""
        if self._map is None:
            offset = 0
            for piece in self._pieces():
                yield offset, piece
                offset += len(piece)
            return
        for offset, length in self._map.extents():
            position = offset
            for piece in self._pieces(length):
                yield position, piece
                position += len(piece)

    def at_once(self) -> bytes | None:
        """All data of the present entry, where it has no holes and is at hand in one piece; else ask for `data`."""
        end = self._position + self._left
        if self._map is not None or end > len(self._data):
            return None
        data = self._data[self._position : end]
        self._position, self._left = end, 0
        return data

    @property
    def is_sparse(self) -> bool:
        """Whether the present entry is stored with holes, so that its data is not the file's content as it stands."""
        return self._map is not None

    def pass_over(self) -> tuple[int, int]:
        """Give up the present entry's data, none of which was read, for whoever can find it again in the archive.

        Returns:
            How far before the end of the last piece the data begins, and how far beyond it the next header: where the
            next piece has to be taken from.
        """
        at_hand = len(self._data) - self._position
        count = self._left + self._padding
        step = min(count, at_hand)
        self._position += step
        self._left = self._padding = 0
        return at_hand, count - step

    def _next(self) -> Member | None:
        local = Extended()
        long_name: bytes | None = None
        long_link: bytes | None = None
        held = 0
        while (header := self._header()) is not None:
            if header.flag in {b"x", b"X", b"g", b"L", b"K"}:
                held += BLOCK + header.size
                if held > self._limits.header_size:
                    limit = human_size(self._limits.header_size)
                    raise UnsafeArchive(f"extended headers of more than {limit} at {shown(header.name)}")
                data = self._take(header.size - header.size % -BLOCK)[: header.size]
                match header.flag:
                    case b"g":
                        self._globals.update(data)
                        if self._globals.memory > self._limits.header_size:
                            raise UnsafeArchive("global extended headers grow beyond the limit")
                    case b"L":
                        long_name = data.rstrip(b"\0")
                    case b"K":
                        long_link = data.rstrip(b"\0")
                    case _:
                        local.update(data)
                        if local.lost_acl and len(self.warnings) < _MOST_WARNINGS:
                            self.warnings.append("left out access control lists with names: only numeric ids count")
                continue
            if header.flag in _SKIPPED:
                self._left, self._padding = header.size, -header.size % BLOCK
                continue
            extended = local.over(self._globals) if self._globals.memory else local
            return self._member(header, extended, long_name, long_link)
        if held:
            raise ArchiveError("the archive is cut short: an extended header is its last entry")
        return None

    def _member(self, header: Header, extended: Extended, long_name: bytes | None, long_link: bytes | None) -> Member:
        name = header.name if long_name is None else long_name
        link = header.link if long_link is None else long_link
        size, uid, gid, mtime_ns = header.size, header.uid, header.gid, header.mtime_ns
        if extended.memory:
            mtime_ns = extended.time(mtime_ns)
            if not extended.only_time:
                name = extended.text(b"path", name)
                link = extended.text(b"linkpath", link)
                size = extended.number(b"size", size)
                uid, gid = extended.number(b"uid", uid), extended.number(b"gid", gid)
        longest = name if len(name) >= len(link) else link
        if len(longest) > self._limits.path_length:
            raise UnsafeArchive(f"path {shown(longest)} of {len(longest)} bytes: limit {self._limits.path_length}")
        if header.flag in _REGULAR:
            kind = EntryType.DIRECTORY if header.flag != b"S" and name.endswith(b"/") else EntryType.REGULAR
        elif header.flag in _TYPES:
            kind = _TYPES[header.flag]
        else:
            raise ArchiveError(f"entry {shown(name)} is of the unknown type {shown(header.flag)}")
        has_data = kind is EntryType.REGULAR or header.flag == b"D"
        self._left = size if has_data else 0
        self._padding = -self._left % BLOCK
        self._map = None
        if kind is EntryType.REGULAR and (header.flag == b"S" or extended.sparse):
            name, size = self._read_map(header, extended, name)
        return Member(
            name,
            kind,
            header.mode,
            uid,
            gid,
            size if kind is EntryType.REGULAR else 0,
            mtime_ns,
            link,
            header.major,
            header.minor,
            extended.xattrs,
        )

    def _read_map(self, header: Header, extended: Extended, name: bytes) -> tuple[bytes, int]:
        """The map of a sparse member; its name and size, which are not where other members have them."""
        limit = self._limits.header_size
        if header.flag == b"S":
            found = sparse.old_gnu(header.raw, lambda: self._take(BLOCK), limit)
        elif extended.number(b"GNU.sparse.major", 0) == 1:
            found = sparse.pax_1_0(extended, self._take_from_member, limit)
        else:
            found = sparse.pax_0(extended)
        found.check(self._left)
        self._map = found
        return extended.text(b"GNU.sparse.name", name), found.size

    def _header(self) -> Header | None:
        """The next header block, or None at the end of the archive."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._take_some(BLOCK)
        if len(block) < BLOCK:
            if not self._begun:
                raise ArchiveError("not a tar archive, nor gzip, zstd or xz: too short")
            if block:
                raise ArchiveError("the archive is cut short: its last header is not whole")
            raise ArchiveError("the archive is cut short: it has no end mark")
        if block == ZERO_BLOCK:
            self._end()
            return None
        try:
            header = parse_header(block)
        except ArchiveError as error:
            if self._begun:
                raise
            raise ArchiveError(f"not a tar archive, nor gzip, zstd or xz ({error.message})") from error
        self._begun = True
        return header

    def _end(self) -> None:
        """Read what follows the end mark: nothing, or zeros that fill up a record."""
        if len(self._take_some(0)) == 0 and not self._fill():
            self.warnings.append("the archive has half an end mark")
        while True:
            rest = self._data[self._position :]
            if rest.strip(b"\0"):
                raise ArchiveError("garbage after the end of the archive")
            self._position = len(self._data)
            if not self._fill():
                return

    def _fill(self) -> bool:
        """True when there are bytes at hand; reads a piece when there are none."""
        while self._position >= len(self._data):
            piece = next(self._chunks, None)
            if piece is None:
                return False
            self._data, self._position = piece, 0
        return True

    def _take_some(self, count: int) -> bytes:
        """So many bytes, or fewer at the end of the archive."""
        start, end = self._position, self._position + count
        if end <= len(self._data):
            self._position = end
            return self._data[start:end]
        parts = []
        while count and self._fill():
            part = self._data[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _take(self, count: int) -> bytes:
        data = self._take_some(count)
        if len(data) < count:
            raise ArchiveError("the archive is cut short")
        return data

    def _take_from_member(self, count: int) -> bytes:
        if count > self._left:
            raise ArchiveError("a sparse member is shorter than its map")
        self._left -= count
        return self._take(count)

    def _pieces(self, count: int | None = None) -> Iterator[bytes]:
        """The next so many bytes of the member's data, or all that are left, in pieces as they come."""
        left = self._left if count is None else count
        while left:
            if not self._fill():
                raise ArchiveError("the archive is cut short: the data of its last file is not whole")
            part = self._data[self._position : self._position + left]
            self._position += len(part)
            self._left -= len(part)
            left -= len(part)
            yield part

    def _skip(self, count: int) -> None:
        while count:
            if not self._fill():
                raise ArchiveError("the archive is cut short: the data of its last file is not whole")
            step = min(count, len(self._data) - self._position)
            self._position += step
            count -= step
