"""What the names in an archive mean: one rule for all of them."""

from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.text import shown


def clean(name: bytes) -> bytes:
    """The path of an entry, or of a hard link's target, relative to the layer's root; empty for the root itself.

    The rule: every name counts from the layer's root, whether it begins with a slash or not; empty and `.` parts mean
    nothing; a `..` part is refused, as no tool that makes layers writes one.

    Raises:
        UnsafeArchive: a `..` part.
        ArchiveError: an empty name, or one with a NUL.
    """
    if name.endswith(b"/") or name.startswith((b"/", b".")) or b"/." in name or b"//" in name or b"\0" in name:
        return _clean(name)
    if not name:
        raise ArchiveError("an entry without a name")
    return name


def _clean(name: bytes) -> bytes:
    if b"\0" in name:
        raise ArchiveError(f"the name {shown(name)} has a NUL in it")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise UnsafeArchive(f"the name {shown(name)} has a '..' part")
    return b"/".join(parts)
