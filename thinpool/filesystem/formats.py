"""The file systems a layer can have: made on a fresh thin device, mounted, grown online.

A thin device reads as zeros until it is written (the pool zeroes each block it provisions), so mke2fs may leave inode
tables and journal unwritten *and* mark them as initialised: nothing is zeroed in the base, and no child repeats a lazy
initialisation. Growing is one ioctl on a mounted file system, without a tool.
"""

import fcntl
import os
import shlex
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import attrs

from thinpool.crashpoints import point
from thinpool.errors import ConfigError, MountError, PoolFull, ToolError
from thinpool.filesystem import mounts
from thinpool.filesystem.tools import tool
from thinpool.units import MIB, human_size

_EXT4_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
_EXT4_BLOCK = 4096
_EXT4_RESIZE_FS = 0x40086610  # EXT4_IOC_RESIZE_FS, include/uapi/linux/ext4.h
_XFS_GEOMETRY = 0x8100587E  # XFS_IOC_FSGEOMETRY, fs/xfs/libxfs/xfs_fs.h
_XFS_GROW_DATA = 0x4010586E  # XFS_IOC_FSGROWFSDATA, fs/xfs/libxfs/xfs_fs.h


class FileSystem(Protocol):
    """One type of file system, as layers use it."""

    @property
    def name(self) -> str:
        """The type, as in mount -t."""

    @property
    def minimum(self) -> int:
        """The smallest size in bytes that is of use."""

    def make(self, device: Path, arguments: Sequence[str] = ()) -> None:
        """Write an empty file system to a device that reads as zeros; arguments go to the mkfs program."""

    def options(self, *, immutable: bool) -> tuple[str, ...]:
        """Mount options that the type needs."""

    def grow(self, root: int, size: int) -> None:
        """Extend a mounted file system, open at its root, to a size in bytes that its device already has."""


@attrs.frozen
class Ext4:
    """ext4 with one fixed set of features, whatever /etc/mke2fs.conf says.

    4 KiB blocks and 256-byte inodes also on small devices, where mke2fs would choose smaller ones; no reserved blocks,
    which serve nobody in a layer.
    """

    name: str = "ext4"
    minimum: int = 16 * MIB

    def make(self, device: Path, arguments: Sequence[str] = ()) -> None:
        """Run mke2fs; what it reads from the device is nothing but zeros."""
        tool("mke2fs").run(
            "-q", "-F", "-t", "ext4", "-b", str(_EXT4_BLOCK), "-I", "256", "-m", "0",
            "-O", f"none,{_EXT4_FEATURES}",
            "-E", "assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0",
            *arguments, str(device),
        )  # fmt: skip

    def options(self, *, immutable: bool) -> tuple[str, ...]:
        """An immutable layer's superblock is read-only."""
        return ("ro",) if immutable else ()

    def grow(self, root: int, size: int) -> None:
        """EXT4_IOC_RESIZE_FS: online, the kernel writes each step through its journal."""
        _grow("ext4", root, _EXT4_RESIZE_FS, struct.pack("=Q", size // _EXT4_BLOCK), size)


@attrs.frozen
class Xfs:
    """xfs; snapshots of one base share its uuid, which mount must be told to accept."""

    name: str = "xfs"
    minimum: int = 300 * MIB

    def make(self, device: Path, arguments: Sequence[str] = ()) -> None:
        """Run mkfs.xfs, without discarding what was never written."""
        tool("mkfs.xfs").run("-q", "-f", "-K", *arguments, str(device))

    def options(self, *, immutable: bool) -> tuple[str, ...]:
        """`nouuid` as the base's uuid is in every layer."""
        return ("nouuid", "ro") if immutable else ("nouuid",)

    def grow(self, root: int, size: int) -> None:
        """XFS_IOC_FSGROWFSDATA to the size in blocks, the share of inodes as it is."""
        geometry = bytearray(256)
        fcntl.ioctl(root, _XFS_GEOMETRY, geometry, True)  # noqa: FBT003 - fcntl.ioctl takes it by position
        block_size, _, _, _, _, inode_percent = struct.unpack_from("=IIIIIxxxxI", _geometry_head(geometry))
        _grow("xfs", root, _XFS_GROW_DATA, struct.pack("=QIxxxx", size // block_size, inode_percent), size)


def _geometry_head(geometry: bytearray) -> bytes:
    # struct xfs_fsop_geom: blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct
    words = struct.unpack_from("=8I", geometry)
    return struct.pack("=IIIIIxxxxI", words[0], words[1], words[2], words[3], words[4], words[7])


def _grow(name: str, root: int, request: int, argument: bytes, size: int) -> None:
    try:
        fcntl.ioctl(root, request, argument)
    except OSError as error:
        raise MountError(f"cannot grow {name} to {human_size(size)}: {os.strerror(error.errno or 0)}") from error


_TYPES: dict[str, FileSystem] = {"ext4": Ext4(), "xfs": Xfs()}


def file_system(name: str) -> FileSystem:
    """The file system of that type.

    Raises:
        ConfigError: not one that layers can have.
    """
    try:
        return _TYPES[name]
    except KeyError:
        raise ConfigError(f"dm.fs={name}: accepted are {', '.join(_TYPES)}") from None


def make_base(fs: FileSystem, device: Path, arguments: str = "") -> None:
    """Make the empty file system that every layer without a parent starts from: its root is 0755 and empty.

    A process that dies half-way leaves a device with some of a file system, to be made anew.

    Raises:
        ConfigError: arguments that do not split into words.
        ToolError: the mkfs program is missing or failed.
    """
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"dm.mkfsarg={arguments!r}: {error}") from error
    fs.make(device, words)
    point("base-formatted")
    fd = mounts.detached_mount(fs.name, str(device), fs.options(immutable=False))
    root = -1
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        if "lost+found" in os.listdir(root):
            os.rmdir("lost+found", dir_fd=root)
            point("base-emptied")
        os.chmod(root, 0o755)  # noqa: S103 - what every root directory has
        os.fsync(root)
        point("base-synced")
    except OSError as error:
        kind = PoolFull if error.errno == 28 else ToolError
        raise kind(f"cannot prepare the base {fs.name} file system: {error.strerror}") from error
    finally:
        if root >= 0:
            os.close(root)
        os.close(fd)
