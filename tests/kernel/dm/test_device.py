"""Whole devices on the real kernel: made or not at all, never left suspended, another table or the old one."""

import errno
import os
import stat
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from tests.kernel.dm.conftest import MakeDevice, MakeDisk
from thinpool.dm import Control, Error, Linear, TableEntry, ThinPool, Unknown, Zero, thin
from thinpool.dm.device import (
    block_device_size,
    create_device,
    device_path,
    remove_device,
    rename_device,
    suspended,
    swap_table,
)
from thinpool.errors import DeviceMapperError
from thinpool.units import MIB, SECTOR

if TYPE_CHECKING:
    from _typeshed import TraceFunction

pytestmark = pytest.mark.kernel

NAME = "device-1"
ZERO = [TableEntry(0, 8, Zero())]


class Interrupt(BaseException):
    """What a signal handler raises."""


def test_a_device_is_there_when_it_is_made(control: Control, disk: MakeDisk) -> None:
    info = create_device(control, NAME, [TableEntry(0, 2048, Linear(str(disk(MIB))))], uuid="DEVICE-1")
    try:
        path = device_path(info)
        assert stat.S_ISBLK(path.stat().st_mode)
        assert block_device_size(path) == MIB
        assert info == control.info(uuid="DEVICE-1")
    finally:
        remove_device(control, NAME)
    assert not path.exists()


def test_a_device_that_cannot_be_made_is_not_there(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    below = str(disk(MIB))
    with pytest.raises(DeviceMapperError, match="DM_TABLE_LOAD"):
        create_device(control, NAME, [TableEntry(0, 8, Unknown("no-such", ""))])
    with pytest.raises(DeviceMapperError, match="does not accept the table"):
        create_device(control, NAME, [TableEntry(0, 8, Linear(below, 1 << 40))])
    assert control.devices() == []
    other = device(NAME, ZERO)
    with pytest.raises(DeviceMapperError) as raised:
        create_device(control, NAME, ZERO)
    assert raised.value.errno == errno.EBUSY
    assert control.info(NAME) == other


def test_it_is_resumed_after_the_block(control: Control, device: MakeDevice) -> None:
    device(NAME, ZERO)
    with suspended(control, NAME):
        assert control.info(NAME).suspended
    assert not control.info(NAME).suspended
    for raised in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(raised), suspended(control, NAME, flush=False, lockfs=False):
            raise raised
        assert not control.info(NAME).suspended


def test_the_error_of_a_suspend_is_not_hidden(control: Control) -> None:
    with pytest.raises(DeviceMapperError) as raised, suspended(control, NAME):
        pytest.fail("the block was entered")
    assert raised.value.__context__ is not None
    assert not isinstance(raised.value.__context__, DeviceMapperError)


@pytest.mark.usefixtures("no_udevd")
def test_it_is_resumed_wherever_a_signal_strikes(control: Control, device: MakeDevice) -> None:
    """Before each line of ours and of contextlib in turn, as a signal handler's exception comes between two of them."""
    device(NAME, ZERO)
    struck = 0
    while where := _strike(control, struck):
        assert not control.info(NAME).suspended, where
        struck += 1
    assert struck > 40


def _strike(control: Control, line: int) -> str | None:
    """Interrupt a suspension before one of its lines: which one that was, or None where it has not so many.

    Not in a `__del__`, out of which Python lets no exception; where there is something to do in it, one has struck.
    """
    left = line

    def trace(frame: FrameType, event: str, _argument: object) -> "TraceFunction | None":
        nonlocal left
        if frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            if left == 0:
                sys.settrace(None)
                raise Interrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            left -= 1
        return trace

    sys.settrace(trace)
    try:
        with suspended(control, NAME):
            control.info(NAME)
    except Interrupt as interrupt:
        return str(interrupt)
    finally:
        sys.settrace(None)
    return None


def test_another_table(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    below = str(disk(MIB))
    path = device_path(device(NAME, [TableEntry(0, 8, Linear(below))]))
    with path.open("rb", buffering=0) as opened:
        info = swap_table(control, NAME, [TableEntry(0, 16, Linear(below))])
        assert (info.suspended, info.inactive) == (False, False)
        assert opened.seek(0, os.SEEK_END) == 16 * SECTOR


@pytest.mark.parametrize("refused", [Unknown("no-such", ""), Linear("/dev/missing"), Linear("BELOW", 1 << 40)])
def test_a_table_that_is_refused_leaves_the_old_one(
    control: Control, device: MakeDevice, disk: MakeDisk, refused: Unknown | Linear
) -> None:
    below = str(disk(MIB))
    device(NAME, [TableEntry(0, 8, Linear(below))])
    before, table = control.info(NAME), control.table(NAME)
    if isinstance(refused, Linear) and refused.device == "BELOW":
        refused = Linear(below, refused.start_sectors)
    with pytest.raises(DeviceMapperError):
        swap_table(control, NAME, [TableEntry(0, 8, refused)])
    assert control.info(NAME) == before
    assert control.table(NAME) == table


def test_a_table_that_fails_in_force_is_undone(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    """A pool refuses to become smaller only when it is resumed with the table in force."""
    control.require_target("thin-pool")
    pool = ThinPool(str(disk(2 * MIB)), str(disk(8 * MIB)), 128, 0)
    device(NAME, [TableEntry(0, 16384, pool)])
    before, table = control.info(NAME), control.table(NAME)
    with pytest.raises(DeviceMapperError, match="the table cannot be put in force"):
        swap_table(control, NAME, [TableEntry(0, 8192, pool)])
    assert control.info(NAME) == before
    assert control.table(NAME) == table
    thin.create_thin(control, NAME, 1)


def test_removal(control: Control, device: MakeDevice) -> None:
    path = device_path(device(NAME, ZERO))
    with path.open("rb"):
        with pytest.raises(DeviceMapperError) as raised:
            remove_device(control, NAME)
        assert raised.value.errno == errno.EBUSY
        assert raised.value.hint is not None
    assert not remove_device(control, NAME).deferred_remove
    with pytest.raises(DeviceMapperError) as raised:
        remove_device(control, NAME)
    assert raised.value.errno == errno.ENXIO


@pytest.mark.usefixtures("no_udevd")
def test_names_without_an_udevd(control: Control, device: MakeDevice) -> None:
    link, other = Path("/dev/mapper", NAME), Path("/dev/mapper/device-2")
    link.symlink_to("../dm-1048575")  # left by somebody
    info = device(NAME, ZERO)
    assert link.resolve() == device_path(info)
    rename_device(control, NAME, other.name)
    assert not link.is_symlink()
    assert other.resolve() == device_path(info)
    with device_path(info).open("rb"):
        assert remove_device(control, other.name, deferred=True).deferred_remove
    device(NAME, [TableEntry(0, 8, Error())])
    remove_device(control, NAME)
    assert not link.is_symlink()
    other.unlink()
