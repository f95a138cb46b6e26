"""Whether one path is the same in two trees."""

import stat
from collections.abc import Iterator

from thinpool.errors import TreeError
from thinpool.layer.text import shown
from thinpool.layer.view import Content, Status, View

_CHUNK = 1 << 18


def attributes_differ(older: Status, newer: Status) -> bool:
    """Compare what stat(2) tells: type and permissions, owner, device number, size, time of modification.

    Of a directory, neither size nor time count: they follow from its entries.
    """
    mode = newer.st_mode
    if older.st_mode != mode or older.st_uid != newer.st_uid or older.st_gid != newer.st_gid:
        return True
    if stat.S_ISDIR(mode):
        return False
    if older.st_mtime_ns != newer.st_mtime_ns:
        return True
    if stat.S_ISREG(mode):
        return older.st_size != newer.st_size
    return (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and older.st_rdev != newer.st_rdev


def contents_differ(older: View, newer: View, name: str, status: Status) -> bool:
    """Compare what stat(2) does not tell of two entries that otherwise agree: attributes, link target, content.

    Args:
        older: the older tree, at the entry's directory.
        newer: the newer tree, at the entry's directory.
        name: the entry's name in both; `.` for the directories themselves.
        status: the status of the newer entry.
    """
    if older.attributes(name) != newer.attributes(name):
        return True
    if stat.S_ISLNK(status.st_mode):
        return older.target(name) != newer.target(name)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    size = status.st_size
    ours = older.content(name, size)
    try:
        theirs = newer.content(name, size)
        try:
            return _data_differs(ours, theirs, size, name)
        finally:
            theirs.close()
    finally:
        ours.close()


def _data_differs(older: Content, newer: Content, size: int, name: str) -> bool:
    """Compare two files of one size."""
    for position, length in _stored_apart(older, newer, size):
        ours, theirs = older.read(position, length), newer.read(position, length)
        if not len(ours) == len(theirs) == length:
            raise TreeError(f"{shown(name)} changed while it was read")
        if ours != theirs:
            return True
    return False


def _stored_apart(older: Content, newer: Content, size: int) -> Iterator[tuple[int, int]]:
    """What must be read: not a hole in both files, nor one storage of both. Offsets and lengths of a chunk at most."""
    if size <= _CHUNK and older.stored_at(0) is None:
        yield 0, size
        return
    position = 0
    while position < size:
        if size > _CHUNK:
            position = min(older.next_data(position), newer.next_data(position))
        limit = min(position + _CHUNK, size)
        start = position
        while position < limit:
            is_same, length = _same_storage(older, newer, position, limit - position)
            if not is_same:
                position = min(position + length, limit)
            elif position > start:
                break
            else:
                start = position = position + length
        if position > start:
            yield start, position - start


def _same_storage(older: Content, newer: Content, position: int, most: int) -> tuple[bool, int]:
    """Whether both files have a byte in one place, and for how long that is so."""
    ours = older.stored_at(position)
    theirs = None if ours is None else newer.stored_at(position)
    if ours is None or theirs is None:
        return False, most
    return ours[0] == theirs[0], min(ours[1], theirs[1])
