import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.latency.page import write_page
from bench.latency.records import Cell, Record, Run
from bench.latency.tables import show, tables, text


def measured() -> Run:
    cells = [Cell(files, changes, delay) for files in (1_000, 20_000) for changes in (1, 100) for delay in (0, 10)]
    cells += [Cell(1_000, 1, 10, load) for load in ("disk", "pool")]
    records = [
        Record("commit", contender, "commit", cell, number, 0.1 + number)
        for cell in cells
        for contender in ("thinpool", "docker devicemapper")
        for number in range(3)
    ]
    records += [Record("disk", "disk", "read 4 KiB", Cell(0, 0, delay), 0, 0.0001 + delay) for delay in (0, 10)]
    records += [
        Record("hold", who, "hold", cells[0], number, 0.001)
        for who in ("thinpool", "bare ioctls")
        for number in range(9)
    ]
    return Run(("a <machine>",), ("a & note",), tuple(records))


class Strict(HTMLParser):
    """Notices tags that do not match, and whatever would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":  # which has no end; an SVG's empty elements get one from the parser itself
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(measured(), path)
    return path


def test_the_page_is_whole_and_needs_nothing_else(page: Path) -> None:
    content = page.read_text()
    parser = Strict()
    parser.feed(content)
    parser.close()
    assert parser.open == []
    assert all(target.startswith("#") for target in parser.fetched)
    assert not re.search(r"url\((?!#)", content)
    assert content.count("<svg") == 5  # delay, files, changes, load, holds
    assert "a &lt;machine&gt;" in content
    assert "a &amp; note" in content
    assert [entry.name for entry in page.parent.iterdir()] == ["page.html"]


def test_the_same_results_give_the_same_page(page: Path, tmp_path: Path) -> None:
    write_page(measured(), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == page.read_bytes()


def test_an_empty_run_gives_a_page(tmp_path: Path) -> None:
    write_page(Run((), (), ()), tmp_path / "page.html")
    assert "</html>" in (tmp_path / "page.html").read_text()


def test_columns_stand_below_each_other() -> None:
    for table in tables(measured()):
        lines = list(text(table))[1:]
        column = lines[0].index(table.head[1])
        assert all(line[column - 1] == " " for line in lines)


def test_a_missed_target_is_shown_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(measured()) is True
    assert "MISSED" in capsys.readouterr().out
