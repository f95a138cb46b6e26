"""What goes to standard output: rows of text, rows ended by NUL, or one JSON document."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

_BATCH_BYTES = 1 << 16
_SPOOL_BYTES = 4 << 20
_COPY_BYTES = 1 << 20


def escape(text: str) -> str:
    r"""Make text safe for a terminal and a line, reversibly.

    A backslash becomes `\\`; a byte that is no UTF-8 (a surrogate of `os.fsdecode`) or an ASCII control character
    becomes `\xNN`, newline and tab `\n` and `\t`; any other character that cannot be printed becomes `\uNNNN` or
    `\UNNNNNNNN`.
    """
    return visible(text.replace("\\", "\\\\"))


def visible(text: str) -> str:
    """As `escape`, with backslashes as they are: for messages, which people read and nobody parses."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if character in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def write_lines(lines: Iterable[str]) -> None:
    """Write lines of text, in the encoding of standard output, as they come."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _write(line.encode(encoding, "backslashreplace") + b"\n" for line in lines)


def write_nul(rows: Iterable[str]) -> None:
    """Write rows as the bytes they stand for, a NUL after each."""
    _write(os.fsencode(row) + b"\0" for row in rows)


def write_json(document: object) -> None:
    """Write one JSON document, in lines where a person is looking."""
    text = json.dumps(document, indent=2 if _is_terminal() else None)
    _write([text.encode("ascii") + b"\n"])


def write_json_list(items: Iterable[object]) -> None:
    """Write a JSON list of any length in bounded memory, and nothing at all where the items end in an error."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        separator = b"["
        for item in items:
            spool.write(separator + json.dumps(item).encode("ascii"))
            separator = b",\n"
        spool.write(b"]\n" if separator == b",\n" else b"[]\n")
        spool.seek(0)
        _write(iter(lambda: spool.read(_COPY_BYTES), b""))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()
) -> Iterator[str]:
    """Lay out a table in aligned columns, two spaces apart; `right` are the columns of figures."""
    body = [headers, *rows]
    widths = [max(len(row[column]) for row in body) for column in range(len(headers))]
    for row in body:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def can_draw(characters: str) -> bool:
    """Whether standard output can show the characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextlib.contextmanager
def binary_stdout() -> Iterator[IO[bytes]]:
    """Standard output for bytes, flushed at the end; nowhere, if the process was started with it closed."""
    if sys.stdout is None:
        with open(os.devnull, "wb") as nowhere:
            yield nowhere
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _write(chunks: Iterable[bytes]) -> None:
    pending: list[bytes] = []
    size = 0
    with binary_stdout() as stream:
        for chunk in chunks:
            pending.append(chunk)
            size += len(chunk)
            if size >= _BATCH_BYTES:
                stream.write(b"".join(pending))
                pending.clear()
                size = 0
        stream.write(b"".join(pending))
