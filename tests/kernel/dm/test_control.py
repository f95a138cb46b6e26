"""Every ioctl of the interface, on the real kernel, beside dmsetup where that tells the same."""

import errno
import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.dm.conftest import MakeDevice, MakeDisk
from thinpool.dm import Control, DeviceInfo, Error, Linear, TableEntry, Unknown, Zero
from thinpool.dm import control as control_module
from thinpool.dm.device import device_path
from thinpool.errors import ConfigError, DeviceMapperError, DriverUnsupported
from thinpool.units import MIB

pytestmark = pytest.mark.kernel

ZERO = [TableEntry(0, 8, Zero())]
HDIO_GETGEO = 0x0301


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def shown(name: str) -> dict[str, str]:
    columns = "name,uuid,major,minor,open,segments,events,attr,suspended,readonly"
    line = run("dmsetup", "info", "--columns", "--noheadings", "--separator", "|", "--options", columns, name)
    return dict(zip(columns.split(","), line.split("|"), strict=True))


def agrees(info: DeviceInfo) -> bool:
    found = shown(info.name)
    numbers = [int(found[key]) for key in ("major", "minor", "open", "segments", "events")]
    flags = [found["attr"][0] == "L", found["attr"][1] == "I", found["suspended"], found["readonly"]]
    return (
        found["uuid"] == info.uuid
        and numbers == [info.major, info.minor, info.open_count, info.target_count, info.event_nr]
        and flags
        == [
            info.active,
            info.inactive,
            "Suspended" if info.suspended else "Active",
            "Read-only" if info.read_only else "Writeable",
        ]
    )


@contextmanager
def fails(code: int, ioctl: str, device: str, meaning: str) -> Iterator["pytest.ExceptionInfo[DeviceMapperError]"]:
    with pytest.raises(DeviceMapperError, match=meaning) as raised:
        yield raised
    assert (raised.value.errno, raised.value.ioctl, raised.value.device) == (code, ioctl, device)


def test_the_interface(control: Control) -> None:
    assert control.interface[0] == 4
    assert control.version() == control.interface
    assert ".".join(map(str, control.interface)) in run("dmsetup", "version")


def test_an_interface_of_another_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "_INTERFACE", (5, 0, 0))
    with pytest.raises(DriverUnsupported, match=r"the kernel has version 4\.\d+\.0 .* accepted is 5\.x"):
        Control()


def test_the_life_of_a_device(control: Control) -> None:
    info = control.create("control-1")
    try:
        assert (info.suspended, info.active, info.inactive, info.uuid) == (False, False, False, "")
        control.set_uuid("control-1", "CONTROL-UUID")
        control.load("control-1", ZERO)
        info = control.info("control-1")
        assert (info.active, info.inactive) == (False, True)
        assert agrees(info)
        assert control.table("control-1", inactive=True) == ZERO
        assert control.table("control-1") == []
        control.clear("control-1")
        assert not control.info("control-1").inactive
        control.load("control-1", ZERO)
        assert control.resume("control-1") == control.info("control-1")
        assert control.table("control-1") == ZERO
        assert agrees(control.info("control-1"))
        for flush, lockfs in ((True, True), (False, True), (True, False), (False, False)):
            control.suspend("control-1", flush=flush, lockfs=lockfs)
            info = control.info("control-1")
            assert info.suspended
            assert agrees(info)
            control.resume("control-1")
        control.rename("control-1", "control-2")
        info = control.info("control-2")
        assert info.name == "control-2"
        assert info == control.info(uuid="CONTROL-UUID") == control.info(dev=(info.major, info.minor))
        assert agrees(info)
    finally:
        for entry in control.devices():
            control.remove(entry.name)
    assert control.devices() == []


def test_a_read_only_device(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    info = device("control-1", [TableEntry(0, 8, Linear(str(disk(MIB))))], read_only=True)
    assert info.read_only
    assert agrees(control.info("control-1"))
    with device_path(info).open("r+b", buffering=0) as opened, pytest.raises(PermissionError):
        opened.write(bytes(4096))


def test_what_the_kernel_refuses(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    below = disk(MIB)
    info = device("control-1", [TableEntry(0, 8, Linear(str(below)))], uuid="CONTROL-1")
    device("control-2", ZERO)
    with fails(errno.EBUSY, "DM_DEV_CREATE", "control-1", "a device of that name or uuid exists"):
        control.create("control-1")
    with fails(errno.EBUSY, "DM_DEV_CREATE", "control-3", "a device of that name or uuid exists"):
        control.create("control-3", "CONTROL-1")
    with fails(errno.EBUSY, "DM_DEV_RENAME", "control-2", "another device has that name or uuid"):
        control.rename("control-2", "control-1")
    with fails(errno.EINVAL, "DM_DEV_RENAME", "control-1", "has a uuid already"):
        control.set_uuid("control-1", "OTHER")
    with device_path(info).open("rb"), fails(errno.EBUSY, "DM_DEV_REMOVE", "control-1", "is in use") as raised:
        control.remove("control-1")
    assert raised.value.hint is not None
    for refused in (Linear("259:1048575"), Linear("/dev/missing"), Unknown("no-such", "")):
        with pytest.raises(DeviceMapperError, match="DM_TABLE_LOAD control-2") as refusal:
            control.load("control-2", [TableEntry(0, 8, refused)])
        assert "(" in refusal.value.message
        assert refusal.value.hint
    with fails(errno.EINVAL, "DM_TARGET_MSG", "control-2", "the target does not accept the message"):
        control.message("control-2", "create_thin 0")
    assert control.info("control-1") == info
    assert control.table("control-2") == ZERO


@pytest.mark.parametrize(
    "call",
    [
        lambda control: control.remove("none"),
        lambda control: control.info("none"),
        lambda control: control.info(uuid="none"),
        lambda control: control.info(dev=(7, 0)),
        lambda control: control.table("none"),
        lambda control: control.status("none"),
        lambda control: control.deps("none"),
        lambda control: control.load("none", ZERO),
        lambda control: control.clear("none"),
        lambda control: control.suspend("none"),
        lambda control: control.resume("none"),
        lambda control: control.rename("none", "other"),
        lambda control: control.set_uuid("none", "OTHER"),
        lambda control: control.set_geometry("none", cylinders=1, heads=1, sectors=1),
        lambda control: control.message("none", "x"),
        lambda control: control.wait("none", 0),
    ],
)
def test_a_device_that_is_not_there(control: Control, call: Callable[[Control], object]) -> None:
    with pytest.raises(DeviceMapperError, match="there is no such device") as raised:
        call(control)
    assert raised.value.errno == errno.ENXIO


@pytest.mark.parametrize("name", ["n" * 128, "", "a/b", "..", "control"])
def test_names_that_never_reach_the_kernel(control: Control, device: MakeDevice, name: str) -> None:
    device("control-1", ZERO)
    with pytest.raises(ConfigError):
        control.create(name)
    with pytest.raises(ConfigError):
        control.rename("control-1", name)
    with pytest.raises(ConfigError):
        control.create("control-2", "u" * 129)
    with pytest.raises(ConfigError):
        control.set_uuid("control-1", "u" * 129)
    assert [entry.name for entry in control.devices()] == ["control-1"]


@pytest.mark.usefixtures("no_udevd")
def test_a_list_longer_than_any_first_buffer(control: Control) -> None:
    """The longest names and uuids that there can be, bytes that are no UTF-8 among them."""
    names = {f"{number:03}\udcff".ljust(126, "n"): f"{number:03}-".ljust(128, "u") for number in range(200)}
    names["bare"] = ""
    try:
        made = {name: control.create(name, uuid) for name, uuid in names.items()}
        found = {entry.name: entry for entry in control.devices()}
        assert {name: entry.uuid for name, entry in found.items()} == names
        assert all(
            (entry.major, entry.minor) == (made[entry.name].major, made[entry.name].minor) for entry in found.values()
        )
        control.load("bare", ZERO)
        control.resume("bare")
        control.rename("bare", "again")
        assert (
            {entry.name: entry.event_nr for entry in control.devices()}["again"] == control.info("again").event_nr == 1
        )
    finally:
        for entry in control.devices():
            control.remove(entry.name)


@pytest.mark.usefixtures("no_udevd")
def test_a_table_of_many_lines(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    path = disk(4 * MIB)
    number = os.stat(path).st_rdev
    below = f"{os.major(number)}:{os.minor(number)}"
    targets = (Zero(), Error(), Linear(below, 8))
    table = [TableEntry(8 * line, 8, targets[line % 3]) for line in range(500)]
    device("control-1", table)
    assert control.table("control-1") == table
    assert len(control.status("control-1")) == 500
    lines = [f"{each.start_sectors} 8 {each.target.kind} {each.target.params()}" for each in table]
    assert [line.rstrip() for line in run("dmsetup", "table", "control-1").splitlines()] == [
        line.rstrip() for line in lines
    ]


def test_targets(control: Control) -> None:
    assert control.require_target("flakey").name == "flakey"
    found = control.target_version("flakey")
    assert found in control.target_versions()
    assert found is not None
    assert f"v{'.'.join(map(str, found.version))}" in run("dmsetup", "targets").split("flakey")[1].split()
    assert control.target_version("no-such") is None
    with pytest.raises(DriverUnsupported, match=r"has no no-such target \(module dm_no_such: .*not found"):
        control.require_target("no-such")
    with pytest.raises(ConfigError):
        control.target_version("a-name-that-is-too-long")


def test_dependencies(control: Control, device: MakeDevice, disk: MakeDisk) -> None:
    paths = [disk(MIB), disk(MIB)]
    device("control-1", [TableEntry(8 * number, 8, Linear(str(path))) for number, path in enumerate(paths)])
    numbers = [os.stat(path).st_rdev for path in paths]
    assert sorted(control.deps("control-1")) == sorted((os.major(number), os.minor(number)) for number in numbers)
    device("control-2", ZERO)
    assert control.deps("control-2") == []


def test_geometry(control: Control, device: MakeDevice) -> None:
    info = device("control-1", ZERO)
    control.set_geometry("control-1", cylinders=7, heads=4, sectors=32, start_sector=2)
    with device_path(info).open("rb") as opened:
        found = struct.unpack("=BBHxxxxQ", fcntl.ioctl(opened, HDIO_GETGEO, bytes(16)))
    assert found == (4, 32, 7, 2)


def test_a_message_with_a_reply(control: Control, device: MakeDevice) -> None:
    device("control-1", [TableEntry(0, 8000, Zero())])
    assert control.message("control-1", "@stats_list") == ""
    assert control.message("control-1", "@stats_create - 8 ours") == "0"
    assert control.message("control-1", "@stats_list") == "0: 0+8000 8 ours -\n"
    reply = control.message("control-1", "@stats_print 0")
    assert reply is not None
    assert len(reply) > 16 << 10
    assert len(reply.splitlines()) == 1000
    assert control.message("control-1", "@stats_delete 0") is None


def test_polling_for_events(control: Control, device: MakeDevice) -> None:
    device("control-1", ZERO)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    control.arm_poll()
    assert poll.poll(0) == []
    control.rename("control-1", "control-2")  # which is an event
    assert poll.poll(30_000) == [(control.fileno(), select.POLLIN)]
    control.arm_poll()
    assert poll.poll(0) == []
    control.remove("control-2")


def test_waiting_for_an_event_that_has_been(control: Control, device: MakeDevice) -> None:
    before = device("control-1", ZERO)
    control.rename("control-1", "control-2")
    assert control.wait("control-2", before.event_nr).event_nr == before.event_nr + 1
    control.remove("control-2")


def test_deferred_removal(control: Control, device: MakeDevice) -> None:
    info = device("control-1", ZERO)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    with device_path(info).open("rb"):
        assert control.remove("control-1", deferred=True).deferred_remove
        found = control.info("control-1")
        assert found.deferred_remove
        assert found.open_count == 1
        control.arm_poll()
    assert poll.poll(30_000)  # the kernel removes it a moment after the last user let go, and that is an event
    assert control.devices() == []
    device("control-1", ZERO)
    assert not control.remove("control-1", deferred=True).deferred_remove
    assert control.devices() == []


def test_the_control_device_is_closed(control: Control) -> None:
    fd = control.fileno()
    control.close()
    control.close()
    assert not Path(f"/proc/self/fd/{fd}").exists()
    with pytest.raises(ValueError, match="file descriptor"):
        control.devices()
