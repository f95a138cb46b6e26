"""What the drivers of union file systems have in common: layers as directories, one mount for as many as there are.

A layer that can be written is mounted once; whoever mounts it again gets that same file system, from whatever mount
namespace it is in, as two of them on one directory would know nothing of each other. What is immutable is mounted from
lower directories alone, as often as it is asked for.
"""

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import attrs

from thinpool.crashpoints import point
from thinpool.drivers import branches as layout
from thinpool.drivers import differing
from thinpool.drivers.base import Context, DriverStatus, Storage, Unsure
from thinpool.drivers.branches import Branches, Opened, Space, name_of
from thinpool.drivers.marks import Marks
from thinpool.drivers.naming import store_prefix
from thinpool.drivers.quota import Quota
from thinpool.drivers.reserve import Reserve
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.drivers.uses import Uses
from thinpool.errors import LayerInUse, MountError, PoolFull
from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.directories import names
from thinpool.filesystem.holders import Holder, in_use
from thinpool.filesystem.mounts import MountEntry
from thinpool.findings import Finding
from thinpool.layer import removal
from thinpool.layer.scope import Scope
from thinpool.model import Usage

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT = "boot"
_VOLATILE = "volatile"
_TRIES = 10
_TRY_SECONDS = 0.005


@attrs.frozen
class Stack:
    """What is to be mounted; all names are of directories below the driver's.

    Attributes:
        source: by which the mount is known.
        lowers: names in `d`, the topmost first.
        upper: name in `d` of what is written to; None for a mount of immutable layers.
        limited: the upper has a project quota.
    """

    source: str
    lowers: Sequence[str]
    upper: str | None = None
    limited: bool = False


class Union(Protocol):
    """One union file system."""

    @property
    def name(self) -> str:
        """The driver's name, which is the file system's type."""

    @property
    def marks(self) -> Marks:
        """Its notation."""

    @property
    def most(self) -> int:
        """How many lower directories one mount may have."""

    def mount(self, directory: Path, stack: Stack) -> int:
        """A detached mount; a file descriptor as of open_tree(2).

        Raises:
            MountError: the kernel refuses it.
        """

    def is_writing(self, directory: Path, name: str) -> bool:
        """Whether a mount that writes to an upper is alive anywhere, be it in no mount table any more."""


@contextmanager
def inside(directory: Path, *, limited: bool) -> Iterator[None]:
    """Work where the layers' contents are, in a thread with a working directory of its own.

    Args:
        directory: the driver's.
        limited: do without the capability that would let this thread, and so its mount, go beyond a quota (ext4).
    """
    try:
        os.chdir(directory / layout.CONTENTS)
        if limited:
            sys.drop_resource_capability()
        yield
    finally:
        os.chdir("/")


class StackDriver:
    """The layers of one store, stacked by a union file system."""

    def __init__(self, union: Union, context: Context, options: UnionOptions) -> None:
        self.name = union.name
        self._union = union
        self._options = options
        self._directory = context.directory
        self._branches = Branches(
            context.directory,
            union.marks,
            union.most,
            lambda names: union.mount(context.directory, Stack("none", names)),
        )
        self._uses = Uses(store_prefix(context.root), union.name)
        self._quota = Quota(self._branches.contents)
        self._reserve = Reserve(context.directory)

    @property
    def options(self) -> Mapping[str, str]:
        """The options in force, in canonical text."""
        return self._options.in_force()

    @property
    def shares_handles(self) -> bool:
        """Nobody else makes directories in ours."""
        return False

    def close(self) -> None:
        """Close what is open."""
        self._branches.close()

    # -- the whole

    def make_room(self) -> None:
        """Give up the reserve where there is no room without it."""
        with _room():
            self._reserve.make_room()

    def require_size(self) -> None:
        """Raise ConfigError where a size is an option, and the file system cannot see to it."""
        if self._options.size:
            self._quota.require(self._options.size)

    def up(self) -> bool:
        """There is nothing to activate; True the first time after a boot, when a crash may have left something."""
        boot = _boot()
        try:
            if os.readlink(self._directory / _BOOT) == boot:
                return False
        except FileNotFoundError:
            pass
        fresh = self._directory / f"{_BOOT}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        os.symlink(boot, fresh)
        point("boot-noted")
        os.rename(fresh, self._directory / _BOOT)
        return True

    def down(self) -> None:
        """There is nothing to let go of, but nothing may be mounted."""
        if self._uses.is_anything_mounted():
            raise in_use("layers are mounted in another mount namespace", self._uses.users())

    def users(self, handle: int) -> Iterator[Holder]:
        """The mounts of a layer in all mount namespaces, and who works in them."""
        return self._uses.users(handle)

    def mend(self) -> None:
        """A process that dies leaves nothing in the kernel, but maybe an upper that it had half made."""
        self._branches.clear_moment()

    def status(self) -> DriverStatus:
        """The options."""
        return DriverStatus(self.options)

    # -- layers

    def create(self, handle: int, parent: Storage | None, size: int | None) -> int:
        """Make a directory; what it may hold is limited by a project quota where a size asks for it."""
        wanted = max(size or self._options.size, 0 if parent is None else parent.size)
        if wanted:
            self._quota.require(wanted)
        self._reserve.take()
        with _room():
            self._branches.create(handle, None if parent is None else parent.handle)
        if wanted:
            with self._branches.opened(name_of(handle)) as fd:
                self._quota.limit(handle, fd, wanted)
            point("quota-set")
        return wanted

    def snapshot(self, handle: int, active: Storage) -> None:
        """Copy the directory; nothing can hold the writers, so a copy during which one wrote is thrown away."""
        self._refuse_lost(active.handle)
        with _room():
            self._branches.snapshot(handle, active.handle)

    def flush(self, active: Storage) -> None:
        """Write out what the kernel has not written itself, as it does at the end of the last mount."""
        work = self._work(active.handle)
        if not work.exists():
            return
        self._refuse_lost(active.handle)
        sys.syncfs(self._branches.contents)
        if not self._is_writing(active.handle):
            self._forget_work(active.handle)

    def delete(self, handle: int) -> bool:
        """Remove the directories of a layer that is mounted nowhere."""
        if self._work(handle).exists() and self._is_writing(handle):
            raise LayerInUse("the layer is mounted, or a process has a file of it open")
        if self._uses.is_mounted(handle):
            raise LayerInUse("the layer is mounted in another mount namespace")
        self._quota.forget(handle)
        return self._branches.delete(handle)

    def attach(self, storage: Storage, *, read_only: bool) -> int:
        """Mount the directories, or clone the mount that there is where the layer can be written."""
        handle = storage.handle
        if storage.immutable:
            return self.look(storage)
        attributes = self._options.attributes | (sys.MOUNT_ATTR_RDONLY if read_only else 0)
        if self._work(handle).exists():
            self._refuse_lost(handle)
            there = self._uses.clone(handle, attributes)
            if there is not None:
                return there
            if self._is_writing(handle):
                what = "a process still has files of the layer open, after its mount was detached"
                raise in_use(what, self.users(handle))
        self._make_work(handle, limited=bool(storage.size))
        stack = Stack(
            self._uses.source(handle), self._branches.below(handle), name_of(handle), limited=bool(storage.size)
        )
        return self._mount(stack, attributes)

    def look(self, storage: Storage) -> int:
        """Mount the directories as lower ones, to which nothing can be written."""
        stack = Stack(self._uses.source(storage.handle), self._branches.stack(storage.handle))
        return self._mount(stack, self._options.attributes | sys.MOUNT_ATTR_RDONLY)

    def _mount(self, stack: Stack, attributes: int) -> int:
        for name in stack.lowers:
            if not (self._directory / layout.CONTENTS / name).is_dir():
                raise MountError(f"the storage of the layer is damaged: {name} is missing in {self._directory}")
        fd = self._union.mount(self._directory, stack)
        sys.mount_setattr(fd, set_attributes=attributes)
        return fd

    def release(self, handle: int) -> bool:
        """Tell whether the layer is mounted anywhere, and tidy up where a mount for writing is gone."""
        if not self._work(handle).exists():
            return not self._uses.is_mounted(handle)
        if self._uses.is_mounted_here(handle) or self._is_writing(handle):
            return False
        if not (self._work(handle) / _VOLATILE).is_symlink():
            self._forget_work(handle)
        return True

    def has_users(self, handle: int) -> bool:
        """Whether the layer is mounted anywhere, or written to by anybody."""
        return self._uses.is_mounted(handle) or (self._work(handle).exists() and self._is_writing(handle))

    def active(self) -> Iterator[int]:
        """The layers that have what a mount for writing needs."""
        for name in names(self._branches.work):
            yield int(name, 36)

    # -- what a mount for writing has

    def _work(self, handle: int) -> Path:
        return self._directory / layout.WORK / name_of(handle)

    def _is_writing(self, handle: int) -> bool:
        """Whether anybody can write to a layer.

        What only the kernel knows of may be gone in a moment: a mount namespace that ends, one that a mount of many
        layers was made in.
        """
        for _ in range(_TRIES):
            if not self._union.is_writing(self._directory, name_of(handle)):
                return False
            if self._uses.is_mounted(handle):
                return True
            time.sleep(_TRY_SECONDS)
        return True

    def _make_work(self, handle: int, *, limited: bool) -> None:
        work = self._work(handle)
        with suppress(FileExistsError):
            work.mkdir(mode=0o700)
        for name in ("w", "u"):
            with suppress(FileNotFoundError):
                removal.remove(self._branches.work, os.fsencode(f"{work.name}/{name}"))
            (work / name).mkdir(mode=0o700)
            point("work-made")
        if self._options.volatile:
            with suppress(FileExistsError):
                os.symlink(_boot(), work / _VOLATILE)
        if limited:
            with Opened(f"{work.name}/w", self._branches.work) as fd:
                self._quota.join(handle, fd)

    def _forget_work(self, handle: int) -> None:
        with suppress(FileNotFoundError):
            removal.remove(self._branches.work, os.fsencode(name_of(handle)))
        point("work-removed")

    def _refuse_lost(self, handle: int) -> None:
        """Raise MountError where a volatile layer was in use when the machine stopped: anything of it may be lost."""
        with suppress(FileNotFoundError):
            if os.readlink(self._work(handle) / _VOLATILE) != _boot():
                raise MountError(
                    "the layer was mounted volatile when the machine stopped, and what it holds cannot be trusted",
                    hint="remove it",
                )

    # -- looking

    def stored(self) -> frozenset[int]:
        """All layers that have a directory of their own."""
        return frozenset(self._branches.stored())

    def findings(self) -> Iterator[Finding]:
        """Uppers that were left half made."""
        for name in self._branches.half_made():
            yield Finding(
                "half-made",
                f"directory {name}",
                "a process died while it made a layer's directory",
                "remove it",
                "no layer has it yet, and it is made under the writer lock alone",
            )

    def usages(self, layers: Sequence[tuple[int, int | None]]) -> Mapping[int, Usage]:
        """Look at every directory once; what immutable layers occupy is not remembered."""
        known: dict[str, Space] = {}

        def space(name: str) -> Space:
            if name not in known:
                known[name] = self._branches.space(int(name, 36))
            return known[name]

        found = {}
        for handle, _ in layers:
            own = space(name_of(handle))
            whole = sum(space(name).size for name in self._branches.descent(handle))
            found[handle] = Usage(size=own.size, exclusive=own.size, referenced=whole, inodes=own.inodes)
        return found

    def handle_of(self, entry: MountEntry) -> int | None:
        """Read the source that the mount was given."""
        return self._uses.handle_of(entry)

    def scope(self, older: Storage, newer: Storage, common: Storage) -> Scope:
        """Go over the directories that the two have above what they have in common."""
        above = [*self._above(older, common), *self._above(newer, common)]
        fd = self.look(common)
        try:
            stack = self._branches.stack(common.handle)
            uppers = (self._branches.opened(name) for name in above)
            return differing.scope(uppers, fd, self._branches, stack, self._union.marks)
        except FileNotFoundError as error:
            raise Unsure("something is written to one of the layers meanwhile") from error
        finally:
            os.close(fd)

    def _above(self, storage: Storage, common: Storage) -> Iterator[str]:
        end = name_of(common.handle)
        for name in self._branches.descent(storage.handle):
            if name == end:
                return
            yield name
        raise Unsure("the two layers are copies of one that is in use")


def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


class _room:  # noqa: N801 - reads as what it is: with _room()
    """Say what it means that there is no room."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PoolFull(
                "no space left on the file system of the store", hint="remove layers, or free space"
            ) from error
