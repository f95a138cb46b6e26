"""What was measured, one JSON document a line, each on disk before the next is measured: a killed run loses nothing."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

LOADS = ("none", "disk", "pool", "layer")
"""Where fio writes meanwhile."""


@attrs.frozen
class Cell:
    """One point of the matrix.

    Attributes:
        files: files in the tree below the layer.
        changes: files changed in the layer.
        delay: milliseconds that dm-delay was asked for; the `disk` part has what they came to.
        load: one of LOADS.
    """

    files: int
    changes: int
    delay: int
    load: str = "none"

    def __str__(self) -> str:
        return f"{self.files:,} files, {self.changes:,} changed, {self.delay} ms, load: {self.load}"


@attrs.frozen
class Record:
    """One measurement.

    Attributes:
        part: the part of the benchmark.
        contender: who.
        operation: what.
        cell: where in the matrix.
        round: in which round; what is compared is compared within a round.
        value: how much.
        unit: of `value`, as a rule seconds.
        cut: it was ended at the limit of time, so that `value` is less than it would have taken.
    """

    part: str
    contender: str
    operation: str
    cell: Cell
    round: int
    value: float
    unit: str = "s"
    cut: bool = False

    @property
    def thing(self) -> tuple[str, str, str, Cell]:
        """What the rounds are rounds of."""
        return self.part, self.contender, self.operation, self.cell

    def to_json(self) -> dict[str, Any]:
        fields: dict[str, Any] = attrs.asdict(self)
        cell: dict[str, Any] = fields.pop("cell")
        return fields | cell

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        names = {field.name for field in attrs.fields(Cell)}
        rest = {name: value for name, value in fields.items() if name not in names}
        return cls(cell=Cell(**{name: fields[name] for name in names}), **rest)


@attrs.frozen
class Run:
    """A set of results.

    Attributes:
        machines: where they come from, one for each time that something was appended.
        notes: what the reader should know, in the order of writing.
        records: the measurements.
    """

    machines: tuple[str, ...]
    notes: tuple[str, ...]
    records: tuple[Record, ...]


class Journal:
    """A results file, appended to."""

    def __init__(self, path: Path, machine: str) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._write({"machine": machine})

    def add(self, record: Record) -> None:
        """Keep a measurement."""
        self._write(record.to_json())

    def note(self, text: str) -> None:
        """Keep a sentence, and show it."""
        print(text, flush=True)
        self._write({"note": text})

    def _write(self, document: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(document) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_run(lines: Iterable[str]) -> Run:
    """Read results back.

    A line that was cut short by the end of the run is left out. What a later run into the same file measured again
    replaces all that there was of it: rounds of two runs are not compared with each other.
    """
    machines: list[str] = []
    notes: list[str] = []
    records: list[tuple[int, Record]] = []
    latest: dict[tuple[str, str, str, Cell], int] = {}
    number = 0
    for line in lines:
        if not line.endswith("\n"):
            continue
        fields = json.loads(line)
        if "machine" in fields:
            number += 1
            if fields["machine"] not in machines:
                machines.append(fields["machine"])
        elif "note" in fields:
            notes.append(fields["note"])
        else:
            record = Record.from_json(fields)
            records.append((number, record))
            latest[record.thing] = number
    last = tuple(record for run, record in records if latest[record.thing] == run)
    return Run(tuple(machines), tuple(notes), last)
