"""Where archives go: digests, compression, errors of the file, and the end of the thread in every case."""

import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import threading
from collections.abc import Iterator
from typing import Literal, get_args

import pytest
import zstandard

from thinpool.errors import ConfigError
from thinpool.layer.sink import Compression, Sink

DATA = random.Random(1).randbytes(3_000_000) + bytes(3_000_000)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def pieces() -> Iterator[bytes]:
    for start in range(0, len(DATA), 70_000):
        yield DATA[start : start + 70_000]


def sent(compress: Compression, told: list[int] | None = None) -> bytes:
    file = io.BytesIO()
    with Sink(file, compress, None if told is None else told.append) as sink:
        for piece in pieces():
            sink.write(piece)
        written = sink.finish()
    assert written.uncompressed_size == len(DATA)
    assert written.size == len(file.getvalue())
    assert written.diff_id == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert written.digest == f"sha256:{hashlib.sha256(file.getvalue()).hexdigest()}"
    return file.getvalue()


@pytest.mark.parametrize("compress", get_args(Compression))
def test_what_is_written_can_be_undone_and_is_always_the_same(compress: Compression) -> None:
    data = sent(compress)
    match compress:
        case "none":
            undone = data
        case "gzip":
            undone = gzip.decompress(data)
        case "zstd":
            undone = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        case "xz":
            undone = lzma.decompress(data)
    assert undone == DATA
    assert sent(compress) == data


def test_progress_counts_uncompressed_bytes() -> None:
    told: list[int] = []
    sent("gzip", told)
    assert told == sorted(told)
    assert told[-1] == len(DATA)


class Refusing(io.RawIOBase):
    """Takes some bytes, then fails."""

    def __init__(self, takes: int) -> None:
        super().__init__()
        self._left = takes

    def write(self, data: object) -> int:
        assert isinstance(data, memoryview)
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("takes", [0, 1 << 20, 5_500_000])
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_an_error_of_the_file_reaches_who_writes(takes: int, compress: Literal["none", "zstd"]) -> None:
    with pytest.raises(OSError, match="No space left"), Sink(Refusing(takes // 2), compress) as sink:  # type: ignore[arg-type] # only write is used
        for piece in pieces():
            sink.write(piece)
        sink.finish()


def test_a_pipe_without_a_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError), open(writer, "wb", buffering=0) as file, Sink(file, "none") as sink:
        for piece in pieces():
            sink.write(piece)
        sink.finish()


def test_a_file_that_takes_less_than_all() -> None:
    class Slow(io.RawIOBase):
        taken = b""

        def write(self, data: object) -> int | None:
            assert isinstance(data, memoryview)
            if len(self.taken) % 3 == 1:
                self.taken += bytes(data[:1])
                return 1
            self.taken += bytes(data[:99_999])
            return min(len(data), 99_999)

    slow = Slow()
    with Sink(slow, "none") as sink:  # type: ignore[arg-type] # only write is used
        for piece in pieces():
            sink.write(piece)
        sink.finish()
    assert slow.taken == DATA


def test_an_export_that_is_given_up_ends_the_thread() -> None:
    with pytest.raises(KeyboardInterrupt), Sink(io.BytesIO(), "gzip") as sink:
        for number, piece in enumerate(pieces()):
            sink.write(piece)
            if number == 50:
                raise KeyboardInterrupt


def test_an_unknown_compression() -> None:
    with pytest.raises(ConfigError, match="'lz4': accepted are none, gzip, zstd and xz"):
        Sink(io.BytesIO(), "lz4")  # type: ignore[arg-type] # on purpose
