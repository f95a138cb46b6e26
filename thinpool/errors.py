"""The errors of thinpool: one tree, an exit status a kind.

Every error carries a one-line message that names what was given and what is accepted, and optionally a `hint`: what
the reader can do about it. `exit_status` is what the command line ends with (0 done, 1 failed, 2 wrong usage, 3 not
found, 4 exists or in use, 5 pool full or failed, 6 not supported here).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from thinpool.filesystem.holders import Holder

__all__ = [
    "ArchiveError",
    "ConfigError",
    "DeviceMapperError",
    "DeviceUnsafe",
    "DriverUnsupported",
    "HookFailed",
    "InvalidName",
    "LayerExists",
    "LayerInUse",
    "LayerNotFound",
    "LoopError",
    "MountError",
    "NotPermitted",
    "PoolFailed",
    "PoolFull",
    "StateError",
    "StoreNotFound",
    "ThinPoolError",
    "ToolError",
    "TreeError",
    "UnsafeArchive",
    "WrongKind",
]


class ThinPoolError(Exception):
    """Base of all errors that thinpool raises on purpose.

    Attributes:
        message: one line, without a trailing full stop.
        hint: what the reader can do about it, or None.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class LayerNotFound(ThinPoolError):
    """No layer of that name is in the store."""

    exit_status = 3


class StoreNotFound(ThinPoolError):
    """The root holds no store (and the caller did not ask to create one)."""

    exit_status = 3


class LayerExists(ThinPoolError):
    """A layer of that name is in the store already."""

    exit_status = 4


class LayerInUse(ThinPoolError):
    """The layer has children, or is mounted or open: the message names the holders.

    Attributes:
        holders: who was found to hold it, as values; of children, and where nobody was looked for, there are none.
    """

    exit_status = 4

    def __init__(self, message: str, *, hint: str | None = None, holders: Sequence["Holder"] = ()) -> None:
        super().__init__(message, hint=hint)
        self.holders = tuple(holders)


class InvalidName(ThinPoolError):
    """A layer name that breaks the rules of `thinpool.model.check_name`."""

    exit_status = 2


class ConfigError(ThinPoolError):
    """An option, driver name, size or root that cannot be used as given."""

    exit_status = 2


class WrongKind(ThinPoolError):
    """The layer's kind (active, view, committed) does not allow the operation."""


class NotPermitted(ThinPoolError):
    """The process lacks a privilege (root, CAP_SYS_ADMIN) that the operation needs."""


class DriverUnsupported(ThinPoolError):
    """No driver, or not the one that was asked for, works on this host.

    Attributes:
        reasons: driver name to the reason why it does not work here.
    """

    exit_status = 6

    def __init__(self, message: str, *, reasons: Mapping[str, str] | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reasons = dict(reasons or {})


class PoolFull(ThinPoolError):
    """The pool, or the file system below it, lacks the space for the operation."""

    exit_status = 5


class PoolFailed(ThinPoolError):
    """The pool is read-only, needs a check, has failed, or its metadata is not the one that was recorded."""

    exit_status = 5


class DeviceUnsafe(ThinPoolError):
    """A device carries something, or is used by somebody, and would be overwritten."""


class StateError(ThinPoolError):
    """The store's records cannot be read, or are of a newer version."""


class ArchiveError(ThinPoolError):
    """A layer archive is empty, cut short, damaged, or no archive at all."""


class UnsafeArchive(ArchiveError):
    """A layer archive tries to leave its root, or exceeds a limit."""


class TreeError(ThinPoolError):
    """A layer's tree cannot be read, or changed while it was read."""


class MountError(ThinPoolError):
    """A mount or unmount failed."""


class ToolError(ThinPoolError):
    """An external tool (mkfs, fsck, ...) is missing or failed; the message holds what it said."""


class HookFailed(ThinPoolError):
    """A freeze hook failed or took too long: nothing was committed."""


class DeviceMapperError(ThinPoolError, OSError):
    """A device-mapper ioctl failed.

    Attributes:
        ioctl: the kernel's name of the ioctl, as in `DM_DEV_CREATE`.
        device: name of the device, or None.
        errno: the kernel's error number.
    """

    def __init__(self, ioctl: str, device: str | None, errno: int, message: str, *, hint: str | None = None) -> None:
        ThinPoolError.__init__(self, message, hint=hint)
        self.ioctl = ioctl
        self.device = device
        self.errno = errno

    def __str__(self) -> str:
        return self.message


class LoopError(ThinPoolError):
    """A loop device could not be found, made, resized or released."""
