"""One disk that is as slow for everybody: dm-delay over a whole block device, cut into slices by dm-linear.

All that a contender writes lies on such slices, its pool's data and metadata and the file system with its records.
The delay changes while they are in use, so that trees are built on the fast disk and measured on the slow one.
"""

import mmap
import os
import random
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpool.pool.vetting import vet

_NAME = "bench-slow"
_SECTOR = 512
_MIB = 1 << 20
_READS = 50
_PROBE_BYTES = 512 * _MIB


class SlowDisk:
    """The disk, a context manager: its slices and what is mounted from them go with it.

    Args:
        device: an empty block device, which is overwritten.
        mounts: a directory for mount points.
    """

    def __init__(self, device: Path, mounts: Path) -> None:
        self._device = device
        self._mounts = mounts
        self._undo = ExitStack()
        self._next = 0
        self._sectors = int(_said("blockdev", "--getsz", str(device)))

    def __enter__(self) -> Self:
        vet({"--disk": self._device})
        _said("modprobe", "dm-delay")
        with self._undo as undo:
            self._create(_NAME, self._table(0))
            self._probe = self.slice("probe", _PROBE_BYTES)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _table(self, milliseconds: int) -> str:
        return f"0 {self._sectors} delay {self._device} 0 {milliseconds}"

    def _create(self, name: str, table: str) -> Path:
        _said("dmsetup", "create", name, "--table", table)
        self._undo.callback(_said, "dmsetup", "remove", "--retry", name)
        return Path("/dev/mapper", name)

    def set_delay(self, milliseconds: int) -> None:
        """Delay every read and write from now on by so much."""
        _said("dmsetup", "suspend", "--nolockfs", _NAME)
        _said("dmsetup", "load", _NAME, "--table", self._table(milliseconds))
        _said("dmsetup", "resume", _NAME)

    def slice(self, name: str, size: int) -> Path:
        """A part of the disk as a device of its own, its first block zeroed."""
        sectors = size // _SECTOR
        if self._next + sectors > self._sectors:
            raise ValueError(f"{self._device} is too small for {name}: {size // _MIB} MiB more are needed")
        path = self._create(f"bench-{name}", f"0 {sectors} linear /dev/mapper/{_NAME} {self._next}")
        self._next += sectors
        with path.open("wb", buffering=0) as device:
            device.write(bytes(4096))
        return path

    def pool(self, name: str, data_bytes: int, metadata_bytes: int) -> Path:
        """A thin pool on slices of its own, as an administrator makes it: blocks of 64 KiB, zeroed before use."""
        metadata = self.slice(f"{name}-metadata", metadata_bytes)
        data = self.slice(f"{name}-data", data_bytes)
        return self._create(f"bench-{name}-pool", f"0 {data_bytes // _SECTOR} thin-pool {metadata} {data} 128 1024")

    def home(self, name: str, size: int, file_system: str = "ext4") -> Path:
        """A mounted file system for what a contender keeps outside its pool."""
        device = self.slice(f"{name}-home", size)
        # no lazy initialisation, which would write in the background while others are measured
        options, mounted = ["-q", "-E", "nodiscard,lazy_itable_init=1"], "noatime,noinit_itable"
        if file_system == "btrfs":
            options, mounted = ["-q", "-K"], "noatime"
        _said(f"mkfs.{file_system}", *options, str(device))
        target = self._mounts / name
        target.mkdir()
        _said("mount", "-t", file_system, "-o", mounted, str(device), str(target))
        self._undo.callback(_said, "umount", str(target))
        return target

    def read_latency(self) -> float:
        """Seconds that a random read of 4 KiB takes, the median of some, each begun when the one before has ended."""
        buffer = mmap.mmap(-1, 4096)
        taken = []
        device = os.open(self._probe, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            for _ in range(_READS):
                begun = time.perf_counter()
                os.preadv(device, [buffer], random.randrange(_PROBE_BYTES // 4096) * 4096)
                taken.append(time.perf_counter() - begun)
        finally:
            os.close(device)
        return statistics.median(taken)

    @property
    def number(self) -> str:
        """The disk's device number, as in `254:0`."""
        device = os.stat(f"/dev/mapper/{_NAME}").st_rdev
        return f"{os.major(device)}:{os.minor(device)}"

    def writes(self) -> int:
        """Writes that the disk has completed."""
        return self._stat(4)

    def read_bytes(self) -> int:
        """Bytes that were read from the disk."""
        return self._stat(2) * _SECTOR

    def _stat(self, field: int) -> int:
        """A field of Documentation/block/stat.rst, counted from 0."""
        return int(Path(f"/sys/dev/block/{self.number}/stat").read_text(encoding="ascii").split()[field])


def drop_caches() -> None:
    """Write all out, and forget every clean page, directory entry and inode."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
