"""Random pools written in memory: every answer against one counted the plain way."""

from collections.abc import Mapping
from itertools import pairwise
from random import Random

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.metadata.image import Devices, Image, MemorySource, Shape, difference, exclusive, spread
from thinpool.metadata.books import Books
from thinpool.metadata.mappings import BlockRange
from thinpool.metadata.sweep import Limits

SPAN = 400
"""Virtual blocks of a device."""


@attrs.frozen
class Pool:
    """A pool, and what it was at an earlier point."""

    before: Devices
    now: Devices
    shapes: Mapping[int, Shape]
    top: Shape

    def write(self, *, held: bool = False, stale: bool = False) -> MemorySource:
        image = Image(data_blocks=SPAN * 64)
        roots = image.devices(self.now, self.shapes, self.top)
        pinned = image.devices(self.before, self.shapes, self.top) if stale else roots
        return image.finish(roots, pinned if held else None)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    shapes = [Shape(6, 3), Shape(6, 9), Shape(6, 2)]
    devices: dict[int, dict[int, int]] = {}
    before: dict[int, dict[int, int]] = {}
    version = 0
    steps = draw(st.integers(1, 14))
    pinned_at = draw(st.integers(0, steps))
    for step in range(steps):
        if step == pinned_at:
            before = {key: dict(mappings) for key, mappings in devices.items()}
        kind = draw(st.sampled_from(["new", "snap", "write", "write", "write", "discard", "delete"]))
        new_id = draw(st.integers(0, 2**24 - 1))
        if kind == "new" or not devices:
            devices.setdefault(new_id, {})
        picked = draw(st.sampled_from(sorted(devices)))
        start, length = draw(st.integers(0, SPAN - 1)), draw(st.integers(1, 60))
        blocks = range(start, min(SPAN, start + length))
        if kind == "snap":
            devices.setdefault(new_id, dict(devices[picked]))
        elif kind == "write":
            devices[picked].update({block: version * SPAN + block for block in blocks})
            version += 1
        elif kind == "discard":
            devices[picked] = {key: value for key, value in devices[picked].items() if key not in blocks}
        elif kind == "delete":
            del devices[picked]
    chosen = {key: draw(st.sampled_from(shapes)) for key in {*devices, *before}}
    return Pool(before, devices, chosen, draw(st.sampled_from([Shape(2, 2), Shape(50, 50)])))


@settings(max_examples=150, deadline=None)
@given(pools())
def test_devices_details_and_mappings_are_what_was_written(pool: Pool) -> None:
    with Books(pool.write()) as books:
        assert [device.thin_id for device in books.devices()] == sorted(pool.now)
        for thin_id, mappings in pool.now.items():
            details = books.details(thin_id)
            assert (details.mapped_blocks, details.transaction_id) == (len(mappings), thin_id * 3)
            assert (details.creation_time, details.snapshotted_time) == (thin_id, thin_id + 1)
            assert thin_id in books
            assert list(books.mappings(thin_id)) == sorted(mappings.items())
            assert list(books.mappings(thin_id, 77)) == sorted(m for m in mappings.items() if m[0] >= 77)


@settings(max_examples=150, deadline=None)
@given(pools())
def test_difference_of_any_two_devices(pool: Pool) -> None:
    with Books(pool.write()) as books:
        for old, old_mappings in pool.now.items():
            for new, new_mappings in pool.now.items():
                expected = difference(old_mappings, new_mappings)
                ranges = list(books.difference(old, new))
                assert spread(ranges) == expected
                assert all(_apart(a, b) for a, b in pairwise(ranges))
                held = sum(after is not None for _, _, after in expected)
                assert books.difference_blocks(new, old) == held


def _apart(first: BlockRange, second: BlockRange) -> bool:
    """Whether two ranges could not have been one."""
    end = first.start + first.length
    runs_on = [
        after is None if before is None else after == before + first.length
        for before, after in ((first.old, second.old), (first.new, second.new))
    ]
    return not (second.start == end and all(runs_on))


@settings(max_examples=150, deadline=None)
@given(pools())
def test_usage_by_reference_counts(pool: Pool) -> None:
    with Books(pool.write()) as books:
        usage = {device.thin_id: (device.mapped_blocks, device.exclusive_blocks) for device in books.usage()}
        some = sorted(pool.now)[::2]
        expected = exclusive(pool.now)
        assert books.exclusive(some) == {key: expected[key] for key in some}
        assert [books.exclusive_blocks(key) for key in some] == [expected[key] for key in some]
    assert usage == {key: (len(pool.now[key]), expected[key]) for key in pool.now}


@settings(max_examples=150, deadline=None)
@given(pools())
def test_usage_beside_a_metadata_snapshot(pool: Pool) -> None:
    expected = exclusive(pool.now)
    for stale in (False, True):
        with Books(pool.write(held=True, stale=stale)) as books:
            assert {device.thin_id: device.exclusive_blocks for device in books.usage()} == expected


@settings(max_examples=150, deadline=None)
@given(pools())
def test_usage_of_the_metadata_snapshot_itself(pool: Pool) -> None:
    expected = exclusive(pool.before)
    with Books(pool.write(held=True, stale=True), held=True) as books:
        assert {device.thin_id: device.exclusive_blocks for device in books.usage()} == expected
        assert books.exclusive(expected) == expected
        assert [device.thin_id for device in books.devices()] == sorted(pool.before)


@settings(max_examples=200, deadline=None)
@given(pools(), st.randoms(use_true_random=False), st.sampled_from([1, 2, 5, 256]), st.sampled_from([0, 1, 4, 1000]))
def test_layers_beside_their_parents(pool: Pool, chance: Random, layers: int, nodes: int) -> None:
    """Whatever the parents are, and however few nodes fit into memory at once."""
    parents = {key: chance.choice([None, *pool.now]) for key in pool.now}
    expected = exclusive(pool.now)
    own = {
        key: 0
        if parent is None
        else sum(after is not None for _, _, after in difference(pool.now[parent], pool.now[key]))
        for key, parent in parents.items()
    }
    limits = Limits(layers=layers, layer_nodes=nodes, group_nodes=nodes)
    for held in (False, True):
        for stale in (False, True):
            with Books(pool.write(held=held, stale=stale)) as books:
                found = books.layers(parents.items(), limits)
                assert {key: usage.mapped_blocks for key, usage in found.items()} == {
                    key: len(mappings) for key, mappings in pool.now.items()
                }
                assert {key: usage.exclusive_blocks for key, usage in found.items()} == expected
                assert {key: usage.own_blocks for key, usage in found.items()} == own
