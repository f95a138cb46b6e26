"""Notes of the devices that much was written to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from thinpool.pool.written import WriteNotes


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[WriteNotes]:
    notes = WriteNotes(tmp_path / "written")
    yield notes
    notes.close()


def test_what_is_noted_is_there_until_it_is_forgotten(notes: WriteNotes, tmp_path: Path) -> None:
    notes.note(7)
    others = WriteNotes(tmp_path / "written")
    assert [number for number in range(10) if others.has(number)] == [7]
    others.forget(7)
    assert not notes.has(7)
    others.close()


def test_nothing_is_noted_at_first_and_no_file_is_made_to_look(notes: WriteNotes, tmp_path: Path) -> None:
    assert not notes.has(1)
    notes.forget(1)
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_for_notes_none_are_made(tmp_path: Path) -> None:
    notes = WriteNotes(tmp_path / "missing" / "written")
    notes.note(3)
    assert not notes.has(3)


def test_the_last_number_can_be_noted(notes: WriteNotes, tmp_path: Path) -> None:
    """Thin ids have 24 bits; the file stays sparse."""
    notes.note((1 << 24) - 1)
    assert notes.has((1 << 24) - 1)
    assert (tmp_path / "written").stat().st_blocks * 512 < 1 << 20
