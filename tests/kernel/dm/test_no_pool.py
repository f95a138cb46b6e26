"""Statuses of what is no pool and no thin device."""

import errno
from collections.abc import Callable

import pytest

from tests.kernel.dm.conftest import MakeDevice
from thinpool.dm import Control, TableEntry, Zero
from thinpool.dm.thin import pool_status, thin_status
from thinpool.errors import DeviceMapperError

pytestmark = pytest.mark.kernel

NAME = "no-pool"


@pytest.mark.parametrize(("status", "kind"), [(pool_status, "thin-pool"), (thin_status, "thin")])
def test_a_device_of_another_target(
    control: Control, device: MakeDevice, status: Callable[[Control, str], object], kind: str
) -> None:
    device(NAME, [TableEntry(0, 8, Zero())])
    with pytest.raises(DeviceMapperError, match=f"device {NAME} is of the target zero, not {kind}") as caught:
        status(control, NAME)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("status", [pool_status, thin_status])
def test_a_device_without_a_table(control: Control, status: Callable[[Control, str], object]) -> None:
    control.create(NAME)
    try:
        with pytest.raises(DeviceMapperError, match=f"device {NAME} has no table in force") as caught:
            status(control, NAME)
        assert caught.value.errno == errno.ENXIO
    finally:
        control.remove(NAME)
