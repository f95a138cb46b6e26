"""Device-mapper devices as text and JSON, and a table from text."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import click
import pyudev

from thinpool.cli import output
from thinpool.dm import Control, DeviceInfo, TableEntry, Thin, parse_target
from thinpool.dm.device import create_device
from thinpool.errors import DeviceMapperError
from thinpool.units import SECTOR, human_size

_MAPPER = "/dev/mapper"
_UDEV = "/run/udev/control"
_UDEV_SECONDS = 5.0


@attrs.frozen
class Line:
    """One line of a table or a status.

    Attributes:
        name: the device's name.
        start_sectors: where it begins.
        length_sectors: how long it is.
        kind: the target.
        text: parameters or status.
    """

    name: str
    start_sectors: int
    length_sectors: int
    kind: str
    text: str


@attrs.frozen
class Entry:
    """One device of a listing.

    Attributes:
        info: its state.
        table: its table in force.
    """

    info: DeviceInfo
    table: Sequence[TableEntry]

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def path(self) -> Path:
        """Its node."""
        return Path(f"/dev/dm-{self.info.minor}")

    @property
    def size(self) -> int:
        """Bytes that its table maps."""
        return sum(line.length_sectors for line in self.table) * SECTOR

    @property
    def thin(self) -> Thin | None:
        """What it is of a pool, if it is a thin device."""
        targets = [line.target for line in self.table]
        return targets[0] if len(targets) == 1 and isinstance(targets[0], Thin) else None


def parse_table(text: str) -> list[TableEntry]:
    """Read a table: lines of start, length, target and parameters.

    Raises:
        UsageError: a line is of another form.
    """
    entries = []
    for line in filter(str.strip, text.splitlines()):
        start, length, kind, params = (*line.split(None, 3), "", "", "")[:4]
        if not (kind and start.isascii() and start.isdigit() and length.isascii() and length.isdigit()):
            raise click.UsageError(f"table line {line!r} is not of the form START LENGTH TARGET PARAMETERS")
        entries.append(TableEntry(int(start), int(length), parse_target(kind, params.strip())))
    if not entries:
        raise click.UsageError("the table has no line")
    return entries


def create_with_node(
    control: Control, name: str, table: Sequence[TableEntry], *, uuid: str, read_only: bool
) -> tuple[DeviceInfo, Path]:
    """Make a device, wait until udev, if it runs, has named it, and give its path: in /dev/mapper, else its node."""
    events = _block_events() if os.path.exists(_UDEV) else None
    info = create_device(control, name, table, uuid=uuid, read_only=read_only)
    node, named = Path(f"/dev/dm-{info.minor}"), Path(_MAPPER, name)
    while events is not None and not named.exists():
        event = events.poll(_UDEV_SECONDS)
        if event is None or (event.device_node == str(node) and event.action == "change"):
            break
    return info, named if named.exists() else node


def _block_events() -> pyudev.Monitor:
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by("block")
    monitor.start()
    return monitor


def devices(control: Control) -> list[Entry]:
    """All devices, by name; one that goes away meanwhile is left out."""
    entries = []
    for name in sorted(device.name for device in control.devices()):
        with _if_there():
            entries.append(Entry(control.info(name), control.table(name)))
    return entries


def thin_device(control: Control, pool: str, thin_id: int) -> Entry | None:
    """The active device with a number in a pool; None where none is active, or the pool is not."""
    entries = devices(control)
    pools = {f"{entry.info.major}:{entry.info.minor}" for entry in entries if entry.name == pool}
    for entry in entries:
        if entry.thin is not None and entry.thin.thin_id == thin_id and entry.thin.pool in pools:
            return entry
    return None


def status_lines(control: Control, name: str | None, *, noflush: bool) -> Iterator[Line]:
    """The status of one device, or of all."""
    for each in _names(control, name):
        with _if_there(unless=name):
            for line in control.status(each, noflush=noflush):
                yield Line(each, line.start_sectors, line.length_sectors, line.kind, line.text)


def table_lines(control: Control, name: str | None) -> Iterator[Line]:
    """The table of one device, or of all."""
    for each in _names(control, name):
        with _if_there(unless=name):
            for line in control.table(each):
                yield Line(each, line.start_sectors, line.length_sectors, line.target.kind, line.target.params())


def print_lines(lines: Iterable[Line], what: str, *, as_json: bool, with_names: bool) -> None:
    """Print lines as dmsetup does, or as JSON with the text under the key `what`."""
    if as_json:
        output.write_json(
            [
                {
                    "name": line.name,
                    "start_sectors": line.start_sectors,
                    "length_sectors": line.length_sectors,
                    "target": line.kind,
                    what: line.text,
                }
                for line in lines
            ]
        )
        return
    output.write_lines(
        (f"{output.escape(line.name)}: " if with_names else "")
        + f"{line.start_sectors} {line.length_sectors} {line.kind} {output.visible(line.text)}".rstrip()
        for line in lines
    )


def entry_json(entry: Entry) -> dict[str, object]:
    """A device of the listing, size in bytes."""
    return {
        **info_json(entry.info, entry.path),
        "targets": [line.target.kind for line in entry.table],
        "size": entry.size,
        "thin_id": None if entry.thin is None else entry.thin.thin_id,
        "users": entry.info.open_count,
        "suspended": entry.info.suspended,
        "read_only": entry.info.read_only,
    }


def entry_cells(entry: Entry) -> tuple[str, ...]:
    """A device of the listing, for people."""
    states = {"suspended": entry.info.suspended, "read-only": entry.info.read_only, "no table": not entry.table}
    return (
        output.escape(entry.name),
        str(entry.path),
        " ".join(dict.fromkeys(line.target.kind for line in entry.table)) or "-",
        "-" if entry.thin is None else str(entry.thin.thin_id),
        human_size(entry.size),
        str(entry.info.open_count),
        ", ".join(state for state, holds in states.items() if holds) or "-",
        output.escape(entry.info.uuid) or "-",
    )


def info_json(info: DeviceInfo, path: Path) -> dict[str, object]:
    """Which device it is."""
    return {
        "name": info.name,
        "path": str(path),
        "major": info.major,
        "minor": info.minor,
        "uuid": info.uuid or None,
    }


def _names(control: Control, name: str | None) -> list[str]:
    return sorted(device.name for device in control.devices()) if name is None else [name]


@contextmanager
def _if_there(*, unless: str | None = None) -> Iterator[None]:
    """Pass over a device that went away since it was listed; one that was asked for by name has to be there."""
    try:
        yield
    except DeviceMapperError as error:
        if unless is not None or error.errno != errno.ENXIO:
            raise
