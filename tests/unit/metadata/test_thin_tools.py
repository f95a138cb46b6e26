"""Pools written by thin_restore, and what thin_ls, thin_delta and thin_dump make of them."""

import os
import random
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.unit.metadata.image import exclusive, spread
from thinpool.metadata.books import Books

LONG = bool(os.environ.get("THINPOOL_TEST_LONG"))
BATCH = 25
POOLS = range(0, 2000 if LONG else 200, BATCH)
Devices = dict[int, dict[int, int]]


def random_pool(chance: random.Random) -> Devices:
    """Devices that share data blocks at the same place, some of them with a lot of mappings."""
    span = chance.choice((30, 2000, 200_000))
    devices: Devices = {}
    version = 0
    for _ in range(chance.randrange(1, 7)):
        parent = devices[chance.choice(sorted(devices))] if devices and chance.random() < 0.7 else {}
        mappings = dict(parent)
        for _ in range(chance.randrange(6)):
            start, length = chance.randrange(span), chance.choice((1, 1, 20, 900))
            version += 1
            if chance.random() < 0.2:
                mappings = {key: value for key, value in mappings.items() if not start <= key < start + length}
            else:
                mappings.update({key: version * (span + 900) + key for key in range(start, start + length)})
        devices[chance.randrange(2**24)] = mappings
    return devices


def restore(devices: Devices, path: Path) -> None:
    top = max((max(mappings.values(), default=0) for mappings in devices.values()), default=0) + 1
    root = ET.Element(
        "superblock",
        {"uuid": "", "time": "9", "transaction": "5", "data_block_size": "128", "nr_data_blocks": str(top)},
    )
    for thin_id in sorted(devices):
        mappings = devices[thin_id]
        details = {"transaction": "3", "creation_time": "1", "snap_time": "2", "mapped_blocks": str(len(mappings))}
        device = ET.SubElement(root, "device", {"dev_id": str(thin_id), **details})
        for key in sorted(mappings):
            mapping = {"origin_block": str(key), "data_block": str(mappings[key]), "time": "1"}
            ET.SubElement(device, "single_mapping", mapping)
    xml = path.with_suffix(".xml")
    ET.ElementTree(root).write(xml)
    with path.open("wb") as file:
        file.truncate(32 << 20)
    run("thin_restore", "--quiet", "--input", str(xml), "--output", str(path))


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def thin_ls(path: Path) -> dict[int, tuple[int, int, int]]:
    columns = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS"
    rows = [line.split() for line in run("thin_ls", "--no-headers", "--format", columns, str(path)).splitlines()]
    return {int(row[0]): (int(row[1]), int(row[2]), int(row[3])) for row in rows}


def thin_delta(path: Path, old: int, new: int) -> list[tuple[int, int | None, int | None]]:
    text = run("thin_delta", "--verbose", "--snap1", str(old), "--snap2", str(new), str(path))
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


def thin_dump(path: Path) -> Devices:
    devices: Devices = {}
    for device in ET.fromstring(run("thin_dump", str(path))).iter("device"):
        mappings = devices[int(device.attrib["dev_id"])] = {}
        for part in device:
            if part.tag == "single_mapping":
                mappings[int(part.attrib["origin_block"])] = int(part.attrib["data_block"])
            else:
                start, data, length = (int(part.attrib[key]) for key in ("origin_begin", "data_begin", "length"))
                mappings.update(zip(range(start, start + length), range(data, data + length), strict=True))
    return devices


@pytest.mark.parametrize("first", POOLS)
def test_we_agree_with_the_thin_tools(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + BATCH):
        compare(tmp_path / "metadata", random.Random(seed))


def compare(path: Path, chance: random.Random) -> None:
    devices = random_pool(chance)
    restore(devices, path)
    alone = exclusive(devices)
    with Books.open(path) as books:
        usage = {
            device.thin_id: (
                device.mapped_blocks,
                device.exclusive_blocks,
                device.mapped_blocks - device.exclusive_blocks,
            )
            for device in books.usage()
        }
        assert usage == thin_ls(path)
        assert {key: numbers[1] for key, numbers in usage.items()} == alone
        assert {thin_id: dict(books.mappings(thin_id)) for thin_id in devices} == thin_dump(path) == devices
        for _ in range(3):
            old, new = chance.choice(sorted(devices)), chance.choice(sorted(devices))
            if old != new:
                assert spread(books.difference(old, new)) == thin_delta(path, old, new)
