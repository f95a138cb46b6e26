"""What an archive is compressed with, told by its first bytes, and undone in bounded steps."""

import hashlib
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import IO

import attrs

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.limits import Limits
from thinpool.layer.zstdframes import MAGIC as ZSTD_MAGIC
from thinpool.layer.zstdframes import decompress_zstd, is_skippable
from thinpool.units import human_size

_CHUNK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_XZ_MAGIC = b"\xfd7zXZ\0"
_LONGEST_MAGIC = 6
_GZIP_WINDOW = 31
_OTHERS = {b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4", b"7z\xbc\xaf": "7-Zip"}


@attrs.define(eq=False)
class Source:
    """An archive as it comes in: counted, digested, limited.

    Attributes:
        file: gives bytes by `read`; need not be seekable.
        limits: what it may ask for.
        progress: called with the number of bytes taken in so far.
        size: bytes taken in so far.
    """

    file: IO[bytes]
    limits: Limits
    progress: Callable[[int], None] | None = None
    size: int = 0
    _digest: "hashlib._Hash" = attrs.field(factory=hashlib.sha256, init=False)
    _diff: "hashlib._Hash" = attrs.field(factory=hashlib.sha256, init=False)
    _plain: bool = attrs.field(default=False, init=False)

    def chunks(self) -> Iterator[bytes]:
        """The uncompressed archive, in pieces of at most about 1 MiB.

        Raises:
            ArchiveError: it is empty, cut short or damaged, or cannot be read.
            UnsafeArchive: it expands, or needs memory, beyond the limits.
        """
        raw = self._raw()
        first = b""
        for piece in raw:
            first += piece
            if len(first) >= _LONGEST_MAGIC:
                break
        if not first:
            raise ArchiveError("the archive is empty")
        decompressed = self._decompress(first, raw)
        total = 0
        for piece in decompressed:
            total += len(piece)
            if total > self.limits.ratio_from and total > self.limits.ratio * self.size:
                grown = f"{human_size(self.size)} of archive expand to more than {human_size(total)}"
                raise UnsafeArchive(f"{grown}: beyond the limit of {self.limits.ratio} to 1")
            if not self._plain:
                self._diff.update(piece)
            yield piece

    @property
    def digest(self) -> str:
        """Digest of what was taken in, `sha256:...`."""
        return f"sha256:{self._digest.hexdigest()}"

    @property
    def diff_id(self) -> str:
        """Digest of the uncompressed archive, `sha256:...`."""
        return self.digest if self._plain else f"sha256:{self._diff.hexdigest()}"

    def _raw(self) -> Generator[bytes, None, None]:
        while True:
            try:
                piece = self.file.read(_CHUNK)
            except OSError as error:
                raise ArchiveError(f"the archive cannot be read: {error.strerror}") from error
            if not piece:
                return
            self.size += len(piece)
            self._digest.update(piece)
            if self.progress is not None:
                self.progress(self.size)
            yield piece

    def _decompress(self, first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
        if first.startswith(_GZIP_MAGIC):
            return _gunzip(first, raw)
        if first.startswith(ZSTD_MAGIC) or is_skippable(first):
            return decompress_zstd(_joined(first, raw), self.limits.window_size)
        if first.startswith(_XZ_MAGIC):
            return _unxz(first, raw, self.limits.window_size)
        for magic, name in _OTHERS.items():
            if first.startswith(magic):
                raise ArchiveError(f"the archive is compressed with {name}; accepted are gzip, zstd, xz and none")
        self._plain = True
        return _joined(first, raw)


def _joined(first: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from raw


def _gunzip(data: bytes, raw: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952); zeros may follow them."""
    while data:
        if not data.startswith(_GZIP_MAGIC):
            if len(data) < 2 and (more := next(raw, b"")):
                data += more
                continue
            _only_zeros("gzip", data, raw)
            return
        member = zlib.decompressobj(wbits=_GZIP_WINDOW)
        while not member.eof:
            if not data and not (data := next(raw, b"")):
                raise ArchiveError("the archive is cut short: its gzip data does not end")
            try:
                piece = member.decompress(data, _CHUNK)
            except zlib.error as error:
                raise ArchiveError(f"damaged gzip data: {error}") from error
            data = member.unconsumed_tail
            if piece:
                yield piece
        data = member.unused_data or next(raw, b"")


def _unxz(data: bytes, raw: Iterator[bytes], memory: int) -> Iterator[bytes]:
    """All streams of an xz file (xz-file-format.txt), and the zeros between and after them."""
    while True:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)
        while not stream.eof:
            if stream.needs_input and not data and not (data := next(raw, b"")):
                raise ArchiveError("the archive is cut short: its xz data does not end")
            try:
                piece = stream.decompress(data, _CHUNK)
            except lzma.LZMAError as error:
                if "Memory usage limit" in str(error):
                    raise UnsafeArchive(f"the archive's xz data needs more than {human_size(memory)}") from error
                raise ArchiveError(f"damaged xz data: {error}") from error
            data = b""
            if piece:
                yield piece
        data = stream.unused_data
        while not (data := data.lstrip(b"\0")):
            if not (data := next(raw, b"")):
                return
        while len(data) < len(_XZ_MAGIC) and (more := next(raw, b"")):
            data += more
        if not data.startswith(_XZ_MAGIC):
            raise ArchiveError("garbage after the end of the xz data")


def _only_zeros(name: str, data: bytes, raw: Iterator[bytes]) -> None:
    while data:
        if data.strip(b"\0"):
            raise ArchiveError(f"garbage after the end of the {name} data")
        data = next(raw, b"")
