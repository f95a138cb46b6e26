"""Access control lists in both forms."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ArchiveError
from thinpool.layer.acl import from_text, to_text

NONE = 0xFFFFFFFF


def binary(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


FULL = binary((1, 7, NONE), (2, 5, 1000), (2, 4, 2000), (4, 5, NONE), (8, 6, 33), (16, 7, NONE), (32, 1, NONE))


@pytest.mark.parametrize(
    "text",
    [
        b"user::rwx,user:1000:r-x,user:2000:r--,group::r-x,group:33:rw-,mask::rwx,other::--x",
        b"other::--x\nmask:rwx\ngroup:33:rw-\ngroup::r-x\nuser:2000:r--\nuser:1000:r-x\nuser::rwx\n# the end\n",
        b"user::rwx,user:lisa:r-x:1000,user:bart:r--:2000,group::r-x,group:www:rw-:33,mask::rwx,other::--x",
    ],
)
def test_text(text: bytes) -> None:
    assert from_text(text) == FULL


def test_both_ways() -> None:
    text = to_text(FULL)
    assert text is not None
    assert from_text(text) == FULL


def test_names_mean_nothing_here() -> None:
    assert from_text(b"user::rwx,user:lisa:r-x,group::r-x,mask::rwx,other::--x") is None


@pytest.mark.parametrize(
    "text",
    [b"user", b"user:::::", b"users::rwx", b"user::rwX", b"mask:1:rwx", b"user:1:rwx:1:1", b"user:4294967295:r--"],
)
def test_nonsense(text: bytes) -> None:
    with pytest.raises(ArchiveError):
        from_text(text)


@pytest.mark.parametrize("value", [b"", b"\1\0\0\0", FULL[:-1], binary((3, 7, 0)), binary((1, 9, 0))])
def test_what_has_no_text(value: bytes) -> None:
    assert to_text(value) is None


@given(text=st.binary(max_size=60))
def test_any_text(text: bytes) -> None:
    with contextlib.suppress(ArchiveError):
        from_text(text)
