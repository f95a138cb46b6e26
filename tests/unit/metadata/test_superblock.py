"""The superblock: every field there and back, and what is refused."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metadata.image import BLOCK, Image, Shape, sealed
from thinpool.errors import PoolFailed
from thinpool.metadata.source import MAX_BLOCKS
from thinpool.metadata.superblock import (
    SUPERBLOCK_SALT,
    SpaceMapRoot,
    Superblock,
    SuperblockFlag,
    checksum,
    parse_superblock,
    read_superblock,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


def roots(limit: int) -> st.SearchStrategy[SpaceMapRoot]:
    """Roots of a space map of at most so many blocks."""
    return st.integers(0, limit).flatmap(
        lambda blocks: st.builds(SpaceMapRoot, st.just(blocks), st.integers(0, blocks), st.integers(1, 2**64 - 1), U64)
    )


SUPERBLOCKS = st.builds(
    Superblock,
    block=st.integers(0, 2**64 - 1),
    flags=U32.map(SuperblockFlag),
    uuid=st.binary(min_size=16, max_size=16),
    version=st.sampled_from((1, 2)),
    time=U32,
    transaction_id=U64,
    held_root=U64,
    data_space_map=st.none() | roots(2**40),
    metadata_space_map=st.none() | roots(MAX_BLOCKS),
    mapping_root=st.integers(1, 2**64 - 1),
    details_root=st.integers(1, 2**64 - 1),
    data_block_size_sectors=st.integers(1, 2097152 // 128).map(lambda steps: steps * 128),
    metadata_block_size=st.just(4096),
    metadata_blocks=U64,
    compat_flags=U32,
    compat_ro_flags=U32,
    incompat_flags=st.just(0),
)


def render(superblock: Superblock) -> bytes:
    def put(value: int, size: int) -> bytes:
        return value.to_bytes(size, "little")

    def space_map(root: SpaceMapRoot | None) -> bytes:
        numbers = (root.blocks, root.allocated, root.bitmap_root, root.ref_count_root) if root else (0, 0, 0, 0)
        return b"".join(put(number, 8) for number in numbers).ljust(128, b"\0")

    data = put(0, 4) + put(int(superblock.flags), 4) + put(superblock.block, 8) + superblock.uuid
    data += put(27022010, 8) + put(superblock.version, 4) + put(superblock.time, 4)
    data += put(superblock.transaction_id, 8) + put(superblock.held_root, 8)
    data += space_map(superblock.data_space_map) + space_map(superblock.metadata_space_map)
    data += put(superblock.mapping_root, 8) + put(superblock.details_root, 8)
    data += put(superblock.data_block_size_sectors, 4) + put(superblock.metadata_block_size // 512, 4)
    data += put(superblock.metadata_blocks, 8) + put(superblock.compat_flags, 4)
    data += put(superblock.compat_ro_flags, 4) + put(superblock.incompat_flags, 4)
    return sealed(data.ljust(BLOCK, b"\0"), SUPERBLOCK_SALT)


@given(SUPERBLOCKS)
def test_every_field_comes_back(superblock: Superblock) -> None:
    parsed = parse_superblock(render(superblock), superblock.block)
    assert parsed == superblock
    assert parsed.needs_check == bool(superblock.flags & 1)
    assert parsed.data_block_size == superblock.data_block_size_sectors * 512


def test_known_checksum() -> None:
    assert checksum(b"\0" * 4 + b"123456789", 0) == 0xE3069283 ^ 0xFFFFFFFF


@given(st.integers(0, BLOCK * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    image = Image()
    data = bytearray(image.finish(image.devices({1: {2: 3}}, {}, Shape())).data[0])
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PoolFailed, match="metadata block 0 is no valid superblock"):
        parse_superblock(bytes(data))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"magic": 1}, "magic number 1"),
        ({"version": 0}, "format version 0"),
        ({"version": 3}, "format version 3"),
        ({"incompat_flags": 4}, "incompatible features 0x4"),
        ({"metadata_sectors": 16}, "metadata blocks of 16 sectors"),
        ({"data_block_size_sectors": 0}, "data blocks of 0 sectors"),
        ({"data_block_size_sectors": 130}, "data blocks of 130 sectors"),
        ({"data_block_size_sectors": 2097280}, "data blocks of 2097280 sectors"),
    ],
)
def test_superblocks_that_no_kernel_of_today_wrote(fields: dict[str, int], reason: str) -> None:
    image = Image()
    source = image.finish(image.devices({1: {2: 3}}, {}, Shape()), None, **fields)
    with pytest.raises(PoolFailed, match=reason):
        parse_superblock(source.data[0])


@pytest.mark.parametrize(
    ("blocks", "allocated", "reason"),
    [
        ((2**40 + 1, 9), (0, 0), "1099511627777 blocks of data, there can be 1099511627776"),
        ((9, MAX_BLOCKS + 1), (0, 0), f"{MAX_BLOCKS + 1} blocks of metadata, there can be {MAX_BLOCKS}"),
        ((9, 9), (10, 0), "10 of 9 blocks of data in use"),
        ((9, 9), (0, 2**64 - 1), "of 9 blocks of metadata in use"),
    ],
)
def test_space_maps_that_count_too_much(blocks: tuple[int, int], allocated: tuple[int, int], reason: str) -> None:
    image = Image()
    data = bytearray(image.finish(image.devices({1: {2: 3}}, {}, Shape())).data[0])
    for at, total, used in zip((64, 192), blocks, allocated, strict=True):
        data[at : at + 16] = struct.pack("<QQ", total, used)
    with pytest.raises(PoolFailed, match=reason):
        parse_superblock(sealed(data, SUPERBLOCK_SALT))


def test_blank_cut_and_misplaced_blocks(tmp_path: Path) -> None:
    with pytest.raises(PoolFailed, match="all zeros"):
        parse_superblock(bytes(BLOCK))
    with pytest.raises(PoolFailed, match="512 bytes given"):
        parse_superblock(bytes(512))
    image = Image()
    data = image.finish(image.devices({}, {}, Shape())).data[0]
    with pytest.raises(PoolFailed, match="block 5 is no valid superblock: claims to be block 0"):
        parse_superblock(data, 5)
    (tmp_path / "cut").write_bytes(data[:100])
    with pytest.raises(PoolFailed, match="outside"):
        read_superblock(tmp_path / "cut")
    (tmp_path / "whole").write_bytes(data)
    fd = os.open(tmp_path / "whole", os.O_RDONLY)
    try:
        assert read_superblock(fd) == read_superblock(str(tmp_path / "whole")) == parse_superblock(data)
    finally:
        os.close(fd)
