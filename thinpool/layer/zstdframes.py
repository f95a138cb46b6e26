"""Zstandard frames, undone block by block (RFC 8878, section 3.1).

The decompressor's own interfaces bound either what one call gives or what is known about the end of a frame, not both:
one call may turn a few kilobytes into gigabytes, or a cut file into a short one. A block gives 128 KiB at most, so we
follow the frames' structure and hand over one block at a time.
"""

from collections.abc import Iterator

import attrs
import zstandard

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.units import human_size

MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
_BLOCK_HEADER = 3
_RLE = 1
_RESERVED = 3
_LARGEST_BLOCK = 1 << 17
_CHECKSUM = 4


def is_skippable(data: bytes) -> bool:
    """True where a skippable frame begins."""
    return len(data) >= 4 and data[1:4] == _SKIPPABLE and data[0] & 0xF0 == 0x50


@attrs.define(eq=False)
class _Input:
    """What is still to be decompressed."""

    chunks: Iterator[bytes]
    data: bytes = b""
    position: int = 0

    def take(self, count: int) -> bytes:
        """The next bytes, exactly so many."""
        while len(self.data) - self.position < count:
            more = next(self.chunks, b"")
            if not more:
                raise ArchiveError("the archive is cut short: its zstd data does not end")
            self.data = self.data[self.position :] + more
            self.position = 0
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def at_end(self) -> bool:
        if self.position < len(self.data):
            return False
        self.data, self.position = next(self.chunks, b""), 0
        return not self.data


def decompress_zstd(chunks: Iterator[bytes], window: int) -> Iterator[bytes]:
    """All frames of a zstd file, in pieces of at most 128 KiB.

    Args:
        chunks: the compressed bytes.
        window: bytes that the window of a frame may have, at most.

    Raises:
        ArchiveError: cut short, damaged, or something else after a frame.
        UnsafeArchive: a frame needs a larger window.
    """
    source = _Input(chunks)
    while not source.at_end():
        magic = source.take(4)
        if magic == MAGIC:
            yield from _frame(source, window)
        elif is_skippable(magic):
            left = int.from_bytes(source.take(4), "little")
            while left:
                left -= len(source.take(min(left, _LARGEST_BLOCK)))
        else:
            raise ArchiveError("garbage after the end of the zstd data")


def _frame(source: _Input, window: int) -> Iterator[bytes]:
    header, checksum = _header(source, window)
    frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(write_size=_LARGEST_BLOCK)
    data = MAGIC + header
    last = False
    while not last:
        head = source.take(_BLOCK_HEADER)
        value = int.from_bytes(head, "little")
        last = bool(value & 1)
        kind, size = value >> 1 & 3, value >> 3
        if kind == _RESERVED or size > _LARGEST_BLOCK:
            raise ArchiveError("damaged zstd data: no such block")
        data += head + source.take(1 if kind == _RLE else size)
        if last and checksum:
            data += source.take(_CHECKSUM)
        try:
            piece = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise ArchiveError(f"damaged zstd data: {error}") from error
        data = b""
        if piece:
            yield piece
    if not frame.eof:
        raise ArchiveError("damaged zstd data: a frame does not end where it says")


def _header(source: _Input, most: int) -> tuple[bytes, bool]:
    """The rest of a frame's header, and whether a checksum ends the frame."""
    header = source.take(1)
    descriptor = header[0]
    size_flag, single, dictionary = descriptor >> 6, bool(descriptor & 0x20), descriptor & 3
    if dictionary:
        raise ArchiveError("the archive's zstd data needs a dictionary")
    size_bytes = (1 if single else 0, 2, 4, 8)[size_flag]
    if not single:
        header += source.take(1)
        exponent, mantissa = header[1] >> 3, header[1] & 7
        window = (1 << (10 + exponent)) * (8 + mantissa) // 8
    field = source.take(size_bytes)
    if single:
        window = int.from_bytes(field, "little") + (256 if size_bytes == 2 else 0)
    if window > most:
        raise UnsafeArchive(f"the archive's zstd data needs a window of {human_size(window)}, limit {human_size(most)}")
    return header + field, bool(descriptor & 4)
