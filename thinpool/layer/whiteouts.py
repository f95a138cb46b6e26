"""Whiteouts: how a layer archive says that something of the layers below is gone.

The names are those of aufs, taken over by Docker and by the OCI image specification (layer.md, "Whiteouts"): an entry
`.wh.NAME` removes NAME, an entry `.wh..wh..opq` hides all that the layers below hold in its directory, and every other
`.wh..wh.*` is bookkeeping of aufs, which means nothing to a layer.
"""

import enum

from thinpool.errors import UnsafeArchive
from thinpool.layer.text import shown

PREFIX = b".wh."
BOOKKEEPING = PREFIX + PREFIX
OPAQUE = BOOKKEEPING + b".opq"


class Meaning(enum.Enum):
    """What the name of an archive's entry means."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    BOOKKEEPING = "bookkeeping"


def is_reserved(name: bytes) -> bool:
    """True for a name that no file can have in an archive, as it would be read as a whiteout."""
    return name.startswith(PREFIX)


def whiteout(name: bytes) -> bytes:
    """The name of the entry that removes `name`."""
    return PREFIX + name


def meaning(path: bytes) -> Meaning:
    """What an entry of that path means, whatever its type and data.

    Args:
        path: relative to the layer's root, without empty, `.` and `..` parts.

    Raises:
        UnsafeArchive: a whiteout of nothing, of `.` or of `..`, or an entry below a whiteout.
    """
    if PREFIX not in path:
        return Meaning.ENTRY
    above, _, name = path.rpartition(b"/")
    for part in above.split(b"/"):
        if part.startswith(BOOKKEEPING):
            return Meaning.BOOKKEEPING
        if part.startswith(PREFIX):
            raise UnsafeArchive(f"entry {shown(path)} lies below a whiteout")
    if not name.startswith(PREFIX):
        return Meaning.ENTRY
    if name == OPAQUE:
        return Meaning.OPAQUE
    if name.startswith(BOOKKEEPING):
        return Meaning.BOOKKEEPING
    if name[len(PREFIX) :] in {b"", b".", b".."}:
        raise UnsafeArchive(f"entry {shown(path)} is a whiteout without the name of what it removes")
    return Meaning.WHITEOUT


def removed(name: bytes) -> bytes:
    """The name that a whiteout of that name removes."""
    return name.removeprefix(PREFIX)
