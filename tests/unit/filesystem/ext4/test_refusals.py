"""File systems that are not read, each with its reason."""

import pytest

from tests.unit.filesystem.ext4.samples import NAMES, account, changed, sample
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.superblock import BLOCK_SIZE

COMPAT, INCOMPAT, RO_COMPAT = 0x5C, 0x60, 0x64


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
