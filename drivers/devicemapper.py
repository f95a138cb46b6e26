"""Layers as thin devices of one pool: a child is a snapshot, a commit is a snapshot, and nothing is ever copied.

The handle of a layer is its thin id. A thin device is active only while somebody uses it; its name is
`PREFIX-HANDLE`, where the prefix comes from the root directory, so that two stores never meet.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from thinpool.dm import Control
from thinpool.drivers.base import INTENT, Context, DriverStatus, HandleTaken, Storage
from thinpool.errors import ConfigError, DeviceMapperError, DriverUnsupported, MountError, NotPermitted, PoolFailed
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.formats import FileSystem, file_system, make_base
from thinpool.filesystem.mounts import MountEntry
from thinpool.metadata import read_books
from thinpool.model import Usage
from thinpool.pool import PoolIdentity, PoolOptions, ThinIdTaken, ThinPool, reconcile

_BASE = "base"
_IDENTITY = "pool"
_ATTEMPTS = 5


def prefix(root: Path) -> str:
    """The prefix of all device names of a store: from its root's device and inode, so no two stores share it.

    It is the same for as long as the root's file system stays mounted, which the store's own loop devices see to; the
    kernel's devices do not outlive that either.
    """
    found = os.stat(root)
    text = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}:{found.st_ino}"
    return f"thinpool-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


class DevicemapperType:
    """How the driver is found and opened."""

    name = "devicemapper"

    def probe(self, root: Path) -> str | None:  # noqa: ARG002 - a pool works below any root
        """Ask the kernel for device-mapper and its thin-pool target, loading the modules if they can be."""
        if os.geteuid() != 0:
            return "needs root, to control devices"
        try:
            with Control() as control:
                control.require_target("thin-pool")
        except (DriverUnsupported, NotPermitted) as error:
            return error.message
        return None

    def create(self, context: Context) -> "Devicemapper":
        """Make the pool, and in it the base file system that layers without a parent start from."""
        options = PoolOptions.parse(context.given)
        context.directory.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as undo:
            driver = undo.enter_context(Devicemapper(context, options, None))
            driver.make()
            undo.pop_all()
        return driver

    def open(self, context: Context) -> "Devicemapper":
        """Take the pool up as it was recorded, with options that have changed where they can."""
        recorded = PoolOptions.parse(context.recorded)
        change = reconcile(recorded, context.given)
        identity = context.records.get(_IDENTITY)
        if identity is None:
            raise PoolFailed(f"the records of {context.root} name no pool")
        with ExitStack() as undo:
            driver = undo.enter_context(Devicemapper(context, change.options, PoolIdentity.from_json(identity)))
            if change.grows:
                driver.up()
                driver.grow(data=change.data_size, metadata=change.metadata_size)
            undo.pop_all()
        return driver


TYPE = DevicemapperType()
