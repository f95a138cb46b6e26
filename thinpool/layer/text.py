"""File names in messages."""

import os

_MOST = 200


def shown(name: bytes | str) -> str:
    """A name of any bytes as one line of printable characters, in quotes, cut where it is endless."""
    text = os.fsdecode(name)
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]}...{text[-_MOST // 2 :]}"
    return ascii(text) if not text.isprintable() else repr(text)
