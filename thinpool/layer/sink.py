"""Where an archive goes: compressed, counted and digested on the way, by a thread that keeps up with the reader."""

import hashlib
import lzma
import queue
import threading
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import IO, Literal, Protocol, Self

import attrs
import zstandard

from thinpool.errors import ConfigError

Compression = Literal["none", "gzip", "zstd", "xz"]
_PIECE = 1 << 20
_QUEUED = 4
_GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # zlib's number for a 32 KiB window with a gzip header, which it writes without a time or name
_ZSTD_LEVEL = 3
_XZ_PRESET = 3  # 32 MiB to compress; the default of 6 takes 94


@attrs.frozen
class Written:
    """What was written.

    Attributes:
        diff_id: digest of the uncompressed archive, `sha256:...`.
        digest: digest of what was written.
        size: bytes that were written.
        uncompressed_size: bytes of the archive.
    """

    diff_id: str
    digest: str
    size: int
    uncompressed_size: int


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class Sink:
    """Takes an archive in pieces and writes it out.

    Memory is bounded by a few pieces of 1 MiB and the compressor. Leaving the context by an exception ends the thread
    without finishing what is written.
    """

    def __init__(self, file: IO[bytes], compress: Compression, progress: Callable[[int], None] | None = None) -> None:
        """Start.

        Args:
            file: takes bytes by `write`.
            compress: how.
            progress: called in the caller's thread with the number of uncompressed bytes so far.
        """
        self._file = file
        self._compressor = _compressor(compress)
        self._progress = progress
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._total = 0
        self._written = 0
        self._diff = hashlib.sha256()
        self._digest = self._diff if isinstance(self._compressor, _Plain) else hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        # daemon: a reader that never takes what we write must not keep the interpreter from ending
        self._thread = threading.Thread(target=self._work, name="archive-sink", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Take a piece of the archive.

        Raises:
            OSError: the file refused an earlier piece.
        """
        self._pieces.append(data)
        self._gathered += len(data)
        if self._gathered >= _PIECE:
            self._hand_over()

    def finish(self) -> Written:
        """Write out what is left, and tell what was written."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join()
        self._raise()
        diff_id, digest = self._diff.hexdigest(), self._digest.hexdigest()
        return Written(f"sha256:{diff_id}", f"sha256:{digest}", self._written, self._total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
            except queue.Full:
                continue
            self._thread.join()

    def _hand_over(self) -> None:
        if self._error is not None:
            self._raise()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._total += self._gathered
        self._gathered = 0
        self._queue.put(data)
        if self._progress is not None:
            self._progress(self._total)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Run in the thread; after an error, go on taking pieces, so that whoever puts them is never stuck."""
        while (data := self._queue.get()) is not None:
            if self._error is not None or self._stop.is_set():
                continue
            try:
                self._diff.update(data)
                self._put(self._compressor.compress(data))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that writes
                self._error = error
        if self._error is None and not self._stop.is_set():
            try:
                self._put(self._compressor.flush())
            except BaseException as error:  # noqa: BLE001 - the same
                self._error = error

    def _put(self, data: bytes) -> None:
        if not data:
            return
        if self._digest is not self._diff:
            self._digest.update(data)
        self._written += len(data)
        rest = memoryview(data)
        while rest:
            # an unbuffered file may take less than all, and None of it where it would have to wait
            rest = rest[self._file.write(rest) or 0 :]


def _compressor(compress: Compression) -> _Compressor:
    match compress:
        case "none":
            return _Plain()
        case "gzip":
            return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        case "zstd":
            return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj()
        case "xz":
            return lzma.LZMACompressor(preset=_XZ_PRESET)
        case _:
            raise ConfigError(f"compression {compress!r}: accepted are none, gzip, zstd and xz")
