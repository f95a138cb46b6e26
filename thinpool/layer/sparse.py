"""The maps of sparse members (GNU tar's manual, "Storing Sparse Files")."""

from array import array
from collections.abc import Callable, Iterator

import attrs

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.extended import Extended
from thinpool.layer.tarformat import BLOCK, decimal, number
from thinpool.units import human_size

_IN_HEADER = 4
_IN_EXTENSION = 21
_PAIR = 24
_FIRST_AT = 386
_MORE_AT = 482
_REAL_SIZE = slice(483, 495)
_EXTENSION_MORE_AT = 504
_LONGEST_LINE = 21


@attrs.frozen(eq=False)
class Map:
    """Where the data of a sparse file is.

    Attributes:
        size: bytes of the file.
        numbers: offsets and lengths, in turn.
    """

    size: int
    numbers: "array[int]"

    def extents(self) -> Iterator[tuple[int, int]]:
        """The offset and length of each part that has data."""
        numbers = iter(self.numbers)
        return zip(numbers, numbers, strict=True)

    def check(self, stored: int) -> None:
        """Refuse a map whose parts overlap, go back or over the end, or are not what is stored."""
        end = total = 0
        for offset, length in self.extents():
            if offset < end or offset + length > self.size:
                raise ArchiveError("malformed sparse map: its parts overlap or go beyond the file's end")
            end = offset + length
            total += length
        if total != stored:
            raise ArchiveError(f"malformed sparse map: it has {total} bytes of data, the member {stored}")


def old_gnu(header: bytes, block: Callable[[], bytes], limit: int) -> Map:
    """The map in a GNU header of type `S` and the blocks after it."""
    numbers = array("Q")
    more = _pairs(header, _FIRST_AT, _IN_HEADER, numbers) and header[_MORE_AT]
    while more:
        extension = block()
        _check_size(numbers, limit)
        _pairs(extension, 0, _IN_EXTENSION, numbers)
        more = extension[_EXTENSION_MORE_AT]
    return Map(number(header[_REAL_SIZE], "size"), numbers)


def pax_0(extended: Extended) -> Map:
    """The map in an extended header: formats 0.0 and 0.1."""
    if extended.pairs:
        numbers = array("Q", extended.pairs)
    else:
        numbers = array("Q")
        for text in extended.text(b"GNU.sparse.map", b"").split(b","):
            if text:
                numbers.append(decimal(text, "sparse map"))
    if len(numbers) % 2:
        raise ArchiveError("malformed sparse map: an offset without a length")
    return Map(extended.number(b"GNU.sparse.size", extended.number(b"GNU.sparse.realsize", 0)), numbers)


def pax_1_0(extended: Extended, take: Callable[[int], bytes], limit: int) -> Map:
    """The map before the data: format 1.0, decimal numbers in lines, filled up to a block."""
    rest = b""
    count: int | None = None
    numbers = array("Q")
    while count is None or len(numbers) < count:
        _check_size(numbers, limit)
        *lines, rest = (rest + take(BLOCK)).split(b"\n")
        if len(rest) > _LONGEST_LINE and rest.strip(b"\0"):
            raise ArchiveError("malformed sparse map: a line is too long")
        for line in lines:
            if count is None:
                count = 2 * decimal(line, "sparse map")
            elif len(numbers) < count:
                numbers.append(decimal(line, "sparse map"))
    return Map(extended.number(b"GNU.sparse.realsize", extended.number(b"GNU.sparse.size", 0)), numbers)


def _pairs(block: bytes, position: int, most: int, numbers: "array[int]") -> bool:
    """Read pairs until an empty one; True when there may be more."""
    for start in range(position, position + most * _PAIR, _PAIR):
        if block[start] == 0 or block[start + 12] == 0:
            return False
        numbers.append(number(block[start : start + 12], "sparse map"))
        numbers.append(number(block[start + 12 : start + _PAIR], "sparse map"))
    return True


def _check_size(numbers: "array[int]", limit: int) -> None:
    if 8 * len(numbers) > limit:
        raise UnsafeArchive(f"a sparse map of more than {human_size(limit)}: beyond the limit")
