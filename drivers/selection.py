"""Which driver serves a root: the one that was named, the one whose state is there, or the first that works."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from thinpool.drivers.base import DriverType
from thinpool.errors import ConfigError, DriverUnsupported, ThinPoolError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

AUTOMATIC = ("aufs", "btrfs", "devicemapper")
"""The order in which a driver is looked for where none is named."""

GROUP = "thinpool.drivers"
"""The group of entry points by which another package brings a driver; the name of one is the driver's."""

_OWN = (*AUTOMATIC, "overlay")


@attrs.frozen
class DriverReport:
    """What `drivers` shows of one driver.

    Attributes:
        name: the driver's name.
        supported: whether it can work on this host with that root.
        reason: why not, or None.
        selected: whether it is the one that would serve the root.
    """

    name: str
    supported: bool
    reason: str | None
    selected: bool


@cache
def _others() -> Mapping[str, "EntryPoint"]:
    """What other packages bring, by name; none of them can take the name of one of ours."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to load, and seldom asked for

    return {found.name: found for found in entry_points(group=GROUP) if found.name not in _OWN}


def names() -> Sequence[str]:
    """The names of all drivers, those included that cannot work here: ours in the order of selection, then others."""
    return (*_OWN, *sorted(_others()))


def driver_type(name: str) -> DriverType:
    """The driver of that name.

    Raises:
        ConfigError: no driver has that name.
        DriverUnsupported: what another package brings is broken.
    """
    if name in _OWN:
        found: DriverType = import_module(f"thinpool.drivers.{name}").TYPE
        return found
    if name not in _others():
        raise ConfigError(f"no driver is named {name!r}; there are {', '.join(names())}")
    entry = _others()[name]
    try:
        loaded = entry.load()
    except Exception as error:  # whatever another package does on import
        raise _unsupported(name, f"{entry.value} cannot be loaded: {_words(error)}") from error
    if not isinstance(loaded, DriverType) or loaded.name != name:
        raise _unsupported(name, f"{entry.value} is no driver type of that name")
    return loaded


def reason_against(name: str, root: Path) -> str | None:
    """Why a driver cannot serve that root on this host; None where it can.

    Raises:
        ThinPoolError: it is not known, because something failed.
    """
    try:
        kind = driver_type(name)
    except DriverUnsupported as error:
        return error.reasons[name]
    try:
        return kind.probe(root)
    except ThinPoolError:
        raise
    except Exception as error:
        if name in _OWN:
            raise
        return f"its probe failed: {_words(error)}"


def held(root: Path) -> Sequence[str]:
    """The drivers whose state the root holds, in the order of their names."""
    try:
        found = {entry.name for entry in root.iterdir() if entry.is_dir()}
    except OSError:  # missing, or no directory: whoever opens it says so
        return []
    return sorted(found.intersection(_OWN) or (found and found.intersection(_others())))


def choose(root: Path, explicit: str | None = None) -> str:
    """The name of the driver that serves a root.

    Raises:
        ConfigError: no driver has the name, another one's state is in the root, or two drivers' is.
        DriverUnsupported: the driver, or each of them, cannot work here, with a reason a driver.
    """
    wanted = _named(root, explicit)
    reasons: dict[str, str] = {}
    for name in AUTOMATIC if wanted is None else [wanted]:
        reason = reason_against(name, root)
        if reason is None:
            return name
        reasons[name] = reason
    if wanted is not None:
        raise _unsupported(wanted, reasons[wanted])
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise DriverUnsupported(f"no driver works here: {told}", reasons=reasons)


def _named(root: Path, explicit: str | None) -> str | None:
    """The driver that was asked for, or whose state the root holds."""
    present = held(root)
    if len(present) > 1:
        raise ConfigError(
            f"root {root} holds state of two drivers: {' and '.join(present)}",
            hint="each root serves one driver; move one of the two directories elsewhere",
        )
    if explicit is not None and explicit not in _OWN and explicit not in _others():
        raise ConfigError(f"no driver is named {explicit!r}; there are {', '.join(names())}")
    if present and explicit not in {None, present[0]}:
        raise ConfigError(f"root {root} holds a store of the {present[0]} driver, not of {explicit}")
    return explicit or (present[0] if present else None)


def probe_all(root: Path) -> Sequence[DriverReport]:
    """Each driver, in the order of selection: whether it works here, and which one would be chosen."""
    reasons: dict[str, str | None] = {}
    for name in names():
        try:
            reasons[name] = reason_against(name, root)
        except ThinPoolError as error:
            reasons[name] = error.message
    try:
        wanted = _named(root, None)
    except ConfigError:
        chosen = None
    else:
        candidates = AUTOMATIC if wanted is None else (wanted,)
        chosen = next((name for name in candidates if reasons[name] is None), None)
    return [DriverReport(name, reason is None, reason, name == chosen) for name, reason in reasons.items()]


def _unsupported(name: str, reason: str) -> DriverUnsupported:
    return DriverUnsupported(f"driver {name} cannot be used: {reason}", reasons={name: reason})


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
