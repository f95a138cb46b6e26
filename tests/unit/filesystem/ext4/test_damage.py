"""Damaged file systems give an error or a tree, and nothing else; where a checksum covers the damage, no other tree.

Each case is made from its number alone, so a failure is repeated by the number that it shows.
"""

import random
import struct
from collections.abc import Callable

import pytest

from tests.unit.filesystem.ext4.samples import NAMES, Structures, account, sample
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE

FLIPS = 4_000
DAMAGES = 2_500
LONG = 20

Damage = Callable[[random.Random, bytearray, Structures], None]


def outcome(data: bytearray) -> list[tuple[object, ...]] | None:
    """The tree, or None where it cannot be read."""
    try:
        return account(data)
    except Unreadable:
        return None


def rounds(number: int, *, long_run: bool) -> range:
    return range(number * LONG if long_run else number)


def covered_blocks(whole: Structures) -> list[int]:
    """Blocks that are read and whose every byte a checksum covers: all of the metadata that is read."""
    superblock = whole.image.superblock
    table = whole.image.groups.all[0].table // BLOCK_SIZE
    tables = range(table, table + superblock.table_size // BLOCK_SIZE)
    blocks = {0, 1, *tables, *(block for block, _ in whole.nodes), *(block for block, *_ in whole.leaves)}
    return sorted(blocks | set(whole.attributes))


def test_a_flipped_bit_that_a_checksum_covers_never_gives_another_tree(long_run: bool) -> None:
    pristine = sample("checked")
    whole = Structures.of(pristine)
    expected = account(pristine)
    blocks = covered_blocks(whole)
    data = bytearray(pristine)
    refused = 0
    for number in rounds(FLIPS, long_run=long_run):
        dice = random.Random(number)
        at = dice.choice(blocks) * BLOCK_SIZE + dice.randrange(BLOCK_SIZE)
        data[at] ^= 1 << dice.randrange(8)
        found = outcome(data)
        assert found is None or found == expected, number
        refused += found is None
        data[at] = pristine[at]
    assert refused > FLIPS // 4


def covered(whole: Structures) -> dict[str, range]:
    """One of each structure with a checksum, as far as that goes."""
    leaf = next(block for block, _, is_tree in whole.leaves if not is_tree)
    tree = next(block for block, _, is_tree in whole.leaves if is_tree)
    inode = whole.inode_at(whole.inodes[-1])
    node = whole.nodes[0][0]
    return {
        "superblock": range(1024, 2048),
        "group": range(BLOCK_SIZE, BLOCK_SIZE + 64),
        "inode": range(inode, inode + 256),
        "node": range(node * BLOCK_SIZE, node * BLOCK_SIZE + 12 + 12 * 340 + 4),
        "leaf": range(leaf * BLOCK_SIZE, (leaf + 1) * BLOCK_SIZE),
        "tree": range(tree * BLOCK_SIZE, tree * BLOCK_SIZE + 48),
        "attributes": range(whole.attributes[0] * BLOCK_SIZE, (whole.attributes[0] + 1) * BLOCK_SIZE),
    }


def test_every_checksum_is_looked_at() -> None:
    pristine = sample("checked")
    dice = random.Random(0)
    for kind, places in covered(Structures.of(pristine)).items():
        for _ in range(60):
            data = bytearray(pristine)
            data[dice.choice(places)] ^= 1 << dice.randrange(8)
            assert outcome(data) is None, kind


@pytest.mark.parametrize("name", NAMES)
def test_damage_that_checksums_do_not_tell(name: str, long_run: bool) -> None:
    pristine = sample(name)
    whole = Structures.of(pristine)
    refused = 0
    for number in rounds(DAMAGES, long_run=long_run):
        dice = random.Random(f"{name} {number}")
        data = bytearray(pristine)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            dice.choice(DAMAGE)(dice, data, whole)
        try:
            refused += outcome(data) is None
        except BaseException as error:
            error.add_note(f"case {number} of {name}")
            raise
    assert refused > DAMAGES // 5


def value(dice: random.Random, size: int, old: int) -> int:
    """Something for a field of so many bytes."""
    limit = 1 << 8 * size
    near = (old + dice.choice((-1, 1, 4, -4, 8, 4096))) % limit
    edge = dice.choice((0, 1, 2, limit - 1, limit >> 1, (limit >> 1) - 1, limit - 2, 4, 12, 8))
    return dice.choice(
        (
            near,
            edge % limit,
            dice.randrange(limit),
            dice.randrange(min(limit, 300)),
            old ^ 1 << dice.randrange(8 * size),
        )
    )


def strike(dice: random.Random, data: bytearray, start: int, length: int) -> None:
    """Change one field of 1, 2 or 4 bytes, or put a piece of the file system there."""
    if dice.random() < 0.05:
        size = min(dice.choice((4, 12, 64)), length)
        source = dice.randrange(len(data) - size)
        at = start + dice.randrange(length - size + 1)
        data[at : at + size] = data[source : source + size]
        return
    size = dice.choice((1, 2, 4))
    at = start + dice.randrange(length // size) * size
    form = {1: "<B", 2: "<H", 4: "<I"}[size]
    struct.pack_into(form, data, at, value(dice, size, struct.unpack_from(form, data, at)[0]))


def superblock(dice: random.Random, data: bytearray, whole: Structures) -> None:
    strike(dice, data, 1024, dice.choice((0x68, 0x288)))
    whole.mend_superblock(data)


def group(dice: random.Random, data: bytearray, whole: Structures) -> None:
    strike(dice, data, BLOCK_SIZE, whole.image.superblock.descriptor_size)
    whole.mend_group(data)


def inode(dice: random.Random, data: bytearray, whole: Structures) -> None:
    target = dice.choice(whole.inodes)
    at = whole.inode_at(target)
    start, length = dice.choice(((0, 0x28), (0x28, 60), (0x28, 24), (0x64, 0x1C), (0x80, 0x20), (0xA0, 0x60)))
    strike(dice, data, at + start, length)
    whole.mend_inode(data, target)


def node(dice: random.Random, data: bytearray, whole: Structures) -> None:
    block, target = dice.choice(whole.nodes)
    strike(dice, data, block * BLOCK_SIZE, dice.choice((12, 96)))
    whole.mend_node(data, block, target)


def leaf(dice: random.Random, data: bytearray, whole: Structures) -> None:
    block, target, is_tree = dice.choice(whole.leaves)
    strike(dice, data, block * BLOCK_SIZE, dice.choice((24, 96, BLOCK_SIZE)))
    whole.mend_leaf(data, block, target, is_tree)


def attributes(dice: random.Random, data: bytearray, whole: Structures) -> None:
    block = dice.choice(whole.attributes)
    strike(dice, data, block * BLOCK_SIZE, dice.choice((32, 400, BLOCK_SIZE)))
    whole.mend_attributes(data, block)


DAMAGE: tuple[Damage, ...] = (superblock, group, inode, inode, inode, inode, node, leaf, leaf, attributes)
