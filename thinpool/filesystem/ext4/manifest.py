"""Which names each inode of a layer has, in a file: sorted by inode, checksummed, read where it is looked at.

An inode does not tell its names, and finding them takes a look at every directory. So the names of a committed layer,
which can never change, are kept: either all of them (a *whole* manifest), or what differs from the manifest of a layer
that this one descends from (a *delta*). A manifest is only a cache. It is written without fsync under a temporary name
and renamed; whatever happens to it costs time and never an answer, because all of it is covered by checksums, it is
used only for the very device that it was made of, and every name that it gives is looked up in its directory before
use.

Layout, integers little-endian: a header; the crc32c of each 4096 bytes of what follows them; then records of names that
are there, records of names that are in the base and not here (each 16 bytes: inode, generation, directory, offset of
the name), both in the order of the inodes; the numbers of the late inodes, 4 bytes each; and the names, each after a
byte with its length. It is read and checked in sheets of 64 KiB, as they are looked at, and 8 MiB of them are kept: a
look-up costs as many sheets as a binary search meets. (Mapping the file into memory cost more: a page fault is dearer
than the read of a sheet.) A whole manifest takes some 17 bytes and the name for each name: 1.5 MB for 53,000 files.

**Late inodes.** A file that is written again within the same tick of the clock shows the same times as before. So an
inode that was changed just before its layer was complete may be changed in a layer above without a trace in the inode;
a manifest lists those inodes, and a comparison looks at where their content is stored.
"""

import struct
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import attrs

from thinpool.filesystem.ext4.checksums import crc32c
from thinpool.filesystem.ext4.filebytes import FileBytes

__all__ = ["Builder", "Device", "Manifest", "Name", "Unfit"]

_MAGIC: Final = b"thin:ext4 names\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<16sI16s16sQQQ16sQQQQQQQI")
_CHECKSUM: Final = struct.Struct("<I")
_RECORD: Final = struct.Struct("<IIII")
_NUMBER: Final = struct.Struct("<I")
_PAGE: Final = 4096
_SHEET: Final = 16 * _PAGE
_KEPT_SHEETS: Final = 128
_NO_POOL: Final = bytes(16)


class Unfit(Exception):
    """Why a manifest cannot be used: cut short, damaged, of another device, or of another version."""


class Name(NamedTuple):
    """One name.

    Attributes:
        directory: number of the directory's inode.
        name: the name in it.
        generation: that of the inode that is named.
    """

    directory: int
    name: bytes
    generation: int


@attrs.frozen
class Device:
    """A thin device, told from all others that ever had its number.

    Attributes:
        pool: 16 bytes that tell the pool; zeros where that has no name.
        thin_id: its number.
        transaction_id: the pool's transaction when it was made.
        creation_time: the pool's count of snapshots when it was made.
    """

    pool: bytes
    thin_id: int
    transaction_id: int
    creation_time: int


@attrs.frozen
class _Head:
    """What a header says; the sizes are numbers of records, numbers and bytes."""

    file_system: bytes
    device: Device
    base: Device | None
    added: int
    removed: int
    late: int
    names: int

    @property
    def body_size(self) -> int:
        return (self.added + self.removed) * _RECORD.size + self.late * _NUMBER.size + self.names

    @property
    def pages(self) -> int:
        return -(-self.body_size // _PAGE)


class Manifest:
    """The names in one layer, or how they differ from those in the layer's base."""

    def __init__(self, data: bytes | FileBytes) -> None:
        """Look at a manifest in memory or in a file.

        Raises:
            Unfit: it is none, of another version, or damaged.
            OSError: it cannot be read.
        """
        self._head, self._sums, self._body = _parse(data)
        self._data = data
        self._size = self._head.body_size
        self._sheets: dict[int, bytes] = {}
        self._crc = crc32c()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file; it stays open for as long as the value is there.

        Raises:
            Unfit: there is none, it cannot be read, or as for the constructor.
        """
        try:
            return cls(FileBytes.open(path))
        except FileNotFoundError as error:
            raise Unfit("there is none") from error
        except OSError as error:
            raise Unfit(f"it cannot be read: {error.strerror or error}") from error

    @property
    def file_system(self) -> bytes:
        """The UUID of the file system."""
        return self._head.file_system

    @property
    def device(self) -> Device:
        """What it was made of."""
        return self._head.device

    @property
    def base(self) -> Device | None:
        """What the base was made of; None for a whole manifest."""
        return self._head.base

    @property
    def records(self) -> int:
        """How many names it adds and takes away."""
        return self._head.added + self._head.removed

    def added(self, inode: int) -> Sequence[Name]:
        """The names of an inode that are here.

        Raises:
            Unfit: it is damaged.
        """
        return list(self._named(inode, 0, self._head.added))

    def removed(self, inode: int) -> Sequence[Name]:
        """The names of an inode that are in the base and not here; raises as `added`."""
        return list(self._named(inode, self._head.added, self._head.added + self._head.removed))

    def all_added(self) -> Iterator[tuple[int, Name]]:
        """Every name that is here, by inode; raises as `added`."""
        for index in range(self._head.added):
            yield self._at(index)

    def inodes(self) -> Iterator[int]:
        """The inodes that it has names of, here or in the base, with repetitions; raises as `added`."""
        for index in range(self._head.added + self._head.removed):
            yield self._inode(index)

    def late(self) -> Collection[int]:
        """The inodes that were changed just before the layer was complete; raises as `added`."""
        start = self.records * _RECORD.size
        data = self._part(start, self._head.late * _NUMBER.size)
        return [number for (number,) in _NUMBER.iter_unpack(data)]

    def _named(self, inode: int, start: int, end: int) -> Iterator[Name]:
        index = bisect_left(range(start, end), inode, key=self._inode) + start
        while index < end:
            number, name = self._at(index)
            if number != inode:
                return
            yield name
            index += 1

    def _inode(self, index: int) -> int:
        sheet, within = divmod(index * _RECORD.size, _SHEET)  # a record lies in one sheet
        number: int = _NUMBER.unpack_from(self._sheets.get(sheet) or self._sheet(sheet), within)[0]
        return number

    def _at(self, index: int) -> tuple[int, Name]:
        inode, generation, directory, offset = _RECORD.unpack(self._part(index * _RECORD.size, _RECORD.size))
        start = self.records * _RECORD.size + self._head.late * _NUMBER.size + offset
        (length,) = self._part(start, 1)
        return inode, Name(directory, self._part(start + 1, length), generation)

    def _part(self, start: int, length: int) -> bytes:
        """Bytes of the body, from pages whose checksums agree."""
        if start + length > self._size:
            raise Unfit("it is damaged: a name lies outside")
        sheet, within = divmod(start, _SHEET)
        found = (self._sheets.get(sheet) or self._sheet(sheet))[within : within + length]
        while len(found) < length:
            sheet += 1
            found += self._sheet(sheet)[: length - len(found)]
        return found

    def _sheet(self, number: int) -> bytes:
        """Some pages of the body, all of them checked; the last ones that were read are kept."""
        found = self._sheets.get(number)
        if found is None:
            start = number * _SHEET
            try:
                found = self._data[self._body + start : self._body + min(start + _SHEET, self._size)]
            except OSError as error:
                raise Unfit(f"it cannot be read: {error.strerror or error}") from error
            for at in range(0, len(found), _PAGE):
                page = (start + at) // _PAGE
                if _CHECKSUM.unpack_from(self._sums, page * _CHECKSUM.size)[0] != self._crc(found[at : at + _PAGE], 0):
                    raise Unfit(f"it is damaged: wrong checksum of page {page}")
            if len(self._sheets) >= _KEPT_SHEETS:
                del self._sheets[next(iter(self._sheets))]
            self._sheets[number] = found
        return found


def _parse(data: bytes | FileBytes) -> tuple[_Head, bytes, int]:
    size = _HEADER.size + _CHECKSUM.size
    if len(data) < size:
        raise Unfit("it is cut short")
    crc = crc32c()
    header = data[:size]
    (
        magic, version, file_system, pool, thin_id, transaction, created, base_pool, base_id, base_transaction,
        base_created, added, removed, late, names, sums_checksum,
    ) = _HEADER.unpack_from(header)  # fmt: skip
    if magic != _MAGIC or version != _VERSION:
        raise Unfit("it is no manifest, or of another version")
    if _CHECKSUM.unpack_from(header, _HEADER.size)[0] != crc(header[: _HEADER.size], 0):
        raise Unfit("it is damaged: wrong checksum of the header")
    base = Device(base_pool, base_id, base_transaction, base_created) if base_id else None
    head = _Head(file_system, Device(pool, thin_id, transaction, created), base, added, removed, late, names)
    body = size + head.pages * _CHECKSUM.size
    if len(data) != body + head.body_size:
        raise Unfit("it is cut short")
    sums = data[size:body]
    if crc(sums, 0) != sums_checksum:
        raise Unfit("it is damaged: wrong checksum of the checksums")
    return head, sums, body


class Builder:
    """A manifest that is being made, in memory: some 20 bytes and the name for each record."""

    def __init__(self) -> None:
        self._added = bytearray()
        self._removed = bytearray()
        self._names = bytearray()
        self.late: list[int] = []

    def add(self, inode: int, name: Name) -> None:
        """Take in a name that is here."""
        self._added += _RECORD.pack(inode, name.generation, name.directory, self._keep(name.name))

    def remove(self, inode: int, name: Name) -> None:
        """Take in a name that is in the base and not here."""
        self._removed += _RECORD.pack(inode, name.generation, name.directory, self._keep(name.name))

    @property
    def records(self) -> int:
        """How many names were taken in."""
        return (len(self._added) + len(self._removed)) // _RECORD.size

    def _keep(self, name: bytes) -> int:
        offset = len(self._names)
        self._names += bytes((len(name),)) + name
        return offset

    def finish(self, file_system: bytes, device: Device, base: Device | None) -> bytes:
        """The manifest of a device of that file system, on that of its base, if it has one."""
        crc = crc32c()
        late = sorted(set(self.late))
        body = b"".join(
            (_sorted(self._added), _sorted(self._removed), struct.pack(f"<{len(late)}I", *late), self._names)
        )
        sums = b"".join(_CHECKSUM.pack(crc(body[at : at + _PAGE], 0)) for at in range(0, len(body), _PAGE))
        counts = (len(self._added) // _RECORD.size, len(self._removed) // _RECORD.size, len(late), len(self._names))
        below = Device(_NO_POOL, 0, 0, 0) if base is None else base
        head = _HEADER.pack(
            _MAGIC, _VERSION, file_system, *attrs.astuple(device), *attrs.astuple(below), *counts, crc(sums, 0)
        )
        return head + _CHECKSUM.pack(crc(head, 0)) + sums + body


def _sorted(records: bytearray) -> bytes:
    """Records in the order of their inodes."""
    order = sorted(inode << 32 | index for index, (inode, _, _, _) in enumerate(_RECORD.iter_unpack(records)))
    return b"".join(records[at : at + 16] for at in ((key & 0xFFFFFFFF) * 16 for key in order))
