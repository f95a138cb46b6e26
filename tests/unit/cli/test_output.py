import contextlib
import io
import json
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.cli import output

file_names = st.binary(max_size=60).map(os.fsdecode) | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

_ESCAPE = re.compile(r"\\(?:(?P<single>[\\ntr])|x(?P<byte>[0-9a-f]{2})|u(?P<short>[0-9a-f]{4})|U(?P<long>[0-9a-f]{8}))")


def unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match["single"]:
            return {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}[match["single"]]
        if match["byte"]:
            code = int(match["byte"], 16)
            return chr(code if code < 0x80 else code + 0xDC00)
        return chr(int(match["short"] or match["long"], 16))

    return _ESCAPE.sub(one, text)


@given(file_names)
def test_escaped_text_can_be_shown_and_turned_back(name: str) -> None:
    shown = output.escape(name)
    assert shown.isprintable()
    assert unescape(shown) == name


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/plain caf\xc3\xa9", "/plain caf\u00e9"),
        (b"/a\nb", r"/a\nb"),
        (b"/\x1b[31mred", r"/\x1b[31mred"),
        (b"/latin \xe9", r"/latin \xe9"),
        (b"/back\\slash", r"/back\\slash"),
        ("/c1 \x9b".encode(), r"/c1 \u009b"),
        ("/right-to-left \u202e".encode(), r"/right-to-left \u202e"),
        ("/tag \U000e0041".encode(), r"/tag \U000e0041"),
    ],
)
def test_escape(raw: bytes, shown: str) -> None:
    assert output.escape(os.fsdecode(raw)) == shown


def test_messages_keep_their_backslashes() -> None:
    assert output.visible("not a name: 'a\\x1b'") == "not a name: 'a\\x1b'"
    assert output.visible("two\nlines") == r"two\nlines"


@contextlib.contextmanager
def ascii_stdout() -> Iterator[io.BytesIO]:
    buffer = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(buffer, encoding="ascii")):
        yield buffer


def test_text_that_the_encoding_lacks_is_escaped() -> None:
    with ascii_stdout() as stdout:
        output.write_lines(["caf\u00e9"])
        assert stdout.getvalue() == rb"caf\xe9" + b"\n"
        assert not output.can_draw("\u2514")


def test_nul_rows_are_the_bytes() -> None:
    with ascii_stdout() as stdout:
        output.write_nul([os.fsdecode(b"A /a\n\xff\\"), "D /b"])
        assert stdout.getvalue() == b"A /a\n\xff\\\0D /b\0"


@pytest.mark.parametrize("count", [0, 1, 2, 100_000])
def test_a_json_list_is_one_document(count: int) -> None:
    with ascii_stdout() as stdout:
        output.write_json_list({"path": os.fsdecode(b"/\xff"), "number": number} for number in range(count))
        document = json.loads(stdout.getvalue())
    assert len(document) == count
    assert all(item == {"path": "/\udcff", "number": number} for number, item in enumerate(document))


def test_a_json_list_that_fails_prints_nothing() -> None:
    def items() -> Iterator[int]:
        yield from range(1_000_000)
        raise OSError(5, "Input/output error")

    with ascii_stdout() as stdout:
        with pytest.raises(OSError, match="Input/output"):
            output.write_json_list(items())
        assert stdout.getvalue() == b""


def test_without_a_standard_output_nothing_is_written() -> None:
    with contextlib.redirect_stdout(None):
        output.write_lines(["nobody sees it"])
        output.write_json({"nobody": "sees it"})


def test_a_table_is_aligned() -> None:
    lines = list(output.table(("NAME", "SIZE"), [("a", "1 B"), ("longer", "10 B")], right=frozenset({1})))
    assert lines == ["NAME    SIZE", "a        1 B", "longer  10 B"]
