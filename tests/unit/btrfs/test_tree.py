"""Searches over a made-up kernel that answers as the ioctl does, and the items in it."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.btrfs import changed, ioctl, tree
from thinpool.btrfs.tree import ANY, Item, Key, Tree

_HEADER = 32
numbers = st.integers(0, ANY)
keys = st.builds(Key, st.sampled_from((0, 1, 256, 257, ANY - 1, ANY)), st.integers(0, 255), numbers)
small_names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)


class Kernel:
    """Answers searches from a list of items, filling the buffer as fs/btrfs/ioctl.c does."""

    def __init__(self, items: dict[Key, bytes]) -> None:
        self.items = sorted(items.items())
        self.calls = 0

    def __call__(self, _fd: int, request: int, _name: str, argument: bytearray) -> None:
        assert request == ioctl.TREE_SEARCH_V2
        self.calls += 1
        _, first, last, first_offset, last_offset, _, _, first_kind, last_kind, _ = struct.unpack_from(
            "=7Q3L", argument, 0
        )
        (size,) = struct.unpack_from("=Q", argument, 104)
        assert len(argument) == 112 + size
        position, count = 112, 0
        for key, content in self.items:
            if not (first, first_kind, first_offset) <= key <= (last, last_kind, last_offset):
                continue
            if position + _HEADER + len(content) > len(argument):
                break
            struct.pack_into("=QQQLL", argument, position, 7, key.number, key.offset, key.kind, len(content))
            position += _HEADER
            argument[position : position + len(content)] = content
            position += len(content)
            count += 1
        struct.pack_into("=L", argument, 64, count)


@given(
    items=st.dictionaries(keys, st.sampled_from((0, 1, 100, 16_000, 65_000)), max_size=30),
    limits=st.tuples(keys, keys),
)
def test_a_search_gives_all_between_two_keys_in_any_number_of_calls(
    items: dict[Key, int], limits: tuple[Key, Key]
) -> None:
    first, last = sorted(limits)
    content = {key: bytes([index % 256]) * size for index, (key, size) in enumerate(items.items())}
    kernel = Kernel(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ioctl, "call", kernel)
        found = {
            Key(item.number, item.kind, item.offset): bytes(item.buffer[item.at : item.at + item.length])
            for item in Tree(0).items(first, last)
        }
    assert found == {key: value for key, value in content.items() if first <= key <= last}
    assert list(found) == sorted(found)


def test_a_search_that_has_all_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel({Key(256, 1, 0): b"x" * 160})
    monkeypatch.setattr(ioctl, "call", kernel)
    assert len(list(Tree(0).items(Key(256, 1, 0), Key(256, 1, ANY)))) == 1
    assert kernel.calls == 1


def item(kind: int, content: bytes, offset: int = 0) -> Item:
    return Item(300, kind, offset, bytearray(b"before" + content + b"behind"), 6, len(content))


@given(st.lists(small_names, min_size=1, max_size=5), st.integers(256, 1 << 40))
def test_names_of_an_inode(names: Sequence[bytes], directory: int) -> None:
    references = b"".join(struct.pack("<QH", 5, len(name)) + name for name in names)
    assert list(tree.names(item(tree.INODE_REF, references, directory))) == [(directory, name) for name in names]
    extended = b"".join(struct.pack("<QQH", directory, 5, len(name)) + name for name in names)
    assert list(tree.names(item(tree.INODE_EXTREF, extended, 99))) == [(directory, name) for name in names]


@given(numbers, numbers, numbers, numbers, st.integers(0, 0xFFFFFFFF), st.booleans())
def test_an_inode(generation: int, changed_in: int, size: int, occupied: int, links: int, directory: bool) -> None:
    mode = 0o040755 if directory else 0o100644
    content = struct.pack("<5Q4L", generation, changed_in, size, occupied, 0, links, 1, 2, mode) + bytes(108)
    assert tree.inode(item(tree.INODE_ITEM, content)) == tree.Inode(
        generation, changed_in, size, occupied, links, directory
    )


@given(numbers, numbers, numbers, st.integers(0, 2000))
def test_an_extent(made: int, address: int, size: int, inline: int) -> None:
    whole = struct.pack("<QQBBHBQQQQ", made, 1, 0, 0, 0, 1, address, size, 3, 4)
    assert tree.extent(item(tree.EXTENT_DATA, whole)) == tree.Extent(made, address, size)
    within = struct.pack("<QQBBHB", made, inline, 0, 0, 0, 0) + b"x" * inline
    assert tree.extent(item(tree.EXTENT_DATA, within)) == tree.Extent(made, None, inline)


@given(st.dictionaries(st.integers(1, 2000), st.one_of(st.none(), st.integers(0, 9)), max_size=400))
def test_numbers_are_looked_up_in_runs_that_end_with_a_directory(numbers: dict[int, int | None]) -> None:
    ordered = dict(sorted(numbers.items()))
    runs = list(changed._runs(ordered))
    assert [number for run in runs for number in run] == list(ordered)
    assert all(ordered[number] is None for run in runs for number in run[:-1])
    assert all(len(run) <= 256 for run in runs)


def test_the_numbers_of_ioctls_are_those_of_the_header() -> None:
    # as a C compiler gives them for include/uapi/linux/btrfs.h on x86-64
    assert ioctl.TREE_SEARCH_V2 == 0xC0709411
    assert ioctl._SNAP_DESTROY == 0x5000940F
    assert ioctl._SNAP_CREATE_V2 == 0x50009417
    assert ioctl._SUBVOL_CREATE_V2 == 0x50009418
    assert ioctl._SUBVOL_GETFLAGS == 0x80089419
    assert ioctl._SUBVOL_SETFLAGS == 0x4008941A
    assert ioctl._START_SYNC == 0x80089418
    assert ioctl._WAIT_SYNC == 0x40089416
    assert ioctl._INO_LOOKUP == 0xD0009412
    assert ioctl._FS_INFO == 0x8400941F
    assert ioctl._GET_SUBVOL_INFO == 0x81F8943C
    assert ioctl._SNAP_DESTROY_V2 == 0x5000943F
