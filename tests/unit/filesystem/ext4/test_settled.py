"""Which ctimes say nothing, told from an inode's bytes as from the parsed inode."""

import stat
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.filesystem.ext4.samples import MemoryVolume, sample
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.inode import parse_inode
from thinpool.filesystem.ext4.settled import TWO_TICKS_NS, is_late, unsettled

BEFORE_S = 1_700_000_000
SUPERBLOCK = Image.open(MemoryVolume(sample("unchecked"))).superblock

_near = st.integers(BEFORE_S - 4, BEFORE_S + 2)
_seconds = st.one_of(_near, st.integers(-(1 << 31), (1 << 31) - 1))
_nanoseconds = st.one_of(st.sampled_from((0, 1, 999_999_999)), st.integers(0, 999_999_999))
_inodes = st.tuples(_seconds, st.integers(0, 3), _nanoseconds, st.sampled_from((0, 4, 8, 12, 32)))


def raw_inode(seconds: int, epoch: int, nanoseconds: int, known: int) -> bytes:
    raw = bytearray(SUPERBLOCK.inode_size)
    struct.pack_into("<H", raw, 0, stat.S_IFREG | 0o644)
    struct.pack_into("<i", raw, 12, seconds)
    struct.pack_into("<H", raw, 26, 1)  # links
    struct.pack_into("<H2xI", raw, 0x80, known, nanoseconds << 2 | epoch)
    return bytes(raw)


def is_said_late(raw: bytes, complete_ns: int) -> bool:
    try:
        inode = parse_inode(raw, 12, SUPERBLOCK)
    except Unreadable:
        return True
    return inode is not None and is_late(inode, complete_ns)


@given(
    inodes=st.lists(_inodes, max_size=8),
    before_ns=st.one_of(
        st.integers(BEFORE_S * 10**9 - 10, BEFORE_S * 10**9 + 10**9), st.just((BEFORE_S + (1 << 32)) * 10**9)
    ),
)
@example(inodes=[(BEFORE_S - 1, 0, 5, 4)], before_ns=BEFORE_S * 10**9)  # nanoseconds that do not count
@example(inodes=[(BEFORE_S - 1, 1, 5, 32)], before_ns=(BEFORE_S + (1 << 32) - 1) * 10**9)
def test_bytes_tell_what_the_inode_tells(inodes: list[tuple[int, int, int, int]], before_ns: int) -> None:
    """None is left out, and of those that say more than the old fields, none is taken in without need."""
    table = [raw_inode(*each) for each in inodes]
    found = unsettled(b"".join(table), SUPERBLOCK.inode_size, before_ns)
    late = [index for index, raw in enumerate(table) if is_said_late(raw, before_ns + TWO_TICKS_NS)]
    assert set(late) <= set(found)
    assert [index for index in found if inodes[index][3] != 4] == [index for index in late if inodes[index][3] != 4]


def test_damaged_nanoseconds_are_left_to_the_parser() -> None:
    raw = raw_inode(BEFORE_S - 2, 0, 1_000_000_001, 32)
    assert list(unsettled(raw, SUPERBLOCK.inode_size, BEFORE_S * 10**9 + 10**10)) == []
    assert list(unsettled(raw, SUPERBLOCK.inode_size, BEFORE_S * 10**9)) == [0]
