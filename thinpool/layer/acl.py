"""POSIX access control lists in their text form, as GNU tar and bsdtar put them into archives.

The binary form is that of the kernel's extended attributes (include/uapi/linux/posix_acl_xattr.h): a version, then
entries of tag, permissions and id, in the order of tags and ids.
"""

import struct

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.layer.xattrs import ACL_ACCESS, ACL_DEFAULT

ATTRIBUTES = {b"SCHILY.acl.access": ACL_ACCESS, b"SCHILY.acl.default": ACL_DEFAULT}
"""The attribute that a record of an extended header is the text of."""

KEYS = {attribute: key for key, attribute in ATTRIBUTES.items()}
"""The key of the record that has an attribute's text."""

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFFFFFF
_LONGEST_ID = 20
_TAGS = {
    (b"user", False): 0x01,
    (b"user", True): 0x02,
    (b"group", False): 0x04,
    (b"group", True): 0x08,
    (b"mask", False): 0x10,
    (b"other", False): 0x20,
}
_BITS = {b"r"[0]: 4, b"w"[0]: 2, b"x"[0]: 1}


def from_text(text: bytes) -> bytes | None:
    """The binary form of a list such as `user::rwx,user:1000:r-x,group::r--,mask::r-x,other::---`.

    bsdtar adds the id as a fourth field, which counts. A name alone is one of the machine that wrote the archive and
    means nothing here: a list with such names is None.

    Raises:
        ArchiveError: it cannot be understood.
    """
    entries = []
    for line in text.replace(b"\n", b",").split(b","):
        item = line.partition(b"#")[0].strip()
        if item:
            entry = _entry(item)
            if entry is None:
                return None
            entries.append(entry)
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries, key=lambda entry: (entry[0], entry[2])))


def to_text(value: bytes) -> bytes | None:
    """The text of a binary list; None where it is not one that we know."""
    if not value.startswith(_VERSION) or (len(value) - len(_VERSION)) % _ENTRY.size:
        return None
    names = {tag: (kind, named) for (kind, named), tag in _TAGS.items()}
    lines = []
    for tag, bits, number in _ENTRY.iter_unpack(value[len(_VERSION) :]):
        if tag not in names or bits > 7:
            return None
        kind, named = names[tag]
        permissions = bytes(letter if bits & bit else 0x2D for letter, bit in _BITS.items())
        lines.append(b"%s:%s:%s" % (kind, b"%d" % number if named else b"", permissions))
    return b",".join(lines)


def _entry(item: bytes) -> tuple[int, int, int] | None:
    kind, *fields = item.split(b":")
    if len(fields) == 1:  # bsdtar and setfacl allow `mask:r-x` and `other:r-x`
        fields.insert(0, b"")
    if len(fields) not in {2, 3} or (kind, bool(fields[0])) not in _TAGS:
        raise ArchiveError(f"malformed access control list: {shown(item)}")
    tag = _TAGS[kind, bool(fields[0])]
    number = _NO_ID
    if fields[0]:
        text = fields[2] if len(fields) == 3 else fields[0]
        if not text.isdigit():
            return None
        number = int(text[:_LONGEST_ID])
        if number >= _NO_ID:
            raise ArchiveError(f"malformed access control list: {shown(item)}")
    bits = 0
    for letter in fields[1]:
        if letter not in _BITS and letter != 0x2D:
            raise ArchiveError(f"malformed access control list: {shown(item)}")
        bits |= _BITS.get(letter, 0)
    return tag, bits, number
