"""Devices that are not free are refused by name and reason, and not a byte of them is changed."""

import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.dm.private_dev import paused_udevd
from tests.kernel.pool.tools import loop_on, mapped, run
from thinpool import Store
from thinpool.errors import ConfigError, DeviceUnsafe, PoolFailed
from thinpool.pool.vetting import vet
from thinpool.units import MIB, SECTOR

pytestmark = pytest.mark.kernel

DiskFactory = Callable[[int], Path]
SIZE = 64 * MIB


def fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b", 0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def refused(disk: Path, said: str) -> None:
    """The disk is refused as data and as metadata device, for that reason, and stays as it is."""
    before = fingerprint(disk)
    with pytest.raises(DeviceUnsafe, match=said) as caught:
        vet({"dm.datadev": disk})
    assert f"dm.datadev={disk}" in caught.value.message
    assert "\n" not in caught.value.message
    assert fingerprint(disk) == before


# -- what a disk may carry: written by its own tool where that is at hand, else as the format says


def ext4(disk: Path) -> None:
    run("mkfs.ext4", "-q", disk)


def xfs(disk: Path) -> None:
    run("mkfs.xfs", "-q", "-K", disk)


def swap(disk: Path) -> None:
    run("mkswap", disk)


def mbr(disk: Path) -> None:
    entry = struct.pack("<B3xB3xII", 0, 0x83, 2048, 16 * MIB // SECTOR)
    write(disk, 446, entry.ljust(64, b"\0") + b"\x55\xaa")


def gpt(disk: Path, *, backup_only: bool = False) -> None:
    last = SIZE // SECTOR - 1
    kind = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    entry = kind + uuid.uuid4().bytes_le + struct.pack("<QQQ72s", 2048, 4095, 0, "data".encode("utf-16-le"))
    entries = entry.ljust(128 * 128, b"\0")

    def header(here: int, other: int, table: int) -> bytes:
        fields = (1 << 16, 92, 0, 0, here, other, 34, last - 33)
        tail = uuid.uuid4().bytes_le + struct.pack("<QIII", table, 128, 128, zlib.crc32(entries))
        raw = b"EFI PART" + struct.pack("<IIIIQQQQ", *fields) + tail
        return raw[:16] + struct.pack("<I", zlib.crc32(raw)) + raw[20:]

    write(disk, (last - 32) * SECTOR, entries)
    write(disk, last * SECTOR, header(last, 1, last - 32).ljust(SECTOR, b"\0"))
    write(disk, 446, struct.pack("<B3xB3xII", 0, 0xEE, 1, last).ljust(64, b"\0") + b"\x55\xaa")
    if not backup_only:
        write(disk, SECTOR, header(1, last, 2).ljust(SECTOR, b"\0"))
        write(disk, 2 * SECTOR, entries)


def gpt_backup(disk: Path) -> None:
    gpt(disk, backup_only=True)


def lvm(disk: Path) -> None:
    """The label of a physical volume (lib/format_text/layout.h of LVM2), in the second sector."""
    rest = (struct.pack("<I8s", 32, b"LVM2 001") + uuid.uuid4().hex.encode()).ljust(SECTOR - 20, b"\0")
    crc = zlib.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    write(disk, SECTOR, b"LABELONE" + struct.pack("<QI", 1, crc) + rest)


def luks(disk: Path) -> None:
    """A LUKS1 header (on-disk format specification 1.2)."""
    fields = (b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64, bytes(20), bytes(32), 1000)
    raw = struct.pack(">6sH32s32s32sII20s32sI40s", *fields, str(uuid.uuid4()).encode())
    write(disk, 0, raw.ljust(1024, b"\0"))


def raid(disk: Path) -> None:
    """A version 1.2 superblock of md (include/uapi/linux/raid/md_p.h), 4 KiB from the start."""
    raw = struct.pack("<IIII16s32s", 0xA92B4EFC, 1, 0, 0, uuid.uuid4().bytes, b"host:0")
    raw = raw.ljust(144, b"\0") + struct.pack("<Q", 8)  # super_offset
    write(disk, 4096, raw.ljust(256, b"\0"))


CARRIED: dict[Callable[[Path], None], str] = {
    ext4: "ext4", xfs: "xfs", swap: "swap", mbr: "dos", gpt: "gpt", gpt_backup: "gpt|PMBR", lvm: "LVM2_member",
    luks: "crypto_LUKS", raid: "linux_raid_member",
}  # fmt: skip


@pytest.fixture(params=["udev runs", "udev stands still"])
def udev(request: pytest.FixtureRequest) -> Iterator[None]:
    """With udevd at work, and with one that does nothing."""
    if request.param == "udev runs":
        run("udevadm", "settle")
        yield
        return
    with paused_udevd():
        yield


@pytest.mark.usefixtures("udev")
@pytest.mark.parametrize("carried", CARRIED, ids=lambda carried: carried.__name__)
def test_a_device_that_carries_something(disk_factory: DiskFactory, carried: Callable[[Path], None]) -> None:
    disk = disk_factory(300 * MIB if carried is xfs else SIZE)
    carried(disk)
    refused(disk, CARRIED[carried])


def test_an_empty_device_is_free(disk_factory: DiskFactory) -> None:
    disks = disk_factory(SIZE), disk_factory(SIZE)
    vet(dict(zip(("dm.datadev", "dm.metadatadev"), disks, strict=True)))
    write(disks[0], SIZE // 2, b"leftovers without a signature")
    vet({"dm.datadev": disks[0]})


def test_what_a_device_carried_and_was_wiped_is_free_again(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    ext4(disk)
    refused(disk, "ext4")
    run("wipefs", "--all", disk)
    run("udevadm", "settle")
    vet({"dm.datadev": disk})


def test_metadata_of_a_thin_pool(disk_factory: DiskFactory) -> None:
    data, metadata = disk_factory(SIZE), disk_factory(SIZE)
    table = f"0 {SIZE // SECTOR} thin-pool {metadata} {data} 128 0"
    with mapped("somebody", table):
        refused(metadata, r"held by dm-\d+ \(somebody\)")
        refused(data, r"held by dm-\d+ \(somebody\)")
    refused(metadata, "thin-pool metadata")


# -- who may use it


@contextmanager
def mounted(disk: Path, folder: Path) -> Iterator[None]:
    target = folder / "mounted"
    target.mkdir()
    run("mount", disk, target)
    try:
        yield
    finally:
        run("umount", target)


def test_a_mounted_device(disk_factory: DiskFactory, scratch: Path) -> None:
    disk = disk_factory(SIZE)
    ext4(disk)
    with mounted(disk, scratch):
        refused(disk, f"is mounted on {scratch}/mounted")


def test_active_swap(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    run("mkswap", disk)
    run("swapon", disk)
    try:
        refused(disk, "in use as swap")
    finally:
        run("swapoff", disk)


def test_a_device_below_another_one(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    with mapped("above", f"0 2048 linear {disk} 8192"):
        refused(disk, r"held by dm-\d+ \(above\)")
    vet({"dm.datadev": disk})


def test_a_device_that_somebody_has_for_himself(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    fd = os.open(disk, os.O_RDONLY | os.O_EXCL)
    try:
        refused(disk, "is in use")
    finally:
        os.close(fd)


def test_a_read_only_device(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    run("blockdev", "--setro", disk)
    try:
        refused(disk, "cannot be written")
    finally:
        run("blockdev", "--setrw", disk)


def test_two_loop_devices_on_one_file(scratch: Path) -> None:
    file = scratch / "file"
    file.touch()
    os.truncate(file, SIZE)
    with loop_on(file) as one, loop_on(file) as two:
        with pytest.raises(ConfigError, match="parts of each other"):
            vet({"dm.datadev": one, "dm.metadatadev": two})
        refused(one, f"is below {two} too")
        file.rename(scratch / "renamed")
        refused(one, f"is below {two} too")


def test_a_loop_device_on_a_device(disk_factory: DiskFactory) -> None:
    disk = disk_factory(SIZE)
    with loop_on(disk) as above:
        refused(disk, f"is below {above} too")


def test_one_device_by_two_names(disk_factory: DiskFactory, scratch: Path) -> None:
    disk = disk_factory(SIZE)
    (scratch / "link").symlink_to(disk)
    before = fingerprint(disk)
    with pytest.raises(ConfigError, match="the same device"):
        vet({"dm.datadev": disk, "dm.metadatadev": scratch / "link"})
    options = {"dm.datadev": str(disk), "dm.metadatadev": f"/dev/../dev/{disk.name}", "dm.basesize": "64M"}
    with pytest.raises(ConfigError, match="the same device"):
        Store.open(scratch / "root", "devicemapper", options)
    assert fingerprint(disk) == before
    assert not (scratch / "root").exists()


@pytest.fixture
def partitioned(scratch: Path) -> Iterator[Path]:
    """A disk with one partition of 16 MiB."""
    file = scratch / "image"
    file.touch()
    os.truncate(file, SIZE)
    with loop_on(file, "--partscan") as disk:
        mbr(disk)
        run("blockdev", "--rereadpt", disk)
        run("udevadm", "settle")
        yield disk


def test_a_disk_with_partitions(partitioned: Path) -> None:
    refused(partitioned, f"has partitions: {partitioned.name}p1")


def test_a_partition_is_free_where_it_is_empty(partitioned: Path, scratch: Path) -> None:
    part = Path(f"{partitioned}p1")
    vet({"dm.datadev": part})
    ext4(part)
    with mounted(part, scratch):
        refused(part, "is mounted on")
        refused(partitioned, "has partitions")


def test_a_partition_and_its_disk(partitioned: Path) -> None:
    with pytest.raises(ConfigError, match="parts of each other"):
        vet({"dm.datadev": Path(f"{partitioned}p1"), "dm.metadatadev": partitioned})


def test_a_partition_of_a_disk_in_use(partitioned: Path) -> None:
    with mapped("above", f"0 2048 linear {partitioned} 65536"):
        refused(Path(f"{partitioned}p1"), "is in use")


# -- through the store


def test_one_device_that_is_not_free_saves_both(scratch: Path, disk_factory: DiskFactory) -> None:
    """One of two devices is free: neither is written."""
    data, metadata = disk_factory(256 * MIB), disk_factory(SIZE)
    ext4(metadata)
    before = fingerprint(data), fingerprint(metadata)
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "64M"}
    with pytest.raises(DeviceUnsafe, match=r"dm\.metadatadev=.*ext4"):
        Store.open(scratch / "root", "devicemapper", options)
    assert (fingerprint(data), fingerprint(metadata)) == before


@pytest.mark.parametrize(("data_size", "metadata_size"), [(8 * MIB, SIZE), (SIZE, MIB), (1 << 43, 2 * MIB)])
def test_devices_that_are_too_small(
    scratch: Path, disk_factory: DiskFactory, data_size: int, metadata_size: int
) -> None:
    data, metadata = disk_factory(data_size), disk_factory(metadata_size)
    before = fingerprint(metadata)
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "64M"}
    with pytest.raises(ConfigError, match="need"):
        Store.open(scratch / "root", "devicemapper", options)
    assert fingerprint(metadata) == before
    assert not (scratch / "root").exists()


def test_devices_of_two_stores_that_were_swapped(scratch: Path, disk_factory: DiskFactory) -> None:
    with ExitStack() as files:
        images = []
        for name in ("one", "two"):
            metadata = scratch / f"{name}-metadata"
            metadata.touch()
            os.truncate(metadata, SIZE)
            images.append(metadata)
            device = files.enter_context(loop_on(metadata))
            options = {"dm.datadev": str(disk_factory(256 * MIB)), "dm.metadatadev": str(device), "dm.basesize": "64M"}
            with Store.open(scratch / name, "devicemapper", options) as store:
                store.prepare("work")
                store.down()
        first, second = (image.read_bytes() for image in images)
        images[0].write_bytes(second)
        images[1].write_bytes(first)
        for name in ("one", "two"):
            with Store.open(scratch / name) as store, pytest.raises(PoolFailed, match="of another pool"):
                store.up()
        images[0].write_bytes(first)
        images[1].write_bytes(second)
        for name in ("one", "two"):
            with Store.open(scratch / name) as store:
                store.up()
                store.down()
