import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench.latency.records import Cell, Journal, Record, read_run

CELLS = st.builds(Cell, st.integers(0), st.integers(0), st.integers(0), st.sampled_from(["none", "disk"]))
RECORDS = st.builds(
    Record,
    st.text(),
    st.text(),
    st.text(),
    CELLS,
    st.integers(0),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.booleans(),
)
CELL = Cell(20_000, 1, 10)


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert Record.from_json(record.to_json()) == record


def test_a_file_that_was_appended_to_is_one_run(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for contender in ("thinpool", "tar"):
        with Journal(path, "a machine") as journal:
            journal.add(Record("commit", contender, "commit", CELL, 0, 0.5))
            journal.note("a note")
    with path.open() as file:
        run = read_run(file)
    assert run.machines == ("a machine",)
    assert run.notes == ("a note", "a note")
    assert [record.contender for record in run.records] == ["thinpool", "tar"]


def test_what_is_measured_again_replaces_all_rounds_of_it(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for rounds, value in ((3, 1.0), (2, 2.0)):
        with Journal(path, "a machine") as journal:
            for number in range(rounds):
                journal.add(Record("commit", "thinpool", "commit", CELL, number, value))
    with path.open() as file:
        assert [record.value for record in read_run(file).records] == [2.0, 2.0]


def test_every_record_is_in_the_file_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Journal(path, "a machine") as journal:
        journal.add(Record("commit", "thinpool", "commit", CELL, 0, 0.5))
        assert len(path.read_text().splitlines()) == 2


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Journal(path, "a machine") as journal:
        for number in range(3):
            journal.add(Record("commit", "thinpool", "commit", CELL, number, 0.5))
    text = path.read_text()
    for length in range(len(text.rstrip("\n").rpartition("\n")[0]) + 1, len(text)):
        assert len(read_run(io.StringIO(text[:length])).records) == 2
