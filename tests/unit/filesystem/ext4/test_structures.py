"""Structures that cannot be: entries that lead round and round, sizes and places beyond all bounds."""

import struct

import pytest

from tests.unit.filesystem.ext4.samples import NAMES, Damaged, MemoryVolume, account, changed, sample
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, ROOT_INODE


@pytest.fixture(params=NAMES)
def damaged(request: pytest.FixtureRequest) -> Damaged:
    return Damaged(request.param)


@pytest.mark.parametrize("to", ["", "folder"])
def test_a_directory_that_holds_one_above_it(damaged: Damaged, to: str) -> None:
    damaged.redirect("folder/below", b"file", damaged.number(to))
    with pytest.raises(Unreadable, match=f"directory {damaged.number('folder/below')} names|says that it is elsewhere"):
        account(damaged.data)


def test_a_root_that_holds_itself(damaged: Damaged) -> None:
    damaged.redirect("", b"fragments", ROOT_INODE)
    with pytest.raises(Unreadable, match="directory 2 names the root directory"):
        account(damaged.data)


def test_a_directory_with_two_names(damaged: Damaged) -> None:
    damaged.redirect("", b"fragments", damaged.number("folder"))
    with pytest.raises(Unreadable, match="directory 2 names a directory twice"):
        account(damaged.data)


def test_a_directory_that_is_elsewhere(damaged: Damaged) -> None:
    damaged.redirect("", b"fragments", damaged.number("folder/below"))
    with pytest.raises(Unreadable, match="in directory 2, and says that it is elsewhere"):
        account(damaged.data)


def test_an_entry_of_another_type(damaged: Damaged) -> None:
    damaged.redirect("", b"fragments", damaged.number("fragments"), kind=7)
    with pytest.raises(Unreadable, match="with another type"):
        account(damaged.data)


def test_an_entry_of_an_inode_that_is_not_in_use(damaged: Damaged) -> None:
    damaged.redirect("", b"fragments", 40, kind=1)
    with pytest.raises(Unreadable, match="inode 40 has a name, but is not in use"):
        account(damaged.data)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_of_an_inode_that_holds_quotas(name: str) -> None:
    number = Damaged(name).number("data")
    with pytest.raises(Unreadable, match=f"directory 2 names the reserved inode {number}"):
        account(changed(name, 0x240, "<I", lambda _: number))


@pytest.mark.parametrize("length", [0, 4, 8, 13, 40, 4088, 4092, 8192, 65535])
def test_an_entry_of_a_length_that_cannot_be(damaged: Damaged, length: int) -> None:
    """`.` of an ordinary directory, of which no length but its own leads to an entry."""
    block = next(block for block, inode, _ in damaged.whole.leaves if inode.number == damaged.number("folder"))
    struct.pack_into("<H", damaged.data, block * BLOCK_SIZE + 4, length)
    damaged.whole.mend_leaf(damaged.data, block, damaged.inode("folder"), is_tree=False)
    with pytest.raises(Unreadable, match=f"directory {damaged.number('folder')} is damaged"):
        account(damaged.data)


@pytest.mark.parametrize(("offset", "size"), [(4092, 8), (4096, 1), (65535, 1), (40, 4), (4000, 1 << 31)])
def test_a_value_that_lies_elsewhere(damaged: Damaged, offset: int, size: int) -> None:
    """In the block of attributes: beyond its end, or in the list of names."""
    block = damaged.whole.attributes[0]
    struct.pack_into("<H4xI", damaged.data, block * BLOCK_SIZE + 32 + 2, offset, size)
    damaged.whole.mend_attributes(damaged.data, block)
    with pytest.raises(Unreadable, match=f"a value of {size} bytes at {offset}"):
        account(damaged.data)


@pytest.mark.parametrize("name", [b"data\0bcde", b"data/bcde", b"long-abcd"])
def test_a_name_that_cannot_be(damaged: Damaged, name: bytes) -> None:
    at, block, is_tree = damaged.entry("", b"fragments")
    damaged.data[at + 8 : at + 8 + len(name)] = name
    if name == b"long-abcd":  # a name that is there already
        damaged.data[at + 6] = 4
    damaged.whole.mend_leaf(damaged.data, block, damaged.inode(""), is_tree)
    with pytest.raises(Unreadable, match=r"an entry has the name|is there twice"):
        account(damaged.data)


def test_a_map_that_leads_to_itself() -> None:
    """Three levels of one block that names itself would be a thousand million blocks."""
    damaged = Damaged("maps")
    block = damaged.whole.nodes[0][0]
    struct.pack_into("<1024I", damaged.data, block * BLOCK_SIZE, *[block] * 1024)
    damaged.patch("fragments", 0x28, "<15I", *[block] * 15)
    with pytest.raises(Unreadable, match=r"extent|map"):
        account(damaged.data)


def test_a_map_of_empty_maps() -> None:
    damaged = Damaged("maps")
    pointers = damaged.whole.nodes[0][0]
    empty = 255
    struct.pack_into("<1024I", damaged.data, pointers * BLOCK_SIZE, *[empty] * 1024)
    damaged.data[empty * BLOCK_SIZE :] = bytes(BLOCK_SIZE)
    damaged.patch("fragments", 0x28, "<15I", *[0] * 12, empty, pointers, pointers)
    with pytest.raises(Unreadable, match="a block of its map"):
        account(damaged.data)


def test_a_tree_of_extents_that_leads_to_itself() -> None:
    damaged = Damaged("checked")
    block, inode = damaged.whole.nodes[0]
    struct.pack_into("<HHHH", damaged.data, block * BLOCK_SIZE, 0xF30A, 1, 340, 1)
    struct.pack_into("<IIHH", damaged.data, block * BLOCK_SIZE + 12, 0, block, 0, 0)
    damaged.whole.mend_node(damaged.data, block, inode)
    with pytest.raises(Unreadable, match="header of a node"):
        account(damaged.data)


@pytest.mark.parametrize("name", ["checked", "unchecked"])
@pytest.mark.parametrize(
    ("start", "length"),
    [(3, 1), (4, 0), (4, 3), (4, 32768 + 3), (0xFFFFFFFF, 2), (20 << 20, 1)],
    ids=["before", "empty", "overlapping", "overlapping, unwritten", "beyond the last", "after the next"],
)
def test_extents_out_of_order(name: str, start: int, length: int) -> None:
    """The third of the extents of a file that has one in every second block."""
    damaged = Damaged(name)
    block, inode = damaged.whole.nodes[0]
    struct.pack_into("<IH", damaged.data, block * BLOCK_SIZE + 12 + 2 * 12, start, length)
    damaged.whole.mend_node(damaged.data, block, inode)
    if start == 3:  # which is free, so put the second there too
        struct.pack_into("<I", damaged.data, block * BLOCK_SIZE + 12 + 12, start)
        damaged.whole.mend_node(damaged.data, block, inode)
    with pytest.raises(Unreadable, match=f"inode {inode.number} is damaged: an extent at"):
        account(damaged.data)


@pytest.mark.parametrize("flag", [0x800, 0x100000, 0x200000, 0x10000000, 0x40000000])
def test_inodes_of_a_kind_that_is_not_known(damaged: Damaged, flag: int) -> None:
    damaged.patch("fragments", 0x20, "<I", damaged.inode("fragments").flags | flag)
    with pytest.raises(Unreadable, match=f"inode {damaged.number('fragments')} is "):
        account(damaged.data)


def test_a_file_without_end_is_read_where_it_has_data(damaged: Damaged) -> None:
    damaged.patch("fragments", 0x04, "<I", 0xFFFFFFFF)
    damaged.patch("fragments", 0x6C, "<I", 0x7FFFFFFF)
    assert len(account(damaged.data)) == len(account(sample("maps")))


def test_an_inode_beyond_the_last() -> None:
    image = Image.open(MemoryVolume(sample("checked")))
    for number in (0, -1, 65, 1 << 40):
        with pytest.raises(Unreadable, match="of 64"):
            image.inode(number)
    assert image.inode(64) is None


@pytest.mark.parametrize(
    ("at", "form", "value", "match"),
    [
        (0x00, "<H", 0o644, "mode 644"),
        (0x00, "<H", 0o130644, "mode 130644"),
        (0x6C, "<I", 1 << 31, "bytes"),
        (0x68, "<I", 256, "its attributes are at block 256"),
        (0x68, "<I", 1, "are damaged: block 1 holds none"),
        (0x80, "<H", 33, "33 bytes of further fields"),
        (0x80, "<H", 132, "132 bytes of further fields"),
        (0x84, "<I", 1_000_000_000 << 2, "1000000000 nanoseconds"),
        (0x88, "<I", 0xFFFFFFFF, "nanoseconds"),
    ],
)
def test_fields_of_an_inode_that_cannot_be(damaged: Damaged, at: int, form: str, value: int, match: str) -> None:
    damaged.patch("fragments", at, form, value)
    with pytest.raises(Unreadable, match=match):
        account(damaged.data)


@pytest.mark.parametrize("size", [0, 100, 4097, 8192, 1 << 31])
def test_sizes_of_a_directory_that_cannot_be(damaged: Damaged, size: int) -> None:
    damaged.patch("folder", 0x04, "<I", size)
    with pytest.raises(Unreadable, match=f"directory {damaged.number('folder')} is damaged"):
        account(damaged.data)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (struct.pack("<IHH", 1, 1, 7), struct.pack("<IHH", 2, 1, 7)),
        (struct.pack("<IHH", 1, 1, 7), struct.pack("<IHH", 1, 3, 7)),
        (struct.pack("<4H", 0x10, 7, 0x20, 4), struct.pack("<4H", 0x10, 7, 0x08, 4)),
    ],
    ids=["another version", "an unknown kind", "beyond its end"],
)
def test_access_control_lists_that_cannot_be(damaged: Damaged, good: bytes, bad: bytes) -> None:
    assert good in damaged.data
    damaged.data[:] = damaged.data.replace(good, bad)
    inode = damaged.inode("folder/below")
    damaged.whole.mend_inode(damaged.data, inode)
    if inode.attribute_block:
        damaged.whole.mend_attributes(damaged.data, inode.attribute_block)
    with pytest.raises(Unreadable, match=f"of inode {inode.number} are damaged: an access control list"):
        account(damaged.data)


def test_a_list_of_attributes_without_end(damaged: Damaged) -> None:
    block = damaged.whole.attributes[0]
    entry = struct.pack("<BBHIII", 1, 1, 0, 0, 0, 0) + b"n\0\0\0"
    names = (entry * 204)[: BLOCK_SIZE - 32]
    damaged.data[block * BLOCK_SIZE + 32 : (block + 1) * BLOCK_SIZE] = names
    damaged.whole.mend_attributes(damaged.data, block)
    with pytest.raises(Unreadable, match="their list has no end"):
        account(damaged.data)
