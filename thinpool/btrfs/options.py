"""The options of the btrfs driver: one definition, as text and as a value."""

from collections.abc import Mapping
from typing import Self

import attrs

from thinpool.errors import ConfigError
from thinpool.pool import values

_MIN_SPACE = "btrfs.min_space"
_MOST = 1 << 60
_DRIVERS = {"dm": "devicemapper", "overlay": "overlay", "aufs": "aufs"}
_read_size = values.size(0, _MOST, 1)


@attrs.frozen
class BtrfsOptions:
    """The options of one store.

    Attributes:
        min_space: bytes that must be free on the file system for a layer to be begun, and the least that a layer can
            be asked to hold; 0 asks for nothing.
    """

    min_space: int = 0

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """Read options, with white space around a value ignored.

        Raises:
            ConfigError: an unknown key, or a value that is not accepted.
        """
        found = cls()
        for key, text in given.items():
            if key != _MIN_SPACE:
                raise _unknown(key)
            try:
                found = attrs.evolve(found, min_space=_read_size(text.strip()))
            except values.Refused as accepted:
                raise ConfigError(f"{key}={text!r} is not accepted; it takes {accepted}") from accepted
        return found

    def in_force(self) -> dict[str, str]:
        """All options in canonical text, defaults included."""
        return {_MIN_SPACE: values.show_size(self.min_space)}


def _unknown(key: str) -> ConfigError:
    other = _DRIVERS.get(key.partition(".")[0])
    if other is not None:
        return ConfigError(f"option {key!r} is one of the {other} driver, not of btrfs")
    return ConfigError(f"unknown option {key!r} for the btrfs driver", hint=f"there is {_MIN_SPACE}")
