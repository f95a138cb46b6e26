"""The checksums of ext4's metadata.

crc32c where the file system has `metadata_csum` (the kernel's `ext4_chksum`), else crc16 of the group descriptors where
it has `gdt_csum`. The kernel stores crc32c without the inversion at the end. Here a running value is in the
standard form, with the inversion, as the crc32c package takes and gives it; `stored` turns it into the kernel's.
"""

import struct
from collections.abc import Callable

import attrs

_ALL = 0xFFFFFFFF
_CRC16_REFLECTED = 0xA001  # lib/crc16.c
_LE32 = struct.Struct("<I")
_LE32_TWICE = struct.Struct("<II")
_LE64 = struct.Struct("<Q")

Bytes = bytes | bytearray | memoryview
Crc = Callable[[Bytes, int], int]


def crc32c() -> Crc:
    """The function, loaded when it is needed."""
    from crc32c import crc32c as function  # noqa: PLC0415 - it looks up its own version, which costs every command

    return function


@attrs.frozen(eq=False)
class Checksums:
    """The crc32c of one file system.

    Attributes:
        crc: the function: data, and the value to go on from.
        seed: the value that every checksum of the file system starts from.
    """

    crc: Crc
    seed: int

    @classmethod
    def of(cls, uuid: bytes, stored_seed: int | None) -> "Checksums":
        """With the seed that the superblock holds, or else the one that follows from the UUID."""
        crc = crc32c()
        return cls(crc, crc(uuid, 0) if stored_seed is None else stored_seed ^ _ALL)

    def of_inode(self, number: int, generation: int) -> int:
        """The value that the checksums of an inode and of its own blocks start from."""
        return self.crc(_LE32_TWICE.pack(number, generation), self.seed)

    def of_group(self, group: int) -> int:
        """The value that the checksum of a group's descriptor starts from."""
        return self.crc(_LE32.pack(group), self.seed)

    def of_block(self, block: int) -> int:
        """The value that the checksum of a shared block starts from."""
        return self.crc(_LE64.pack(block), self.seed)

    def over(self, value: int, *parts: Bytes) -> int:
        """The value to be stored for some parts after a starting value."""
        for part in parts:
            value = self.crc(part, value)
        return value ^ _ALL


def stored(value: int) -> int:
    """The form in which the kernel stores a value of the standard form."""
    return value ^ _ALL


def crc16(data: Bytes, value: int = 0xFFFF) -> int:
    """The kernel's crc16, going on from a value."""
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (_CRC16_REFLECTED if value & 1 else 0)
    return value
