"""Compressed archives: told by their first bytes, undone piece by piece, refused when damaged or beyond limits."""

import gzip
import hashlib
import io
import lzma
import random
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.compression import Source
from thinpool.layer.limits import Limits

Compress = Callable[[bytes], bytes]


def _streamed(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


COMPRESSORS: dict[str, Compress] = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "zstd streamed": _streamed,
    "xz": lzma.compress,
}
EACH = pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS.keys())
TEXT = b"".join(b"line %d of some text\n" % number for number in range(20_000))


class Pipe(io.RawIOBase):
    """Gives little at a time and cannot seek."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__()
        self._data = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._most) if size >= 0 else self._most)


def undone(data: bytes, limits: Limits | None = None, most: int = 1 << 20) -> bytes:
    source = Source(Pipe(data, most), limits or Limits())  # type: ignore[arg-type] # only read is used
    pieces = list(source.chunks())
    assert all(len(piece) <= 1 << 20 for piece in pieces)
    assert source.size == len(data)
    assert source.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert source.diff_id == f"sha256:{hashlib.sha256(b''.join(pieces)).hexdigest()}"
    return b"".join(pieces)


@EACH
@pytest.mark.parametrize("most", [1, 3, 1000, 1 << 20])
def test_what_was_compressed_comes_back(compress: Compress, most: int) -> None:
    assert undone(compress(TEXT[:70_000]), most=most) == TEXT[:70_000]


@EACH
def test_what_does_not_compress(compress: Compress) -> None:
    data = random.Random(1).randbytes(1_000_000)
    assert undone(compress(data)) == data


@EACH
def test_several_one_after_the_other(compress: Compress) -> None:
    assert undone(compress(TEXT) + compress(b"") + compress(TEXT), most=777) == TEXT + TEXT


def test_plain_bytes_pass() -> None:
    assert undone(b"plain") == b"plain"


def test_frames_that_zstd_skips() -> None:
    skipped = b"\x5a\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    frame = COMPRESSORS["zstd"](TEXT)
    assert undone(skipped + frame + skipped + frame) == TEXT + TEXT


def test_zeros_after_gzip_and_xz_are_padding() -> None:
    assert undone(gzip.compress(TEXT) + bytes(1000), most=100) == TEXT
    assert undone(lzma.compress(TEXT) + bytes(1000) + lzma.compress(TEXT) + bytes(8)) == TEXT + TEXT


@EACH
@given(data=st.data())
def test_cut_short(compress: Compress, data: st.DataObject) -> None:
    whole = compress(TEXT[:5000])
    cut = data.draw(st.integers(6, len(whole) - 1))
    with pytest.raises(ArchiveError, match="cut short"):
        undone(whole[:cut])


@EACH
@given(data=st.data())
def test_damage_is_noticed_or_harmless(compress: Compress, data: st.DataObject) -> None:
    whole = bytearray(compress(TEXT[:5000]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    source = Source(io.BytesIO(bytes(whole)), Limits())
    try:
        for _ in source.chunks():
            pass
    except ArchiveError:
        pass


@pytest.mark.parametrize("name", ["gzip", "zstd", "xz"])
def test_garbage_after_the_end(name: str) -> None:
    for garbage in (b"x", b"garbage that is longer than any magic", bytes(100) + b"x"):
        with pytest.raises(ArchiveError, match=r"garbage|cut short"):
            undone(COMPRESSORS[name](TEXT) + garbage)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the archive is empty"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"PK\x03\x04....", "compressed with zip"),
        (b"\x1f\x8b\x08garbage in the header", "damaged gzip|cut short"),
        (b"\xfd7zXZ\0garbage in the header", "damaged xz"),
        (b"\x28\xb5\x2f\xfd\x03....", "needs a dictionary"),
        (b"\x28\xb5\x2f\xfd\x00\x00\x07\x00\x00", "no such block"),
    ],
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        undone(data)


def test_a_source_that_fails() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, f"Input/output error after {size}")

    with pytest.raises(ArchiveError, match="cannot be read: Input/output error"):
        list(Source(Broken(), Limits()).chunks())  # type: ignore[arg-type] # only read is used


def bomb(compressor: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Some hundred MiB of zeros, compressed as they are asked for."""
    zeros = bytes(1 << 24)
    for _ in range(20):
        yield compressor(zeros)
    raise AssertionError("not stopped")


@pytest.mark.parametrize(
    "compressor",
    [
        zlib.compressobj(9, zlib.DEFLATED, 31).compress,
        zstandard.ZstdCompressor().compressobj().compress,
        lzma.LZMACompressor(preset=0).compress,
    ],
    ids=["gzip", "zstd", "xz"],
)
def test_a_bomb_is_beyond_the_ratio_before_it_costs_much(compressor: Compress) -> None:
    source = bomb(compressor)

    class Lazy(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert size
            return next(piece for piece in source if piece)

    limits = Limits(ratio=100, ratio_from=50 << 20)
    sizes: list[int] = []
    with pytest.raises(UnsafeArchive, match="beyond the limit of 100 to 1"):
        sizes.extend(len(piece) for piece in Source(Lazy(), limits).chunks())  # type: ignore[arg-type] # only read
    assert 40 << 20 < sum(sizes) <= 50 << 20


def test_one_call_of_zstd_never_gives_much() -> None:
    """A frame of run-length blocks is the worst there is: 4 bytes become 128 KiB."""
    block = (1 << 20 | 1 << 1).to_bytes(3, "little") + b"\0"
    frame = b"\x28\xb5\x2f\xfd\x00\x38" + block * 2000 + (1 << 20 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    source = Source(io.BytesIO(frame), Limits())
    sizes = [len(piece) for piece in source.chunks()]
    assert max(sizes) <= 1 << 17
    assert sum(sizes) == 2001 << 17


def test_memory_that_decompressors_ask_for() -> None:
    large = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    data = zstandard.ZstdCompressor(compression_params=large).compressobj().compress(TEXT)
    frame = zstandard.ZstdCompressor(compression_params=large).compressobj()
    data = frame.compress(TEXT) + frame.flush()
    with pytest.raises(UnsafeArchive, match=r"window of 128 MiB, limit 68\.0 MiB"):
        undone(data)
    assert undone(data, Limits(window_size=1 << 27)) == TEXT
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}]
    compressed = lzma.compress(TEXT, filters=filters)
    with pytest.raises(UnsafeArchive, match=r"xz data needs more than 68\.0 MiB"):
        undone(compressed)


def test_xz_of_the_highest_preset_is_within_the_limit() -> None:
    assert undone(lzma.compress(TEXT, preset=9)) == TEXT


def test_progress_is_told_in_bytes_of_the_archive() -> None:
    told: list[int] = []
    data = gzip.compress(TEXT)
    for _ in Source(Pipe(data, 1000), Limits(), told.append).chunks():  # type: ignore[arg-type] # only read is used
        pass
    assert told == [*range(1000, len(data), 1000), len(data)]
