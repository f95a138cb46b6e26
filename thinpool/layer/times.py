"""Times of directories, which are set when nothing changes in them any more."""

import struct
import tempfile
from collections.abc import Iterator

from thinpool.layer.tarformat import NANOSECONDS

_IN_MEMORY = 4 << 20
_RECORD = struct.Struct("<QqII")


class DirectoryTimes:
    """Paths, inode numbers and times, in the order in which they came; many of them go to a temporary file."""

    def __init__(self) -> None:
        # closed by `close`
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115

    def add(self, path: bytes, inode: int, time_ns: int) -> None:
        """Note the time that a directory is to have."""
        seconds, fraction = divmod(time_ns, NANOSECONDS)
        self._file.write(_RECORD.pack(inode, seconds, fraction, len(path)) + path)

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        self._file.seek(0)
        while head := self._file.read(_RECORD.size):
            inode, seconds, fraction, length = _RECORD.unpack(head)
            yield self._file.read(length), inode, seconds * NANOSECONDS + fraction

    def close(self) -> None:
        """Forget them."""
        self._file.close()
