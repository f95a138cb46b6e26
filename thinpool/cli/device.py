"""`thinpool device`: the low-level tool for device-mapper devices, pool messages and loop devices."""

from typing import TYPE_CHECKING

import click

from thinpool.cli import output
from thinpool.cli.command import Group, command
from thinpool.cli.params import PATH
from thinpool.cli.settings import Settings, require_root
from thinpool.errors import DeviceUnsafe

if TYPE_CHECKING:
    from pathlib import Path

    from thinpool.dm import Control

OWN_UUID_PREFIX = "THINPOOL-"

_HERE = "thinpool.cli.device"
_SECTIONS = {
    "Devices": {
        "list": f"{_HERE}:list_",
        "id": f"{_HERE}:id_",
        "create": f"{_HERE}:create",
        "remove": f"{_HERE}:remove",
        "suspend": f"{_HERE}:suspend",
        "resume": f"{_HERE}:resume",
    },
    "Targets": {
        "table": f"{_HERE}:table",
        "status": f"{_HERE}:status",
        "message": f"{_HERE}:message",
    },
    "Files as devices": {
        "attach": f"{_HERE}:attach",
        "detach": f"{_HERE}:detach",
    },
}

_force = click.option("--force", is_flag=True, help="Also where the device belongs to a thinpool store.")


@click.group(
    "device",
    cls=Group,
    sections=_SECTIONS,
    examples=[
        ("truncate -s 100M metadata; truncate -s 10G data", "two files, all zeros"),
        ("thinpool device attach metadata; thinpool device attach data", "as /dev/loop0 and /dev/loop1"),
        ('thinpool device create pool --table "0 20971520 thin-pool /dev/loop0 /dev/loop1 128 0"', "a pool"),
        ('thinpool device message pool "create_thin 0"', "in it, a thin device, number 0"),
        ('thinpool device create thin --table "0 2097152 thin /dev/mapper/pool 0"', "1 GiB of it"),
        ("mkfs.ext4 /dev/mapper/thin", "for a file system"),
    ],
)
def device() -> None:
    """Raw thin devices and pool messages.

    These commands speak to the kernel as dmsetup does, in its tables and messages, and need no store. What belongs to
    a thinpool store can be looked at; changing it takes --force.
    """


@command(
    "list",
    examples=[
        ("thinpool device list", "all device-mapper devices"),
        ("thinpool device list --json | jq -r '.[] | select(.thin_id == 7) | .path'", "where thin device 7 is active"),
    ],
)
def list_(settings: Settings) -> None:
    """List the device-mapper devices of this machine.

    THIN is the number of a thin device in its pool; USERS counts who holds a device open, mounts included.
    """
    from thinpool.cli.devices import devices, entry_cells, entry_json  # noqa: PLC0415 - brings thinpool.dm

    with _control() as control:
        entries = devices(control)
    if settings.json:
        output.write_json([entry_json(entry) for entry in entries])
    else:
        headers = ("NAME", "PATH", "TARGET", "THIN", "SIZE", "USERS", "STATE", "UUID")
        output.write_lines(output.table(headers, map(entry_cells, entries), right=frozenset({3, 4, 5})))


@command(
    "id",
    examples=[
        ("thinpool device id 7", "the device with the number 7 in the store's pool"),
        ("thinpool device id 7 --json | jq -r .path", "where it is active"),
    ],
)
@click.argument("number", metavar="N", type=click.IntRange(0, (1 << 24) - 1))
def id_(settings: Settings, number: int) -> None:
    """Show which layer of the store has the thin id N, and its device's name and path, if it is active.

    A thin device is active only while it is mounted or otherwise in use.
    """
    from thinpool.cli.devices import thin_device  # noqa: PLC0415 - brings thinpool.dm

    with settings.open_store() as store:
        info = store.info()
        if info.pool is None:
            raise click.UsageError(f"a store of the {info.driver} driver has no thin ids")
        layer = store.layer_of(number)
    with _control() as control:
        entry = thin_device(control, info.pool.name, number)
    facts = {
        "id": number,
        "layer": layer.name,
        "pool": info.pool.name,
        "active": entry is not None,
        "name": None if entry is None else entry.name,
        "path": None if entry is None else str(entry.path),
    }
    if settings.json:
        output.write_json(facts)
    else:
        shown = {key: "-" if value is None else str(value).lower() for key, value in facts.items()}
        output.write_lines(f"{key:6}  {output.escape(value)}" for key, value in shown.items())


@command(
    "create",
    examples=[
        (
            'thinpool device create pool --table "0 20971520 thin-pool /dev/loop0 /dev/loop1 128 0"',
            "a pool of 10 GiB in blocks of 64 KiB",
        ),
        ('thinpool device create thin --table "0 2097152 thin /dev/mapper/pool 0"', "its thin device 0, 1 GiB long"),
        ('thinpool device create disk --table "0 8 linear 7:0 0" --table "8 8 error"', "a table of two lines"),
    ],
)
@click.argument("name")
@click.option(
    "--table",
    "tables",
    required=True,
    multiple=True,
    metavar="LINES",
    help="START LENGTH TARGET PARAMETERS, in sectors.",
)
@click.option("--uuid", default="", metavar="UUID", help="Its uuid.")
@click.option("--read-only", is_flag=True, help="Let nothing be written to it.")
def create(settings: Settings, name: str, tables: tuple[str, ...], uuid: str, *, read_only: bool) -> None:
    """Make the device NAME with a table, and print its path.

    Start and length are in sectors of 512 bytes; what follows is the kernel's, as in its documentation of each target.
    """
    from thinpool.cli.devices import create_with_node, info_json, parse_table  # noqa: PLC0415 - brings thinpool.dm

    entries = parse_table("\n".join(tables))
    with _control() as control:
        info, path = create_with_node(control, name, entries, uuid=uuid, read_only=read_only)
    if settings.json:
        output.write_json(info_json(info, path))
    else:
        output.write_lines([output.escape(str(path))])


@command(
    "remove",
    examples=[
        ("thinpool device remove thin", "a device that nobody uses"),
        ("thinpool device remove pool --deferred", "as soon as nobody uses it"),
    ],
)
@click.argument("name")
@click.option("--deferred", is_flag=True, help="If it is in use, remove it when its last user lets go.")
@_force
def remove(_settings: Settings, name: str, *, deferred: bool, force: bool) -> None:
    """Remove the device NAME; what is stored in it stays in the pool.

    A device that is in use is refused, unless --deferred is given.
    """
    with _control() as control:
        _refuse_own(control, name, force=force)
        control.remove(name, deferred=deferred)


@command("suspend", examples=[("thinpool device suspend thin", "before a snapshot of it is taken")])
@click.argument("name")
@_force
def suspend(_settings: Settings, name: str, *, force: bool) -> None:
    """Hold back the I/O of the device NAME, until it is resumed.

    A file system on it is frozen first, so that what is on the device is consistent.
    """
    with _control() as control:
        _refuse_own(control, name, force=force)
        control.suspend(name)


@command("resume", examples=[("thinpool device resume thin", "let it go on")])
@click.argument("name")
@_force
def resume(_settings: Settings, name: str, *, force: bool) -> None:
    """Let the I/O of the device NAME go on, after it was suspended.

    A table that was loaded meanwhile comes into force.
    """
    with _control() as control:
        _refuse_own(control, name, force=force)
        control.resume(name)


@command(
    "message",
    examples=[
        ('thinpool device message pool "create_thin 0"', "make thin device 0"),
        ('thinpool device message pool "create_snap 1 0"', "make thin device 1, a snapshot of 0"),
        (
            "thinpool device message pool 0 delete 1",
            "delete thin device 1; the sector is named, and no quotes are needed",
        ),
    ],
)
@click.argument("name")
@click.argument("words", nargs=-1, required=True, metavar="[SECTOR] TEXT...")
@_force
def message(settings: Settings, name: str, words: tuple[str, ...], *, force: bool) -> None:
    """Send a message to the target at SECTOR (else 0) of the device NAME, and print its answer, if there is one.

    What a thin pool understands is in the kernel's documentation of thin-provisioning. A thin device that is in use
    has to be suspended while a snapshot of it is taken.
    """
    has_sector = len(words) > 1 and words[0].isascii() and words[0].isdigit()
    sector, text = (int(words[0]), words[1:]) if has_sector else (0, words)
    with _control() as control:
        _refuse_own(control, name, force=force)
        answer = control.message(name, " ".join(text), sector)
    if settings.json:
        output.write_json({"name": name, "answer": answer})
    elif answer is not None:
        output.write_lines([output.escape(answer)])


@command(
    "status",
    examples=[
        ("thinpool device status pool", "transaction id, blocks in use, mode"),
        ("thinpool device status", "of every device"),
    ],
)
@click.argument("name", required=False)
@click.option("--noflush", is_flag=True, help="As it is, without having a pool commit first.")
def status(settings: Settings, name: str | None, *, noflush: bool) -> None:
    """Show what the targets of the device NAME, or of all devices, say of their state.

    A line each: start and length in sectors, the target, its status as the kernel prints it.
    """
    from thinpool.cli.devices import print_lines, status_lines  # noqa: PLC0415 - brings thinpool.dm

    with _control() as control:
        lines = status_lines(control, name, noflush=noflush)
        print_lines(lines, "status", as_json=settings.json, with_names=name is None)


@command(
    "table",
    examples=[
        ("thinpool device table pool", "what it is made of"),
        ("thinpool device table", "of every device"),
    ],
)
@click.argument("name", required=False)
def table(settings: Settings, name: str | None) -> None:
    """Show the table of the device NAME, or of all devices.

    A line each: start and length in sectors, the target, its parameters, as `device create --table` takes them.
    """
    from thinpool.cli.devices import print_lines, table_lines  # noqa: PLC0415 - brings thinpool.dm

    with _control() as control:
        lines = table_lines(control, name)
        print_lines(lines, "table", as_json=settings.json, with_names=name is None)


@command(
    "attach",
    examples=[
        ("thinpool device attach data", "a file as /dev/loop0, or the next that is free"),
        ("thinpool device attach image.ext4 --read-only", "to read"),
    ],
)
@click.argument("file", type=PATH)
@click.option("--read-only", is_flag=True, help="Let nothing be written to it.")
def attach(settings: Settings, file: "Path", *, read_only: bool) -> None:
    """Attach FILE to a free loop device, and print the device's path.

    It stays attached until `device detach`, or the next boot.
    """
    require_root("a loop device")
    from thinpool import loop  # noqa: PLC0415 - not needed for the help

    with loop.attach(file, read_only=read_only, autoclear=False) as made:
        if settings.json:
            output.write_json({"path": str(made.path), "file": str(file)})
        else:
            output.write_lines([str(made.path)])


@command("detach", examples=[("thinpool device detach /dev/loop0", "the file is a file again")])
@click.argument("loops", metavar="DEVICE...", nargs=-1, required=True, type=PATH)
def detach(_settings: Settings, loops: "tuple[Path, ...]") -> None:
    """Detach loop devices from their files.

    A device that is in use is detached when its last user lets go.
    """
    require_root("a loop device")
    from thinpool import loop  # noqa: PLC0415 - not needed for the help

    for path in loops:
        loop.detach(path)


def _control() -> "Control":
    require_root("device-mapper")
    from thinpool.dm import Control  # noqa: PLC0415 - not needed for the help

    return Control()


def _refuse_own(control: "Control", name: str, *, force: bool) -> None:
    """Refuse what would pull a device out from under a store."""
    uuid = control.info(name).uuid
    if uuid.startswith(OWN_UUID_PREFIX) and not force:
        raise DeviceUnsafe(
            f"device {name} belongs to a thinpool store (uuid {uuid})",
            hint="use the commands of the store, as in `thinpool down`; --force does it all the same",
        )
