"""What is not read, each with its reason; and entries that would lead a reader round and round."""

import struct
from collections.abc import Callable

import pytest

from tests.unit.filesystem.ext4.samples import NAMES, Damaged, MemoryVolume, Structures, account, sample
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.image import Image
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE, ROOT_INODE

COMPAT, INCOMPAT, RO_COMPAT = 0x5C, 0x60, 0x64


def changed(name: str, at: int, form: str, value: Callable[[int], int]) -> bytearray:
    """A sample with one field of its superblock changed, and the checksum made right."""
    data = bytearray(sample(name))
    (old,) = struct.unpack_from(form, data, 1024 + at)
    struct.pack_into(form, data, 1024 + at, value(old))
    Structures.of(sample(name)).mend_superblock(data)
    return data


@pytest.mark.parametrize(
    ("at", "bit", "match"),
    [
        (INCOMPAT, 0x1, "compression"),
        (INCOMPAT, 0x4, "needs_recovery"),
        (INCOMPAT, 0x8, "journal_dev"),
        (INCOMPAT, 0x10, "meta_bg"),
        (INCOMPAT, 0x100, "mmp"),
        (INCOMPAT, 0x400, "ea_inode"),
        (INCOMPAT, 0x1000, "dirdata"),
        (INCOMPAT, 0x8000, "inline_data"),
        (INCOMPAT, 0x10000, "encrypt"),
        (INCOMPAT, 0x20000, "casefold"),
        (INCOMPAT, 1 << 30, "incompat feature 0x40000000"),
        (RO_COMPAT, 0x200, "bigalloc"),
        (RO_COMPAT, 0x4000, "shared_blocks"),
        (RO_COMPAT, 0x8000, "verity"),
        (RO_COMPAT, 0x80, "ro_compat feature 0x80"),
        (COMPAT, 1 << 20, "compat feature 0x100000"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_known(name: str, at: int, bit: int, match: str) -> None:
    data = changed(name, at, "<I", lambda old: old | bit)
    with pytest.raises(Unreadable, match=match):
        account(data)


@pytest.mark.parametrize(
    ("at", "form", "value", "match"),
    [
        (0x38, "<H", 0xEF54, "no ext4"),
        (0x3A, "<H", 3, "having errors"),
        (0x3A, "<H", 0, "not unmounted cleanly"),
        (0x4C, "<I", 0, "revision 0"),
        (0x48, "<I", 1, "system 1"),
        (0x18, "<I", 0, "blocks of 1024 bytes"),
        (0x18, "<I", 6, "blocks of 65536 bytes"),
        (0x18, "<I", 0xFFFFFFFF, "blocks of"),
        (0x58, "<H", 128, "inodes of 128 bytes"),
        (0x58, "<H", 192, "inodes of 192 bytes"),
        (0x58, "<H", 8192, "inodes of 8192 bytes"),
        (0x14, "<I", 1, "first data block"),
        (0x54, "<I", 5, "first inode is 5"),
        (0x20, "<I", 0, "0 blocks"),
        (0x28, "<I", 0, "0 inodes a group"),
        (0x04, "<I", 257, "257 blocks on a device of 256"),
        (0x00, "<I", 65, "65 inodes"),
        (0x100, "<I", 0x10, "owners of 16 bits"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_superblocks_that_are_not_read(name: str, at: int, form: str, value: int, match: str) -> None:
    with pytest.raises(Unreadable, match=match):
        account(changed(name, at, form, lambda _: value))


def test_checksums_of_another_type() -> None:
    with pytest.raises(Unreadable, match="checksums of type 2"):
        account(changed("checked", 0x175, "<B", lambda _: 2))


def test_a_device_that_is_no_file_system() -> None:
    for size in (0, 1024, 4096, 1 << 20):
        with pytest.raises(Unreadable):
            account(bytes(size))


def test_a_device_that_was_cut() -> None:
    with pytest.raises(Unreadable, match="on a device of"):
        account(sample("checked")[: 200 * BLOCK_SIZE])


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
    with pytest.raises(Unreadable, match="an entry has the name"):
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
    "acl", [struct.pack("<IHH", 2, 1, 7), struct.pack("<IHH", 1, 3, 7), struct.pack("<IHH", 1, 8, 7)]
)
def test_access_control_lists_that_cannot_be(damaged: Damaged, acl: bytes) -> None:
    """Of another version, with an entry of an unknown kind, with one that runs into those behind it."""
    good = struct.pack("<IHH", 1, 1, 7)
    assert good in damaged.data
    damaged.data[:] = damaged.data.replace(good, acl)
    inode = damaged.inode("folder/below")
    damaged.whole.mend_inode(damaged.data, inode)
    if inode.attribute_block:
        damaged.whole.mend_attributes(damaged.data, inode.attribute_block)
    with pytest.raises(Unreadable, match=f"of inode {inode.number} are damaged: an access control list"):
        account(damaged.data)
