"""The results as one HTML page that needs nothing else: tables, and plots as SVG inside it."""

import html
from collections.abc import Iterator
from pathlib import Path

from bench.latency.plots import plots
from bench.latency.records import Run
from bench.latency.summary import Index
from bench.latency.tables import Table, tables

_STYLE = """\
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 2em } th, td { padding: .2em .8em; text-align: left }
th { border-bottom: 2px solid #444 } td { border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
.missed { background: #fdd } figure { margin: 2em 0 } figcaption { color: #555 } svg { max-width: 100%; height: auto }
"""


def write_page(run: Run, path: Path) -> None:
    """Write the page, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(_page(run)), encoding="utf-8")
    part.replace(path)


def _page(run: Run) -> Iterator[str]:
    title = "How long a commit takes"
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
    yield from (f"<p>{html.escape(line)}</p>\n" for line in run.machines)
    found = tables(run)
    yield from (_table(table) for table in found[:2])
    for caption, svg in plots(Index(run)):
        yield f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    yield from (_table(table) for table in found[2:])
    if run.notes:
        yield "<h2>Notes</h2><ul>"
        yield from (f"<li>{html.escape(note)}</li>\n" for note in dict.fromkeys(run.notes))
        yield "</ul>"
    yield "</body></html>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    rows = "".join(
        f"<tr{_class(row)}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows
    )
    return f"<h2>{html.escape(table.title)}</h2>\n<table><tr>{head}</tr>\n{rows}</table>\n"


def _class(row: tuple[str, ...] | list[str] | object) -> str:
    return ' class="missed"' if isinstance(row, tuple | list) and "MISSED" in row else ""
