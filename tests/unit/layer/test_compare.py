"""What of two contents is read: all that is stored apart, in pieces of a bounded size, and nothing else."""

from collections.abc import Hashable, Mapping, Sequence

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from thinpool.layer.compare import contents_differ

CHUNK = 1 << 18
UNIT = 1 << 14

Piece = tuple[int | None, int]
"""A place, or None for a hole, and a length in units."""


def unit(place: int | None, number: int) -> int:
    """The bytes of a unit: two places differ in one at the beginning, in one after the first chunk, or in both."""
    if place is None:
        return 0
    return 9 if (number, place % 2) == (1, 1) or number == 17 + place // 2 else 1


@attrs.define(eq=False)
class Stored:
    """A content that lies in pieces on a storage."""

    pieces: Sequence[Piece]
    cut: int
    known: bool
    read_from: list[tuple[int, int]] = attrs.field(factory=list)

    @property
    def size(self) -> int:
        return max(sum(length for _, length in self.pieces) * UNIT - self.cut, 0)

    def _at(self, position: int) -> tuple[int | None, int]:
        end = 0
        for place, length in self.pieces:
            start, end = end, end + length * UNIT
            if position < end:
                return None if place is None else place * UNIT * 64 + position - start, end - position
        raise AssertionError(position)

    def next_data(self, position: int) -> int:
        while position < self.size:
            place, length = self._at(position)
            if place is not None:
                return position
            position += length
        return self.size

    def stored_at(self, position: int) -> tuple[Hashable, int] | None:
        assert 0 <= position < self.size
        return self._at(position) if self.known else None

    def read(self, position: int, length: int) -> bytes:
        assert 0 < length <= CHUNK
        assert position + length <= self.size
        self.read_from.append((position, length))
        return self.content()[position : position + length]

    def content(self) -> bytes:
        units = [unit(place, number) for place, length in self.pieces for number in range(length)]
        return b"".join(bytes([byte]) * UNIT for byte in units)[: self.size]

    def close(self) -> None:
        self.pieces = ()


@attrs.frozen(eq=False)
class OneFile:
    """A view of one file."""

    file: Stored

    def attributes(self, name: str) -> Mapping[str, bytes]:
        del name
        return {}

    def content(self, name: str, size: int) -> Stored:
        assert (name, size) == ("file", self.file.size)
        return attrs.evolve(self.file)


@attrs.frozen
class Regular:
    """The status of a file."""

    st_size: int
    st_mode: int = 0o100644


pieces = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.sampled_from((1, 15, 16, 17, 20, 33, 40))),
    min_size=1,
    max_size=4,
)


def fitted(given_pieces: Sequence[Piece], units: int) -> list[Piece]:
    """Cut, or followed by a hole, to a size."""
    found: list[Piece] = []
    for place, length in given_pieces:
        if units:
            found.append((place, min(length, units)))
            units -= found[-1][1]
    return [*found, (None, units)] if units else found


def moved(given_pieces: Sequence[Piece], moves: Sequence[int]) -> list[Piece]:
    """Some pieces in places that differ from theirs late or not at all."""
    shifts = [*moves, *[0] * len(given_pieces)]
    return [(place if place is None else place ^ shifts[at], length) for at, (place, length) in enumerate(given_pieces)]


known_of_both = st.sampled_from(((True, True), (True, True), (True, False), (False, True), (False, False)))
moves = st.lists(st.sampled_from((0, 2, 4)), max_size=4)


@settings(max_examples=300)
@given(
    first=pieces, second=st.one_of(st.none(), pieces), moves=moves, known=known_of_both, cut=st.integers(0, UNIT - 1)
)
def test_what_is_read(
    first: list[Piece], second: list[Piece] | None, moves: list[int], known: tuple[bool, bool], cut: int
) -> None:
    units = sum(length for _, length in first)
    older = Stored(first, cut, known[0])
    newer = Stored(moved(first, moves) if second is None else fitted(second, units), cut, known[1])
    assert older.size == newer.size
    differ = contents_differ(OneFile(older), OneFile(newer), "file", Regular(older.size))  # type: ignore[arg-type]
    assert differ == (older.content() != newer.content())
    assert older.read_from == newer.read_from
    if second is None and not any(moves) and all(known):
        assert not older.read_from
