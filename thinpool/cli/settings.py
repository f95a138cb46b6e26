"""What the options shared by all commands say, and the store that they lead to."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from thinpool.errors import ConfigError, NotPermitted

if TYPE_CHECKING:
    from thinpool.store import Store

DEFAULT_ROOT = Path("/var/lib/thinpool")


@attrs.define
class Settings:
    """The shared options, filled in while the command line is read.

    Attributes:
        root: directory of the store.
        driver: the driver that was asked for, or None.
        options: driver options by key.
        json: data is printed as one JSON document, and errors as JSON too.
        verbose: tracebacks and log messages are shown.
    """

    root: Path = DEFAULT_ROOT
    driver: str | None = None
    options: dict[str, str] = attrs.field(factory=dict)
    json: bool = False
    verbose: bool = False

    def add_options(self, pairs: Iterable[str]) -> None:
        """Take in `KEY=VALUE` pairs of `--storage-opt`.

        Raises:
            ConfigError: not a pair, or a key with two values.
        """
        for pair in pairs:
            key, separator, value = pair.partition("=")
            if not separator or not key:
                raise ConfigError(f"storage option {pair!r} is not of the form KEY=VALUE, as in dm.basesize=10G")
            if self.options.setdefault(key, value) != value:
                raise ConfigError(f"storage option {key} is given twice, as {self.options[key]!r} and as {value!r}")

    def open_store(self, *, create: bool = False) -> "Store":
        """The store in `root`; with `create`, made where there is none.

        Raises:
            NotPermitted: the process is not root's.
            StoreNotFound: there is none, and it shall not be made.
        """
        require_root("a store")
        from thinpool.store import Store  # noqa: PLC0415 - its imports take longer than most commands

        return Store.open(self.root, driver=self.driver, options=self.options or None, create=create)


def require_root(what: str) -> None:
    """Refuse early and clearly what the kernel would refuse late and vaguely."""
    if os.geteuid() != 0:
        raise NotPermitted(f"{what} can be used by root only, not by user id {os.geteuid()}", hint="run it with sudo")
