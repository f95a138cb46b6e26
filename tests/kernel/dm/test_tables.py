"""Typed tables are what the kernel prints, target by target, beside dmsetup."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.dm.conftest import MakeDevice, MakeDisk
from thinpool.dm import (
    Control,
    Delay,
    Delayed,
    Error,
    Flakey,
    Linear,
    LogWrites,
    SnapshotOrigin,
    Stripe,
    Striped,
    TableEntry,
    Target,
    Thin,
    ThinPool,
    Unknown,
    Zero,
    thin,
)
from thinpool.dm.device import device_path
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

NAME = "tables-1"
SECTORS = 1024


def numbers(path: Path) -> str:
    device = os.stat(path).st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def dmsetup_table(name: str) -> str:
    done = subprocess.run(["dmsetup", "table", name], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.removesuffix("\n")


def check(control: Control, name: str, target: Target, *, length: int = SECTORS) -> None:
    assert control.table(name) == [TableEntry(0, length, target)]
    line = f"0 {length} {target.kind} {target.params()}"
    assert dmsetup_table(name).removesuffix(" ") == line.removesuffix(" ")


@pytest.mark.parametrize(
    "target",
    [
        lambda _one, _two: Zero(),
        lambda _one, _two: Error(),
        lambda one, _two: Linear(one, 8),
        lambda one, two: Striped(128, (Stripe(one, 0), Stripe(two, 256))),
        lambda one, _two: Striped(256, (Stripe(one, 16),)),
        lambda one, _two: Delay(Delayed(one, 8, 1)),
        lambda one, two: Delay(Delayed(one, 8, 1), Delayed(two, 16, 2)),
        lambda one, two: Delay(Delayed(one, 8, 1), Delayed(two, 16, 2), Delayed(one, 0, 0)),
        lambda one, _two: Flakey(one, 0, 60, 0),
        lambda one, _two: Flakey(one, 8, 60, 1, ("drop_writes",)),
        lambda one, _two: Flakey(one, 0, 60, 1, ("error_writes",)),
        lambda one, _two: Flakey(one, 0, 60, 1, ("corrupt_bio_byte", "32", "w", "1", "0")),
        LogWrites,
        lambda one, _two: SnapshotOrigin(one),
        lambda one, _two: Unknown("unstriped", f"2 8 0 {one} 0"),
    ],
)
def test_a_target(control: Control, device: MakeDevice, disk: MakeDisk, target: Callable[[str, str], Target]) -> None:
    """Loaded by path and by number, it is printed by number; what is printed is the value that was loaded."""
    paths = [disk(MIB), disk(MIB)]
    control.require_target(target("", "").kind)
    device(NAME, [TableEntry(0, SECTORS, target(str(paths[0]), str(paths[1])))])
    expected = target(numbers(paths[0]), numbers(paths[1]))
    check(control, NAME, expected)
    control.load(NAME, control.table(NAME))
    assert control.table(NAME, inactive=True) == control.table(NAME)


@pytest.mark.parametrize(
    "features",
    [
        (),
        ("skip_block_zeroing",),
        ("ignore_discard", "read_only"),
        ("skip_block_zeroing", "no_discard_passdown", "error_if_no_space"),
    ],
)
def test_a_pool_and_its_thin_devices(
    control: Control, device: MakeDevice, disk: MakeDisk, features: tuple[str, ...]
) -> None:
    control.require_target("thin-pool")
    metadata, data, origin = disk(2 * MIB), disk(4 * MIB), disk(MIB)
    pool = ThinPool(numbers(metadata), numbers(data), 128, 4)
    if "read_only" in features:
        device("tables-pool", [TableEntry(0, 8192, pool)])
        control.remove("tables-pool")
    pool = ThinPool(numbers(metadata), numbers(data), 128, 4, features)
    path = device_path(device("tables-pool", [TableEntry(0, 8192, pool)]))
    check(control, "tables-pool", pool, length=8192)
    if "read_only" in features:
        return
    thin.create_thin(control, "tables-pool", 7)
    for target in (Thin(str(path), 7), Thin(str(path), 7, str(origin))):
        device(NAME, [TableEntry(0, SECTORS, target)])
        outside = None if target.external_origin is None else numbers(origin)
        check(control, NAME, Thin(numbers(path), 7, outside))
        control.remove(NAME)


def test_a_path_with_spaces_and_more(control: Control, device: MakeDevice, disk: MakeDisk, scratch: Path) -> None:
    """The kernel takes the bytes 0x20, 0x5c and 0xa0 apart, the last of them as a part of other letters too."""
    path = disk(MIB)
    for name in ("with space", "back\\slash", "d\u00e9j\u00e0 vu", "tab\tand\nline"):
        link = scratch / name
        link.symlink_to(path)
        device(NAME, [TableEntry(0, SECTORS, Linear(str(link)))])
        check(control, NAME, Linear(numbers(path)))
        control.remove(NAME)
