"""Extended headers of the pax format, as far as they mean something to a layer."""

import base64
import binascii
import os
from urllib.parse import unquote_to_bytes

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer import acl
from thinpool.layer.tarformat import decimal, parse_time, records, unescape_key
from thinpool.layer.text import shown

_KNOWN = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})
_SPARSE = b"GNU.sparse."
_XATTR = b"SCHILY.xattr."
_XATTR_ENCODED = b"LIBARCHIVE.xattr."
_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_OVERHEAD = 200


@attrs.define(eq=False)
class Extended:
    """The records of extended headers that were understood.

    Attributes:
        values: what replaces fields of the header, and the description of a sparse member.
        xattrs: extended attributes.
        pairs: offsets and lengths of a sparse member in format 0.0, in turn.
        memory: about how many bytes all this takes.
        lost_acl: an access control list was left out because of names in it.
    """

    values: dict[bytes, bytes] = attrs.field(factory=dict)
    xattrs: dict[str, bytes] = attrs.field(factory=dict)
    pairs: list[int] = attrs.field(factory=list)
    memory: int = 0
    lost_acl: bool = False

    @property
    def sparse(self) -> bool:
        """True when the member is sparse."""
        values = self.values
        return bool(self.pairs) or (
            not self.only_time and (b"GNU.sparse.map" in values or b"GNU.sparse.major" in values)
        )

    @property
    def only_time(self) -> bool:
        """True when nothing but the time of modification replaces the header's."""
        return len(self.values) == (b"mtime" in self.values)

    def update(self, data: bytes) -> None:
        """Take in an extended header. An empty value takes a record back, as POSIX has it.

        Raises:
            ArchiveError: it is malformed.
        """
        for key, value in records(data):
            if key in _PAIR:
                if key == _PAIR[len(self.pairs) % 2]:
                    self.pairs.append(decimal(value, "sparse map"))
                    self.memory += 40
                else:
                    raise ArchiveError(
                        "malformed extended header: offsets and lengths of a sparse map do not alternate"
                    )
            elif key in _KNOWN or key.startswith(_SPARSE):
                if b"\0" in value:
                    raise ArchiveError(f"malformed extended header: {shown(key)} has a NUL in it")
                self._put(key, value)
            elif key.startswith(_XATTR):
                self._put_xattr(os.fsdecode(unescape_key(key.removeprefix(_XATTR))), value)
            elif key.startswith(_XATTR_ENCODED):
                name = os.fsdecode(unquote_to_bytes(key.removeprefix(_XATTR_ENCODED)))
                if name not in self.xattrs:
                    self._put_xattr(name, _base64(value))
            elif (attribute := acl.ATTRIBUTES.get(key)) is not None and attribute not in self.xattrs:
                binary = acl.from_text(value)
                if binary is None:
                    self.lost_acl = True
                else:
                    self._put_xattr(attribute, binary)

    def over(self, base: "Extended") -> "Extended":
        """These records, and those of the base that they do not replace."""
        return Extended(
            {key: value for key, value in {**base.values, **self.values}.items() if value},
            {**base.xattrs, **self.xattrs},
            self.pairs or base.pairs,
            base.memory + self.memory,
        )

    def text(self, key: bytes, default: bytes) -> bytes:
        """A record as it is."""
        return self.values.get(key) or default

    def number(self, key: bytes, default: int) -> int:
        """A record that is a number."""
        value = self.values.get(key)
        return decimal(value, key.decode()) if value else default

    def time(self, default: int) -> int:
        """The time of modification in nanoseconds."""
        value = self.values.get(b"mtime")
        return parse_time(value) if value else default

    def _put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value
        self.memory += len(key) + len(value) + _OVERHEAD

    def _put_xattr(self, name: str, value: bytes) -> None:
        if not name or "\0" in name:
            raise ArchiveError("malformed extended header: an extended attribute without a proper name")
        self.xattrs[name] = value
        self.memory += len(name) + len(value) + _OVERHEAD


def _base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ArchiveError("malformed extended header: an extended attribute is not in base64") from error
