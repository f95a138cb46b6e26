"""Places of inodes, content at any position, and storage that two file systems share."""

import functools
from collections.abc import Hashable
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.filesystem.ext4.samples import NAMES, MemoryVolume, Structures, sample
from thinpool.filesystem.ext4.checksums import crc16
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.groups import Group, Groups
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE
from thinpool.filesystem.ext4.view import Ext4View
from thinpool.filesystem.ext4.volume import FileVolume
from thinpool.layer.changes import walk_views
from thinpool.layer.xattrs import belongs
from thinpool.model import Change


def image(name: str) -> Image:
    return Image.open(MemoryVolume(sample(name)))


def test_crc16() -> None:
    assert crc16(b"123456789", 0) == 0xBB3D  # the check value of CRC-16/ARC


@given(
    tables=st.permutations([8, 24, 40, 100]),
    start=st.integers(0, 130 * BLOCK_SIZE),
    length=st.integers(0, 40 * BLOCK_SIZE),
)
def test_the_inodes_in_a_range(tables: list[int], start: int, length: int) -> None:
    superblock = attrs.evolve(image("checked").superblock, inodes_per_group=128, inodes=512)
    groups = [Group(table * BLOCK_SIZE, 128, 0) for table in tables]
    found = Groups(superblock, groups, sorted(range(4), key=lambda number: groups[number].table))
    expected = set()
    for inode in range(1, 513):
        offset = found.offset(inode)
        assert offset is not None
        if offset < start + length and offset + 256 > start and length:
            expected.add(inode)
    assert {inode for inodes in found.inodes_in(start, start + length) for inode in inodes} == expected


FRAGMENTS = {number << 13: bytes([number]) + bytes(7) for number in range(7)}
NEAR = 60_000
FAR = 20 << 20


@functools.cache
def fragments() -> bytes:
    whole = bytearray(FAR + 8192)
    for place, data in FRAGMENTS.items():
        whole[place : place + 160] = data * 20
    whole[FAR : FAR + 3] = b"far"
    return bytes(whole)


def expected_content(position: int, length: int) -> bytes:
    return fragments()[position : position + length]


@pytest.mark.parametrize("name", NAMES)
@given(
    reads=st.lists(
        st.tuples(
            st.one_of(st.integers(0, NEAR), st.integers(FAR - NEAR, FAR + 100)), st.integers(1, 30_000), st.booleans()
        ),
        max_size=8,
    )
)
def test_content_at_any_position(name: str, reads: list[tuple[int, int, bool]]) -> None:
    whole = image(name)
    file = whole.content(whole.used_inode(whole.entries(whole.used_inode(2))[b"fragments"].inode))
    for start, length, seek in reads:
        position = start
        if seek:
            position = file.next_data(start)
            assert not any(expected_content(start, position - start))
        found = file.read(position, length)
        assert found == expected_content(position, length).ljust(length, b"\0")
    assert file.next_data(FAR + BLOCK_SIZE) == 1 << 30
    assert file.read((1 << 30) - 5, 10) == bytes(5)


@attrs.define(eq=False)
class Shared(MemoryVolume):
    """Says of some of its blocks that they are stored apart."""

    apart: set[int] = attrs.field(factory=set)

    def stored_at(self, offset: int) -> tuple[Hashable, int]:
        block = offset // BLOCK_SIZE
        return (block, id(self) if block in self.apart else 0), BLOCK_SIZE - offset % BLOCK_SIZE


@pytest.mark.parametrize("name", NAMES)
def test_what_two_volumes_share_is_not_read(name: str) -> None:
    """Two contents that are one block by what the volumes say are not looked at, so a difference is not seen."""
    contents = Structures.of(sample(name)).contents
    changed = bytearray(sample(name))
    block = next(block for block in sorted(contents) if changed[block * BLOCK_SIZE :].startswith(b"below"))
    changed[block * BLOCK_SIZE] ^= 1
    for apart, expected in ((set(contents), ["/folder/below/file"]), ({block}, ["/folder/below/file"]), (set(), [])):
        older, newer = Shared(sample(name), apart=apart), Shared(bytes(changed), apart=apart)
        views = [Ext4View(Image.open(volume), belongs) for volume in (older, newer)]
        assert list(walk_views(*views)) == [Change("C", path) for path in expected]


def test_a_volume_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 32)
    with FileVolume.open(path) as volume, FileVolume.open(path) as other:
        assert volume.size == 8192
        assert volume.read(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
        assert volume.stored_at(10)[0] != other.stored_at(10)[0]
        for offset, length in ((-1, 1), (8192, 1), (8000, 193), (0, -1)):
            with pytest.raises(Unreadable, match="outside"):
                volume.read(offset, length)
