"""A pool on a real kernel, changed at random: data goes to the zero target, so only metadata is real."""

import fcntl
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from thinpool.dm import Control, DeviceInfo, TableEntry, Thin, ThinPool, Unknown
from thinpool.dm.device import create_device, device_path, remove_device
from thinpool.units import SECTOR

BLOCK = 64 << 10
BLKDISCARD = 0x1277


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class RandomPool:
    """Devices are kept active, so that writing to them costs no fork."""

    def __init__(self, control: Control, pool: DeviceInfo, metadata: Path, chance: random.Random, span: int) -> None:
        self.control = control
        self.name = pool.name
        self.metadata = metadata
        self.devices: dict[int, Path] = {}
        self.span = span
        self._path = device_path(pool)
        self._chance = chance
        self._next = 1
        self.buffer = mmap.mmap(-1, 4096)

    @classmethod
    @contextmanager
    def active(cls, name: str, metadata: Path, chance: random.Random, *, span: int = 20_000) -> Iterator["RandomPool"]:
        sectors = 1 << 31
        features = ("skip_block_zeroing", "no_discard_passdown")
        with Control() as control:
            data = create_device(control, f"{name}-data", [TableEntry(0, sectors, Unknown("zero", ""))])
            target = ThinPool(str(metadata), str(device_path(data)), BLOCK // SECTOR, 0, features)
            try:
                info = create_device(control, name, [TableEntry(0, sectors, target)])
                pool = cls(control, info, metadata, chance, span)
                try:
                    yield pool
                finally:
                    for thin_id in pool.devices:
                        pool.deactivate(thin_id)
                    remove_device(control, name)
            finally:
                remove_device(control, data.name)

    def message(self, text: str) -> None:
        self.control.message(self.name, text)

    def deactivate(self, thin_id: int) -> None:
        remove_device(self.control, f"{self.name}-{thin_id}")

    def create(self, origin: int | None = None) -> int:
        thin_id = self._next
        self._next += self._chance.choice((1, 1, 5000))
        self.message(f"create_thin {thin_id}" if origin is None else f"create_snap {thin_id} {origin}")
        sectors = (self.span + 2000) * (BLOCK // SECTOR)
        table = [TableEntry(0, sectors, Thin(str(self._path), thin_id))]
        self.devices[thin_id] = device_path(create_device(self.control, f"{self.name}-{thin_id}", table))
        return thin_id

    def delete(self, thin_id: int) -> None:
        self.deactivate(thin_id)
        del self.devices[thin_id]
        self.message(f"delete {thin_id}")

    def write(self, thin_id: int, blocks: Iterator[int] | range) -> None:
        with self.opened(thin_id) as fd:
            for block in blocks:
                os.pwritev(fd, [self.buffer], block * BLOCK)
            os.fsync(fd)

    def discard(self, thin_id: int, start: int, length: int) -> None:
        with self.opened(thin_id) as fd:
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("<QQ", start * BLOCK, length * BLOCK))
            os.fsync(fd)

    @contextmanager
    def opened(self, thin_id: int) -> Iterator[int]:
        fd = os.open(self.devices[thin_id], os.O_RDWR | os.O_DIRECT)
        try:
            yield fd
        finally:
            os.close(fd)

    def mutate(self) -> None:
        """One random change; many small devices, some of them long chains of snapshots."""
        chance = self._chance
        kind = chance.choices(("create", "snap", "delete", "write", "discard"), (1, 4, 2, 12, 3))[0]
        if kind == "create" or not self.devices:
            self.create()
            return
        ids = list(self.devices)
        thin_id = chance.choice(ids[-6:] if chance.random() < 0.7 else ids)
        start = chance.randrange(self.span)
        if kind == "snap" and len(self.devices) < 16:
            self.create(thin_id)
        elif kind == "delete" and len(self.devices) > 3:
            self.delete(thin_id)
        elif kind == "discard":
            self.discard(thin_id, start, chance.choice((1, 10, 300, 2000)))
        else:
            length = chance.choice((1, 3, 10, 40, 200, 400))
            step = chance.choice((1, 1, 2, 17))
            self.write(thin_id, range(start, min(self.span, start + length * step), step))

    @contextmanager
    def reserved(self) -> Iterator[None]:
        self.message("reserve_metadata_snap")
        try:
            yield
        finally:
            self.message("release_metadata_snap")


Usage = dict[int, tuple[int, int, int]]
Dump = dict[int, dict[int, int]]


def thin_ls(metadata: Path) -> Usage:
    """Mapped, exclusive and shared blocks by thin id, in the reserved metadata snapshot."""
    columns = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS"
    text = run("thin_ls", "-m", "--no-headers", "--format", columns, str(metadata))
    rows = [[int(field) for field in line.split()] for line in text.splitlines()]
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def thin_dump(metadata: Path) -> Dump:
    """Virtual to data blocks by thin id, in the reserved metadata snapshot."""
    devices: Dump = {}
    for device in ET.fromstring(run("thin_dump", "-m", str(metadata))):
        mappings = devices[int(device.attrib["dev_id"])] = {}
        for part in device:
            if part.tag == "single_mapping":
                mappings[int(part.attrib["origin_block"])] = int(part.attrib["data_block"])
            else:
                start, data, length = (int(part.attrib[key]) for key in ("origin_begin", "data_begin", "length"))
                mappings.update(zip(range(start, start + length), range(data, data + length), strict=True))
    return devices


def thin_delta(metadata: Path, old: int, new: int) -> list[tuple[int, int | None, int | None]]:
    """Virtual blocks that are mapped differently, with both data blocks, in the reserved metadata snapshot."""
    text = run("thin_delta", "-m", "--verbose", "--snap1", str(old), "--snap2", str(new), str(metadata))
    found: list[tuple[int, int | None, int | None]] = []
    for group in ET.fromstring(text)[0]:
        for part in group:
            numbers = {name: int(value) for name, value in part.attrib.items()}
            for step in range(numbers["length"]):
                key = numbers["begin"] + step
                if group.tag == "different":
                    found.append((key, numbers["left_data_begin"] + step, numbers["right_data_begin"] + step))
                elif group.tag == "left_only":
                    found.append((key, numbers["data_begin"] + step, None))
                elif group.tag == "right_only":
                    found.append((key, None, numbers["data_begin"] + step))
    return found
