"""Which names share an inode, compared between two trees in one pass over both."""

import os
import stat
import struct
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from typing import IO

import attrs

from thinpool.layer.view import Status
from thinpool.model import Change, ChangeKind

_Id = tuple[int, int]
_RECORD = struct.Struct("<cQI")
_KINDS: Mapping[bytes, ChangeKind] = {b"A": "A", b"C": "C", b"D": "D"}


@attrs.define(eq=False)
class _Inode:
    """One inode of one tree, as far as its names among the common paths were met.

    Attributes:
        partner: the inode that the first of these names has in the other tree.
        links: how many names it has, in all.
        met: how many were met.
        torn: two of its names have different inodes in the other tree.
    """

    partner: _Id
    links: int
    met: int = 0
    torn: bool = False


@attrs.frozen(eq=False)
class Pair:
    """A path's inodes in both trees."""

    older: _Inode
    newer: _Inode

    @property
    def differs(self) -> bool:
        """True once the path is known to share its inode with other paths in one tree than in the other."""
        return self.older.torn or self.newer.torn

    @property
    def decided(self) -> bool:
        """True when no path that is still to come can change `differs`."""
        older, newer = self.older, self.newer
        return self.differs or (older.met >= older.links and newer.met >= newer.links)


class LinkSets:
    """The inodes with several names among the paths that both trees have.

    The sets of names are the same exactly where the inodes of the two trees correspond one to one, so two numbers an
    inode are enough, and no set of names is kept.
    """

    def __init__(self) -> None:
        self._older: dict[_Id, _Inode] = {}
        self._newer: dict[_Id, _Inode] = {}

    def meet(self, older: Status, newer: Status) -> Pair | None:
        """Take in a path of both trees; None where neither inode has another name."""
        if not (_shared(older) or _shared(newer)):
            return None
        old_id, new_id = (older.st_dev, older.st_ino), (newer.st_dev, newer.st_ino)
        return Pair(_meet(self._older, old_id, older, new_id), _meet(self._newer, new_id, newer, old_id))


class Backlog:
    """Changes in order, held back from the first path on of which it is not yet known whether it changed.

    The first of them are in memory, the others in a temporary file.
    """

    def __init__(self, in_memory: int = 20_000) -> None:
        """Begin empty, with room for so many changes in memory."""
        self._in_memory = in_memory
        self._waiting: deque[tuple[Change, Pair | None]] = deque()
        self._pairs: list[Pair] = []
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._written_to = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, change: Change, pair: Pair | None = None) -> None:
        """Append a change that is certain, or one that is a change if its pair turns out to differ."""
        if self._written_to == self._read_at and len(self._waiting) < self._in_memory:
            self._waiting.append((change, pair))
        else:
            self._spill(change, pair)

    def ready(self, *, at_end: bool = False) -> Iterator[Change]:
        """The changes that need not wait any longer; at the end of both trees, all that are changes."""
        waiting = self._waiting
        while waiting:
            change, pair = waiting[0]
            if pair is not None and not (at_end or pair.decided):
                return
            waiting.popleft()
            if not waiting:
                self._refill()
            if pair is None or pair.differs:
                yield change

    def close(self) -> None:
        """Let the temporary file go."""
        if self._file is not None:
            self._file.close()

    def _spill(self, change: Change, pair: Pair | None) -> None:
        if self._file is None:
            # closed by `close`
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        number = 0
        if pair is not None:
            self._pairs.append(pair)
            number = len(self._pairs)
        path = os.fsencode(change.path)
        self._file.seek(self._written_to)
        self._written_to += self._file.write(_RECORD.pack(change.kind.encode(), number, len(path)) + path)

    def _refill(self) -> None:
        file = self._file
        if file is None:
            return
        file.seek(self._read_at)
        while self._read_at < self._written_to and len(self._waiting) < self._in_memory:
            kind, number, length = _RECORD.unpack(file.read(_RECORD.size))
            change = Change(_KINDS[kind], os.fsdecode(file.read(length)))
            self._waiting.append((change, self._pairs[number - 1] if number else None))
            self._read_at += _RECORD.size + length


def _shared(status: Status) -> bool:
    return status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)


def _meet(table: dict[_Id, _Inode], own: _Id, status: Status, partner: _Id) -> _Inode:
    if not _shared(status):
        return _Inode(partner, 1, 1)
    inode = table.get(own)
    if inode is None:
        inode = table[own] = _Inode(partner, status.st_nlink)
    inode.met += 1
    if inode.partner != partner:
        inode.torn = True
    return inode
