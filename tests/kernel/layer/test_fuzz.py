"""The import on random archives: built of hostile parts, or valid ones with bytes changed; a canary lies outside."""

import contextlib
import gzip
import io
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.layer.trees import LONG, examples, opened, survey
from tests.unit.layer.tars import BLOCK, archive, base256, entry, gnu_long, pax, sample
from thinpool.errors import ThinPoolError
from thinpool.layer.limits import Limits
from thinpool.layer.unpack import unpack_layer

pytestmark = pytest.mark.kernel

LIMITS = Limits(size=64 << 20)
ROUNDS = 10 if LONG else 1
"""Of a long run: Hypothesis keeps all examples of one in memory."""
PARTS = (
    b"a", b"b", b"d", b"out", b"up", b"self", b"in", b"..", b".", b"", b".wh.a", b".wh.d", b".wh.out", b".wh..wh..opq",
    b".wh..", b".wh...", b".wh.", b".wh..wh.plnk", b"file", b"folder", b"\xff", b"n" * 300,
)  # fmt: skip

parts = st.sampled_from(PARTS)
names = st.builds(
    lambda lead, middle, tail: lead + b"/".join(middle) + tail,
    st.sampled_from((b"", b"/", b"./", b"//", b"../", b"/..")),
    st.lists(parts, min_size=1, max_size=4),
    st.sampled_from((b"", b"", b"/", b"/.", b"/..")),
)
flags = st.sampled_from(
    (b"0", b"0", b"1", b"1", b"2", b"2", b"3", b"4", b"5", b"5", b"6", b"7", b"\0", b"S", b"D", b"Z")
)
numbers = st.one_of(
    st.sampled_from((0, 1, 0o7777)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: base256(value, 12)),
    st.binary(max_size=8),
)


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """One entry, with or without extended headers."""
    name, link = draw(names), draw(names)
    data = draw(st.binary(max_size=20))
    before = b""
    match draw(st.integers(0, 5)):
        case 0:
            before = gnu_long(b"L", name) + gnu_long(b"K", link)
        case 1:
            before = pax({b"path": name, b"linkpath": link}, draw(st.sampled_from((b"x", b"g"))))
        case 2:
            before = pax(draw(st.binary(max_size=40)))
        case 3:
            key = draw(st.sampled_from((b"size", b"mtime", b"uid", b"SCHILY.xattr.trusted.overlay.redirect",
                                        b"SCHILY.xattr.user.x", b"SCHILY.acl.access", b"GNU.sparse.map",
                                        b"GNU.sparse.major", b"GNU.sparse.name", b"GNU.sparse.realsize")))  # fmt: skip
            before = pax({key: draw(st.one_of(names, st.binary(max_size=20), st.integers().map(lambda n: b"%d" % n)))})
        case _:
            pass
    fields: dict[str, int | bytes | None] = {}
    if draw(st.integers(0, 3)) == 0:
        fields = {
            "mode": 0o7777,
            "mtime": draw(numbers.filter(lambda value: isinstance(value, int) or len(value) <= 12)),
        }
    return before + entry(name[:100], draw(flags), data, link=link[:100], **fields)


archives = st.lists(entries(), max_size=8).map(lambda made: archive(*made))


@attrs.frozen
class Arena:
    root: Path
    outside: Path

    def prepare(self) -> None:
        """A layer with links in it that lead out, if they are let."""
        for path in self.root.iterdir():
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                shutil.rmtree(path)
        for name, target in (("out", str(self.outside)), ("up", "../outside"), ("self", "self"), ("in", "d")):
            (self.root / name).symlink_to(target)
        (self.root / "d").mkdir()
        (self.root / "d" / "a").write_text("old")

    def import_(self, data: bytes) -> None:
        """Any error but one of ours fails the test."""
        with opened(self.root) as fd, contextlib.suppress(ThinPoolError):
            unpack_layer(io.BytesIO(data), fd, limits=LIMITS)


@pytest.fixture(params=range(ROUNDS))
def arena(scratch: Path) -> Iterator[Arena]:
    arena = Arena(scratch / "root", scratch / "outside")
    arena.root.mkdir()
    (arena.outside / "folder").mkdir(parents=True)
    for name in ("a", "b", "file", "folder/inner"):
        (arena.outside / name).write_text("canary")
    everything = survey(scratch)
    yield arena
    shutil.rmtree(arena.root)
    arena.root.mkdir()
    assert set(survey(scratch)) == set(everything)


@examples(1000, ROUNDS)
@given(data=archives)
def test_archives_of_hostile_parts(arena: Arena, data: bytes) -> None:
    before = survey(arena.outside)
    arena.prepare()
    arena.import_(data)
    assert survey(arena.outside) == before


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good archive with some bytes changed, moved, doubled or cut, in such a way that checksums may be right."""
    data = bytearray(draw(st.one_of(st.just(sample()), archives)))
    for _ in range(draw(st.integers(1, 5))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        start = position - position % BLOCK
        match draw(st.integers(0, 4)):
            case 0:
                data[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[position : position + 20] = draw(parts)
            case 2:
                data[start:start] = data[start : start + BLOCK]
            case 3:
                del data[start : start + BLOCK]
            case _:
                del data[position:]
        if draw(st.booleans()):
            block = data[start : start + BLOCK]
            if len(block) == BLOCK:
                data[start + 148 : start + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    return bytes(data)


@examples(1000, ROUNDS)
@given(data=damaged())
def test_good_archives_with_damage(arena: Arena, data: bytes) -> None:
    before = survey(arena.outside)
    arena.prepare()
    arena.import_(data)
    assert survey(arena.outside) == before


@examples(100, ROUNDS)
@given(
    data=archives,
    compress=st.sampled_from((gzip.compress, lzma.compress, zstandard.ZstdCompressor().compress)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=3),
)
def test_compressed_archives_with_damage(
    arena: Arena, data: bytes, compress: object, edits: list[tuple[int, int]]
) -> None:
    assert callable(compress)
    compressed = bytearray(compress(data))
    for position, value in edits:
        compressed[position % len(compressed)] = value
    before = survey(arena.outside)
    arena.prepare()
    arena.import_(bytes(compressed))
    assert survey(arena.outside) == before


def test_the_canary_notices(scratch: Path) -> None:
    """What the tests above rely on: a careless importer would have been noticed."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "file").write_text("canary")
    before = survey(folder)
    os.utime(folder / "file", ns=(0, 0))
    assert survey(folder) != before
