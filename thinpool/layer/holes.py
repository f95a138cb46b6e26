"""Sparse members of an archive: large files of which much is zero.

The OCI image specification advises against sparse members, as not every tar knows them; but a file such as
/var/log/lastlog can be hundreds of gigabytes of nothing. So a file becomes one only when at least 16 MiB are saved, and
in the format that GNU tar, bsdtar, Python's tarfile and Go's archive/tar (Docker, containerd, podman, umoci) all read:
GNU's in pax headers, version 1.0. What is zero is told by the content, not by what the file system stores, so that the
same content gives the same archive wherever it is stored.
"""

import os
from collections.abc import Sequence

from thinpool.errors import TreeError
from thinpool.layer.tarformat import padding, record

WORTHWHILE = 16 << 20
"""Bytes that must be saved."""

_GRAIN = 1 << 20
_ZEROS = bytes(_GRAIN)
_NAME = b"GNUSparseFile.0/"
_LONGEST_STAND_IN = 100


def data_extents(fd: int, size: int) -> Sequence[tuple[int, int]] | None:
    """Offsets and lengths of what is not zero, in whole MiB but at the end; None where too little would be saved."""
    extents: list[tuple[int, int]] = []
    start = end = position = saved = 0
    while position < size:
        data_at = _next_data(fd, position, size)
        if data_at > position:
            saved += data_at - position
            position = data_at
            continue
        length = min(_GRAIN, size - position)
        data = os.pread(fd, length, position)
        if len(data) < length:
            raise TreeError("a file became shorter while it was exported")
        if data == _ZEROS[:length]:
            saved += length
        elif end == position and end > start:
            end += length
        else:
            if end > start:
                extents.append((start, end - start))
            start, end = position, position + length
        position += length
    if end > start:
        extents.append((start, end - start))
    return extents if saved >= WORTHWHILE else None


def format_map(extents: Sequence[tuple[int, int]], size: int) -> bytes:
    """The map as it stands before the data; like GNU tar's, it ends where the file of so many bytes ends."""
    if not extents or sum(extents[-1]) < size:
        extents = [*extents, (size, 0)]
    lines = [len(extents), *(number for extent in extents for number in extent)]
    text = b"".join(b"%d\n" % line for line in lines)
    return text + padding(len(text))


def records(name: bytes, size: int) -> Sequence[bytes]:
    """The records that make a member a sparse one."""
    return (
        record(b"GNU.sparse.major", b"1"),
        record(b"GNU.sparse.minor", b"0"),
        record(b"GNU.sparse.name", name),
        record(b"GNU.sparse.realsize", b"%d" % size),
    )


def stand_in(name: bytes) -> bytes:
    """The member's name for readers that do not know sparse members, who get its map and data as a file."""
    return _NAME + name.rpartition(b"/")[2][: _LONGEST_STAND_IN - len(_NAME)]


def _next_data(fd: int, position: int, size: int) -> int:
    """Where to go on: whole MiB of hole can be passed over."""
    try:
        data = os.lseek(fd, position, os.SEEK_DATA)
    except OSError:  # ENXIO: only a hole is left; EINVAL: the file system knows no holes
        try:
            return size if os.lseek(fd, position, os.SEEK_HOLE) == position else position
        except OSError:
            return position
    return min(data - data % _GRAIN, size)
