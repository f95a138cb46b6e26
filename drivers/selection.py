"""Which driver serves a root: the one that was named, the one whose state is there, or the first that works."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import attrs

from thinpool.drivers.base import DriverType
from thinpool.errors import ConfigError, DriverUnsupported

AUTOMATIC = ("aufs", "btrfs", "devicemapper")
"""The order in which a driver is looked for where none is named."""

_PLANNED = {
    "aufs": "this version of thinpool brings no aufs driver yet",
    "btrfs": "this version of thinpool brings no btrfs driver yet",
    "overlay": "this version of thinpool brings no overlay driver yet",
}
_BUILT_IN = ("devicemapper",)
_SHOWN = (*AUTOMATIC, "overlay")


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


def names() -> frozenset[str]:
    """The names of all drivers, those included that cannot work here."""
    return frozenset(_SHOWN)


def driver_type(name: str) -> DriverType:
    """The driver of that name.

    Raises:
        ConfigError: no driver has that name.
        DriverUnsupported: this version does not bring it.
    """
    if name in _BUILT_IN:
        found: DriverType = import_module(f"thinpool.drivers.{name}").TYPE
        return found
    if name in _PLANNED:
        raise DriverUnsupported(f"driver {name} cannot be used: {_PLANNED[name]}", reasons={name: _PLANNED[name]})
    raise ConfigError(f"no driver is named {name!r}; there are {', '.join(_SHOWN)}")


def reason_against(name: str, root: Path) -> str | None:
    """Why a driver cannot serve that root on this host; None where it can."""
    if name in _PLANNED:
        return _PLANNED[name]
    return driver_type(name).probe(root)


def held(root: Path) -> Sequence[str]:
    """The drivers whose state the root holds, in the order of their names."""
    return sorted(name for name in names() if (root / name).is_dir())


def choose(root: Path, explicit: str | None = None) -> str:
    """The name of the driver that serves a root.

    Raises:
        ConfigError: no driver has the name, another one's state is in the root, or two drivers' is.
        DriverUnsupported: the driver, or each of them, cannot work here, with a reason a driver.
    """
    present = held(root)
    if len(present) > 1:
        raise ConfigError(
            f"root {root} holds state of two drivers: {' and '.join(present)}",
            hint="each root serves one driver; move one of the two directories elsewhere",
        )
    if explicit is not None and explicit not in names():
        raise ConfigError(f"no driver is named {explicit!r}; there are {', '.join(_SHOWN)}")
    if present and explicit not in {None, present[0]}:
        raise ConfigError(f"root {root} holds a store of the {present[0]} driver, not of {explicit}")
    wanted = explicit or (present[0] if present else None)
    if wanted is None:
        return _first_that_works(root)
    reason = reason_against(wanted, root)
    if reason is not None:
        raise DriverUnsupported(f"driver {wanted} cannot be used: {reason}", reasons={wanted: reason})
    return wanted


def _first_that_works(root: Path) -> str:
    reasons: dict[str, str] = {}
    for name in AUTOMATIC:
        reason = reason_against(name, root)
        if reason is None:
            return name
        reasons[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise DriverUnsupported(f"no driver works here: {told}", reasons=reasons)


def probe_all(root: Path) -> Sequence[DriverReport]:
    """Each driver, in the order of selection: whether it works here, and which one would be chosen."""
    reasons: Mapping[str, str | None] = {name: reason_against(name, root) for name in _SHOWN}
    try:
        chosen = choose(root)
    except (ConfigError, DriverUnsupported):
        chosen = None
    return [DriverReport(name, reason is None, reason, name == chosen) for name, reason in reasons.items()]
