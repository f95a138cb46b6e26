"""Messages and statuses of a pool, in every state that it can be brought into, on the real kernel."""

import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.dm.conftest import MakeDevice, MakeDisk
from thinpool.dm import Control, DeviceInfo, Error, Flakey, Linear, TableEntry, Thin, ThinPool, thin
from thinpool.dm.device import device_path, suspended, swap_table
from thinpool.dm.status import Discards, PoolMode, ThinMode, ThinStatus
from thinpool.errors import DeviceMapperError
from thinpool.units import MIB, SECTOR

pytestmark = pytest.mark.kernel

POOL, META, THIN = "thin-pool-1", "thin-meta", "thin-1"
BLOCK = 128
BLOCK_BYTES = BLOCK * SECTOR
BLOCKS = 32

Activate = Callable[[int], Path]


@pytest.fixture
def make_pool(device: MakeDevice, disk: MakeDisk, control: Control) -> Callable[..., ThinPool]:
    """Make a pool of 32 blocks of 64 KiB; its metadata lies on a device that a test can break."""

    def make(*features: str, low_water: int = 0) -> ThinPool:
        control.require_target("thin-pool")
        meta = device(META, [TableEntry(0, 2 * MIB // SECTOR, Linear(str(disk(2 * MIB))))])
        data = disk(2 * BLOCKS * BLOCK_BYTES)
        target = ThinPool(str(device_path(meta)), str(data), BLOCK, low_water, features)
        device(POOL, [TableEntry(0, BLOCKS * BLOCK, target)])
        return target

    return make


@pytest.fixture
def activate(device: MakeDevice, control: Control) -> Iterator[Activate]:
    """Activate a thin device of the pool, of 64 blocks."""
    names: list[str] = []

    def make(thin_id: int) -> Path:
        names.append(f"thin-{thin_id}")
        pool = device_path(control.info(POOL))
        return device_path(device(names[-1], [TableEntry(0, 2 * BLOCKS * BLOCK, Thin(str(pool), thin_id))]))

    yield make
    for name in names:
        with suppress(DeviceMapperError):
            control.remove(name)


def write(path: Path, blocks: range) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for block in blocks:
            os.pwrite(fd, b"x" * 4096, block * BLOCK_BYTES)
        os.fsync(fd)
    finally:
        os.close(fd)


def refused(code: int, meaning: str) -> "pytest.RaisesExc[DeviceMapperError]":
    return pytest.raises(DeviceMapperError, match=rf"DM_TARGET_MSG {POOL}: {os.strerror(code)} \({meaning}")


def test_messages(control: Control, make_pool: Callable[..., ThinPool], activate: Activate) -> None:
    make_pool()
    thin.create_thin(control, POOL, 1)
    with refused(errno.EEXIST, "a thin device of that number exists"):
        thin.create_thin(control, POOL, 1)
    write(activate(1), range(3))
    with suspended(control, "thin-1"):
        thin.create_snap(control, POOL, (1 << 24) - 1, 1)
    with refused(errno.EINVAL, "the target does not accept the message"):
        thin.create_thin(control, POOL, 1 << 24)
    with refused(errno.ENODATA, "there is no thin device of that number"):
        thin.create_snap(control, POOL, 2, 3)
    with refused(errno.EBUSY, "the thin device is active"):
        thin.delete_thin(control, POOL, 1)
    thin.delete_thin(control, POOL, (1 << 24) - 1)
    with refused(errno.ENODATA, "there is no thin device of that number"):
        thin.delete_thin(control, POOL, (1 << 24) - 1)
    thin.set_transaction_id(control, POOL, 0, 5)
    with refused(errno.EINVAL, "the target does not accept the message"):
        thin.set_transaction_id(control, POOL, 0, 6)
    assert thin.pool_status(control, POOL).transaction_id == 5


def test_a_metadata_snapshot(control: Control, make_pool: Callable[..., ThinPool]) -> None:
    make_pool()
    assert thin.pool_status(control, POOL).held_root is None
    thin.reserve_metadata_snap(control, POOL)
    held = thin.pool_status(control, POOL).held_root
    assert held is not None
    assert held > 0
    with refused(errno.EBUSY, "the thin device is active, or a metadata snapshot exists already"):
        thin.reserve_metadata_snap(control, POOL)
    thin.release_metadata_snap(control, POOL)
    assert thin.pool_status(control, POOL).held_root is None
    with refused(errno.EINVAL, "the target does not accept the message"):
        thin.release_metadata_snap(control, POOL)


def test_statuses(control: Control, make_pool: Callable[..., ThinPool], activate: Activate) -> None:
    make_pool()
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    assert thin.thin_status(control, "thin-1") == ThinStatus(ThinMode.KNOWN, 0, None)
    write(path, range(4, 7))
    assert thin.thin_status(control, "thin-1") == ThinStatus(ThinMode.KNOWN, 3 * BLOCK, 7 * BLOCK - 1)
    status = thin.pool_status(control, POOL, commit=True)
    assert status.mode is PoolMode.WRITE
    assert (status.data_used_blocks, status.data_total_blocks, status.metadata_total_blocks) == (3, BLOCKS, 512)
    assert 0 < status.metadata_used_blocks < 512
    assert (status.error_if_no_space, status.needs_check, status.discards) == (False, False, Discards.PASSED_DOWN)
    assert status.metadata_low_watermark_blocks is not None
    for name, parsed in ((POOL, status.render()), ("thin-1", thin.thin_status(control, "thin-1").render())):
        assert control.status(name)[0].text.removesuffix(" ") == parsed


@pytest.mark.parametrize(
    ("features", "discards", "errors"),
    [
        (("ignore_discard",), Discards.IGNORED, False),
        (("no_discard_passdown", "error_if_no_space"), Discards.NOT_PASSED_DOWN, True),
    ],
)
def test_what_a_pool_does(
    control: Control, make_pool: Callable[..., ThinPool], features: tuple[str, ...], discards: Discards, errors: bool
) -> None:
    make_pool(*features)
    status = thin.pool_status(control, POOL)
    assert (status.discards, status.error_if_no_space) == (discards, errors)


def test_the_low_water_mark_is_an_event(
    control: Control, make_pool: Callable[..., ThinPool], activate: Activate
) -> None:
    make_pool(low_water=BLOCKS // 2)
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    before = control.info(POOL).event_nr
    woken: list[DeviceInfo] = []
    waiter = threading.Thread(target=lambda: woken.append(control.wait(POOL, before)))
    waiter.start()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    control.arm_poll()
    write(path, range(BLOCKS // 2 - 1))
    assert poll.poll(0) == []
    write(path, range(BLOCKS // 2 - 1, BLOCKS // 2 + 1))
    assert poll.poll(30_000)
    waiter.join(30)
    assert [info.event_nr for info in woken] == [before + 1]


def test_a_full_pool_fails_writes(control: Control, make_pool: Callable[..., ThinPool], activate: Activate) -> None:
    make_pool("error_if_no_space")
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    with pytest.raises(OSError, match=r"No space left on device|Input/output error"):
        write(path, range(BLOCKS + 1))
    status = thin.pool_status(control, POOL)
    assert status.mode is PoolMode.OUT_OF_DATA_SPACE
    assert status.data_used_blocks == status.data_total_blocks == BLOCKS
    assert not status.failed


def test_a_full_pool_that_holds_writes_back_is_extended(
    control: Control, make_pool: Callable[..., ThinPool], activate: Activate
) -> None:
    """A suspend that waits for I/O would wait for ever: the I/O waits for the pool to become larger."""
    target = make_pool()
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    control.arm_poll()
    writer = threading.Thread(target=write, args=(path, range(BLOCKS + 1)))
    writer.start()
    while thin.pool_status(control, POOL).mode is not PoolMode.OUT_OF_DATA_SPACE:
        assert poll.poll(30_000), "the pool never became full"
        control.arm_poll()
    assert writer.is_alive()
    swap_table(control, POOL, [TableEntry(0, 2 * BLOCKS * BLOCK, target)], flush=False)
    writer.join(30)
    assert not writer.is_alive()
    status = thin.pool_status(control, POOL, commit=True)
    assert status.mode is PoolMode.WRITE
    assert (status.data_used_blocks, status.data_total_blocks) == (BLOCKS + 1, 2 * BLOCKS)


def test_a_pool_whose_metadata_fails(control: Control, make_pool: Callable[..., ThinPool], activate: Activate) -> None:
    make_pool()
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    write(path, range(2))
    swap_table(control, META, [TableEntry(0, 2 * MIB // SECTOR, Error())])
    with pytest.raises(OSError, match=r"Input/output error|No space left on device"):
        write(path, range(2, 8))
    status = thin.pool_status(control, POOL)
    assert status.mode in {PoolMode.FAIL, PoolMode.READ_ONLY}
    assert status.failed == (status.mode is PoolMode.FAIL)
    assert thin.thin_status(control, "thin-1").mode is (ThinMode.FAIL if status.failed else ThinMode.KNOWN)
    with refused(errno.EOPNOTSUPP, "the pool is read-only or has failed") as raised:
        thin.create_thin(control, POOL, 2)
    assert raised.value.hint == "dmesg says why"


def test_a_pool_that_cannot_write_its_metadata(
    control: Control, make_pool: Callable[..., ThinPool], activate: Activate
) -> None:
    make_pool()
    thin.create_thin(control, POOL, 1)
    path = activate(1)
    control.require_target("flakey")
    below = control.table(META)[0].target
    assert isinstance(below, Linear)
    failing = Flakey(below.device, 0, 0, 60, ("error_writes",))
    swap_table(control, META, [TableEntry(0, 2 * MIB // SECTOR, failing)])
    with pytest.raises(OSError, match="Input/output error"):
        write(path, range(2))
    status = thin.pool_status(control, POOL)
    assert (status.mode, status.needs_check) == (PoolMode.READ_ONLY, True)
    swap_table(control, META, [TableEntry(0, 2 * MIB // SECTOR, below)])
