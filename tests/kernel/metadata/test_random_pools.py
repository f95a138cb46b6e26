"""A pool that a real kernel changes at random; after each change every answer against the thin tools'."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.metadata.pool import Dump, RandomPool, Usage, thin_delta, thin_dump, thin_ls
from tests.unit.metadata.image import difference, spread
from thinpool.metadata import Books

pytestmark = pytest.mark.kernel

LONG = bool(os.environ.get("THINPOOL_TEST_LONG"))
SEEDS = range(80 if LONG else 8)
ROUNDS = 25


def usage_of(books: Books) -> Usage:
    return {
        device.thin_id: (device.mapped_blocks, device.exclusive_blocks, device.mapped_blocks - device.exclusive_blocks)
        for device in books.usage()
    }


def compare(pool: RandomPool, chance: random.Random) -> None:
    """Reserve a metadata snapshot and compare all that it and the live metadata, which are the same now, say."""
    with pool.reserved():
        expected, dump = thin_ls(pool.metadata), thin_dump(pool.metadata)
        for held in (False, True):
            with Books.open(pool.metadata, held=held) as books:
                assert usage_of(books) == expected
                compare_layers(books, chance, expected, dump)
                assert books.unchanged()
        with Books.open(pool.metadata, held=True) as books:
            compare_mappings(books, dump)
            for step in range(2):
                old, new = chance.choice(list(dump)), chance.choice(list(dump))
                found = spread(books.difference(old, new))
                assert found == difference(dump[old], dump[new])
                assert books.difference_blocks(new, old) == sum(after is not None for _, _, after in found)
                if step == 0 and old != new:
                    assert found == thin_delta(pool.metadata, old, new)


def compare_layers(books: Books, chance: random.Random, expected: Usage, dump: Dump) -> None:
    """Each device as a layer on another one, or on none: related or not makes no difference to what is counted."""
    parents = {thin_id: chance.choice([None, *dump]) for thin_id in dump}
    for thin_id, usage in books.layers(parents.items()).items():
        parent = parents[thin_id]
        assert (usage.mapped_blocks, usage.exclusive_blocks) == expected[thin_id][:2]
        held = {} if parent is None else dump[parent]
        own = sum(held.get(block) != data for block, data in dump[thin_id].items())
        assert usage.own_blocks == (0 if parent is None else own)


def compare_mappings(books: Books, dump: Dump) -> None:
    assert [device.thin_id for device in books.devices()] == sorted(dump)
    for thin_id, mappings in dump.items():
        assert dict(books.mappings(thin_id)) == mappings


@pytest.mark.parametrize("seed", SEEDS)
def test_random_pools(seed: int, disk_factory: Callable[[int], Path], thin_check: Callable[[Path], None]) -> None:
    chance = random.Random(seed)
    metadata = disk_factory(64 << 20)
    with RandomPool.active(f"random{seed}", metadata, chance, span=chance.choice((300, 3000, 20_000))) as pool:
        for _ in range(ROUNDS):
            for _ in range(chance.randrange(1, 4)):
                pool.mutate()
            if pool.devices:
                compare(pool, chance)
    thin_check(metadata)


def test_usage_of_a_pool_that_has_left_its_metadata_snapshot_behind(
    disk_factory: Callable[[int], Path], thin_check: Callable[[Path], None]
) -> None:
    chance = random.Random(7)
    metadata = disk_factory(64 << 20)
    with RandomPool.active("stale", metadata, chance, span=3000) as pool:
        for _ in range(10):
            pool.mutate()
        for _ in range(20 if LONG else 5):
            with pool.reserved():
                before = thin_ls(metadata)
                for _ in range(4):
                    pool.mutate()
                with Books.open(metadata) as books:
                    now = usage_of(books)
                with Books.open(metadata, held=True) as books:
                    assert usage_of(books) == before
            with pool.reserved():
                assert thin_ls(metadata) == now
    thin_check(metadata)
