"""The options of the overlay driver; aufs has none."""

import difflib
from collections.abc import Mapping
from typing import Self

import attrs

from thinpool.errors import ConfigError
from thinpool.filesystem.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID
from thinpool.pool import values
from thinpool.units import KIB, format_size

MOUNTOPT = "overlay.mountopt"
SIZE = "overlay.size"
_ATTRIBUTES = {"nodev": MOUNT_ATTR_NODEV, "nosuid": MOUNT_ATTR_NOSUID, "noexec": MOUNT_ATTR_NOEXEC}
_VOLATILE, _USERXATTR = "volatile", "userxattr"
_SUPER = (_VOLATILE, _USERXATTR, "xino=auto", "xino=on", "xino=off")
_SIZE_MAX = 1 << 60
_OWN = ("dm", "btrfs", "overlay", "aufs")
_NAMES = {"dm": "devicemapper"}


@attrs.frozen
class UnionOptions:
    """The options of one store.

    Attributes:
        mountopt: words that mount understands: options of the file system and attributes of the mount.
        size: bytes that a layer's own changes may take, 0 for no limit.
    """

    mountopt: tuple[str, ...] = ()
    size: int = 0

    @classmethod
    def parse(cls, given: Mapping[str, str], driver: str) -> Self:
        """Read options.

        Raises:
            ConfigError: an unknown key, one of another driver, or a value that is not accepted.
        """
        known = (MOUNTOPT, SIZE) if driver == "overlay" else ()
        for key in given:
            if key not in known:
                raise _unknown(key, known, driver)
        return cls(_words(given.get(MOUNTOPT, "")), _size(given.get(SIZE, "")))

    @property
    def attributes(self) -> int:
        """The words that are attributes of a mount, as in mount_setattr(2)."""
        return sum(_ATTRIBUTES.get(word, 0) for word in self.mountopt)

    @property
    def super_options(self) -> tuple[str, ...]:
        """The words that are options of the file system."""
        return tuple(word for word in self.mountopt if word in _SUPER)

    @property
    def volatile(self) -> bool:
        """Nothing is synced while a layer is in use."""
        return _VOLATILE in self.mountopt

    @property
    def userxattr(self) -> bool:
        """The file system's own attributes are `user.overlay.*`."""
        return _USERXATTR in self.mountopt

    def in_force(self) -> dict[str, str]:
        """Canonical text; `parse` gives the same value back."""
        found = {MOUNTOPT: ",".join(self.mountopt), SIZE: format_size(self.size) if self.size else ""}
        return {key: text for key, text in found.items() if text}

    def replaced_by(self, given: Mapping[str, str], driver: str) -> Self:
        """The options in force when a store is opened with some named anew.

        Raises:
            ConfigError: as `parse`, or one cannot be changed any more.
        """
        new = type(self).parse({**self.in_force(), **given}, driver)
        if new.userxattr != self.userxattr:
            was, wanted = (",".join(options.mountopt) or "not set" for options in (self, new))
            raise ConfigError(
                f"{MOUNTOPT} is {was} in this store, and {wanted} was given; userxattr is fixed when a store is made"
            )
        if new.size and self.size > new.size:
            raise ConfigError(
                f"{SIZE} is {format_size(self.size)} in this store, and {format_size(new.size)} was given;"
                " it can only grow"
            )
        return new


def _words(text: str) -> tuple[str, ...]:
    words = [word for part in text.split(",") if (word := part.strip())]
    for word in words:
        if word not in _SUPER and word not in _ATTRIBUTES:
            raise ConfigError(
                f"{MOUNTOPT}={text!r} is not accepted: it takes {', '.join([*_SUPER, *_ATTRIBUTES])}, not {word!r}",
                hint="the driver itself sets the layers, redirect_dir, metacopy and index",
            )
    if len({word for word in words if word.startswith("xino=")}) > 1:
        raise ConfigError(f"{MOUNTOPT}={text!r} is not accepted: it has xino twice")
    return tuple(dict.fromkeys(words))


def _size(text: str) -> int:
    if not text.strip():
        return 0
    try:
        return values.size(KIB * 64, _SIZE_MAX, KIB)(text.strip())
    except values.Refused as accepted:
        raise ConfigError(f"{SIZE}={text!r} is not accepted; it takes {accepted}") from accepted


def _unknown(key: str, known: tuple[str, ...], driver: str) -> ConfigError:
    start, dot, _ = key.partition(".")
    if dot and start in _OWN and start != driver:
        return ConfigError(f"option {key!r} is one of the {_NAMES.get(start, start)} driver, not of {driver}")
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}"
    return ConfigError(f"unknown option {key!r} for the {driver} driver", hint=hint)
