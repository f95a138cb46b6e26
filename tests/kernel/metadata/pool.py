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

BLOCK = 64 << 10
BLKDISCARD = 0x1277


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def node(name: str) -> str:
    """The device's node by its kernel name, which is there at once, whatever udev does."""
    for entry in Path("/sys/block").glob("dm-*"):
        if (entry / "dm" / "name").read_text(encoding="ascii").rstrip() == name:
            return f"/dev/{entry.name}"
    raise AssertionError(f"no device {name}")


class RandomPool:
    """Devices are kept active, so that writing to them costs no fork."""

    def __init__(self, name: str, metadata: Path, chance: random.Random, *, span: int = 20_000) -> None:
        self.name = name
        self.metadata = metadata
        self.devices: list[int] = []
        self.span = span
        self._chance = chance
        self._next = 1
        self._buffer = mmap.mmap(-1, 4096)

    @classmethod
    @contextmanager
    def active(cls, name: str, metadata: Path, chance: random.Random, *, span: int = 20_000) -> Iterator["RandomPool"]:
        data_sectors = 1 << 31
        run("dmsetup", "create", "--noudevsync", "--noudevrules", f"{name}-data", "--table", f"0 {data_sectors} zero")
        try:
            table = f"0 {data_sectors} thin-pool {metadata} {node(name + '-data')} 128 0 2 skip_block_zeroing"
            run("dmsetup", "create", "--noudevsync", "--noudevrules", name, "--table", f"{table} no_discard_passdown")
            pool = cls(name, metadata, chance, span=span)
            try:
                yield pool
            finally:
                for thin_id in pool.devices:
                    pool.deactivate(thin_id)
                run("dmsetup", "remove", "--retry", "--noudevsync", "--noudevrules", name)
        finally:
            run("dmsetup", "remove", "--retry", "--noudevsync", "--noudevrules", f"{name}-data")

    def message(self, text: str) -> None:
        run("dmsetup", "message", self.name, "0", text)

    def deactivate(self, thin_id: int) -> None:
        run("dmsetup", "remove", "--retry", "--noudevsync", "--noudevrules", f"{self.name}-{thin_id}")

    def path(self, thin_id: int) -> str:
        return node(f"{self.name}-{thin_id}")

    def create(self, origin: int | None = None) -> int:
        thin_id = self._next
        self._next += self._chance.choice((1, 1, 5000))
        self.message(f"create_thin {thin_id}" if origin is None else f"create_snap {thin_id} {origin}")
        table = f"0 {(self.span + 2000) * (BLOCK // 512)} thin {node(self.name)} {thin_id}"
        run("dmsetup", "create", "--noudevsync", "--noudevrules", f"{self.name}-{thin_id}", "--table", table)
        self.devices.append(thin_id)
        return thin_id

    def delete(self, thin_id: int) -> None:
        self.deactivate(thin_id)
        self.devices.remove(thin_id)
        self.message(f"delete {thin_id}")

    def write(self, thin_id: int, blocks: Iterator[int] | range) -> None:
        with self.opened(thin_id) as fd:
            for block in blocks:
                os.pwritev(fd, [self._buffer], block * BLOCK)
            os.fsync(fd)

    def discard(self, thin_id: int, start: int, length: int) -> None:
        with self.opened(thin_id) as fd:
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("<QQ", start * BLOCK, length * BLOCK))
            os.fsync(fd)

    @contextmanager
    def opened(self, thin_id: int) -> Iterator[int]:
        fd = os.open(self.path(thin_id), os.O_RDWR | os.O_DIRECT)
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
        thin_id = chance.choice(self.devices[-6:]) if chance.random() < 0.7 else chance.choice(self.devices)
        start = chance.randrange(self.span)
        if kind == "snap" and len(self.devices) < 30:
            self.create(thin_id)
        elif kind == "delete" and len(self.devices) > 3:
            self.delete(thin_id)
        elif kind == "discard":
            self.discard(thin_id, start, chance.choice((1, 10, 300, 2000)))
        else:
            length = chance.choice((1, 3, 10, 40, 200, 700))
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
