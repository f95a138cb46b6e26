"""Layers as btrfs subvolumes: a child is a snapshot, a commit is a read-only snapshot, nothing is ever copied.

The subvolume of a layer is `DIRECTORY/HANDLE`. What is committed is read-only in the file system itself, from the
transaction that made it: no mount, and no process that still has a file open, can write to it. Snapshots are durable
when they are made; deletions are not, so after a boot what no record names is looked for and deleted again.

Subvolumes that somebody makes inside a layer are his: a snapshot would leave an empty directory in their place, so a
layer that holds one is neither committed nor compared while it is in use; with the layer they are deleted.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from thinpool.btrfs import ioctl, nests
from thinpool.btrfs.changed import Undecidable, add_differences
from thinpool.btrfs.held import exclusive, held_since, totals
from thinpool.btrfs.options import BtrfsOptions
from thinpool.btrfs.probe import reason_against
from thinpool.btrfs.tree import Tree
from thinpool.crashpoints import point
from thinpool.drivers.base import Context, DriverStatus, Records, Storage, Unsure
from thinpool.drivers.reserve import Reserve
from thinpool.errors import ConfigError, LayerInUse, MountError, PoolFailed, PoolFull, TreeError
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.directories import names
from thinpool.filesystem.holders import Holder, in_use, of_mounts
from thinpool.filesystem.mounts import MountEntry
from thinpool.findings import Finding
from thinpool.layer.scope import Scope
from thinpool.model import Usage
from thinpool.units import human_size

_BOOT = "btrfs-boot"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PASSING = "passing"
_ACL_DEFAULT = "system.posix_acl_default"
_ROOT_MODE = 0o755
_DELETED = "//deleted"  # what the kernel puts behind the path of a removed directory
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class BtrfsType:
    """How the driver is found and opened."""

    name = "btrfs"

    def probe(self, root: Path) -> str | None:
        """Make and delete a subvolume where the root is, or will be; where a store is, its directory is the proof."""
        return reason_against(root, proven=(root / self.name).is_dir())

    def check(self, given: Mapping[str, str]) -> None:
        """Read the options, to see whether they can be."""
        BtrfsOptions.parse(given)

    def create(self, context: Context) -> "Btrfs":
        """Make the driver's directory."""
        options = BtrfsOptions.parse(context.given)
        with ExitStack() as undo:
            for directory in (context.directory, context.directory / _PASSING):
                with suppress(FileExistsError):
                    os.mkdir(directory, 0o700)
                    point("subvolumes-directory-made")
                    undo.callback(os.rmdir, directory)
            with suppress(OSError):  # there is none, as a rule; layers would inherit it
                os.removexattr(context.directory, _ACL_DEFAULT)
            driver = Btrfs(context.directory, context.records, options)
            undo.callback(driver.close)
            driver.reserve.take()
            undo.callback(driver.reserve.drop)
            driver.settle()
            undo.pop_all()
        return driver

    def open(self, context: Context) -> "Btrfs":
        """Take the directory up; every option can be changed."""
        return Btrfs(context.directory, context.records, BtrfsOptions.parse({**context.recorded, **context.given}))


TYPE = BtrfsType()


class Btrfs:
    """The subvolumes of one store."""

    name = "btrfs"
    shares_handles = False

    def __init__(self, directory: Path, records: Records, options: BtrfsOptions) -> None:
        self._directory = directory
        self._records = records
        self._options = options
        self.reserve = Reserve(directory, ioctl.commit)
        self._fd = _open_directory(directory)
        try:
            self._device, self._path = _whereabouts(self._fd, directory)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Let go of the directory; once more is no error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def options(self) -> Mapping[str, str]:
        """The options in force, in canonical text."""
        return self._options.in_force()

    def settle(self) -> None:
        """Make durable what was made."""
        ioctl.commit(self._fd)

    def make_room(self) -> None:
        """Give up the reserve where there is no room without it."""
        with _explained("make room"):
            self.reserve.make_room()

    def up(self) -> bool:
        """True at the first use after a boot, where deletions may have been undone by a power cut."""
        return self._records.get(_BOOT) != _boot()

    def down(self) -> None:
        """Nothing is active but mounts."""
        found = [entry for entry in mounts.everywhere(self._device) if self._holder(entry) is not None]
        if found:
            raise in_use("layers are mounted in another mount namespace", of_mounts(found))

    def users(self, handle: int) -> Iterator[Holder]:
        """The mounts of a layer in all mount namespaces, and who works in them."""
        return of_mounts(entry for entry in mounts.everywhere(self._device) if self._holder(entry) == handle)

    # -- layers

    def create(self, handle: int, parent: Storage | None, size: int | None) -> int:
        """Snapshot the parent, or make an empty subvolume."""
        if size:
            raise ConfigError("the btrfs driver sets no size of a layer: all share the space of the file system")
        self._require_room()
        if parent is None:
            with self._made(handle) as name:
                ioctl.create_subvolume(self._fd, name)
            self._set_mode(handle)
            return 0
        with self._opened(parent.handle) as source, self._made(handle) as name:
            ioctl.create_snapshot(self._fd, name, source, read_only=False)
        return 0

    def snapshot(self, handle: int, active: Storage) -> None:
        """Snapshot a layer, read-only; its writers are not held up.

        Raises:
            TreeError: it holds subvolumes.
        """
        self._require_room()
        with self._opened(active.handle) as source:
            with self._made(handle) as name:
                ioctl.create_snapshot(self._fd, name, source, read_only=True)
            nested = nests.first_path(source)  # looked for afterwards: one that is made meanwhile is not missed
        if nested is not None:
            raise TreeError(
                f"the layer holds the subvolume {nested}, which a snapshot cannot take along",
                hint="delete the subvolume in the mounted layer, or make a plain directory of it",
            )

    def flush(self, active: Storage) -> None:
        """A snapshot writes out by itself what its own subvolume has dirty, and holds up nobody while it does."""

    def seal(self, handle: int) -> None:
        """Set the read-only flag."""
        with self._opened(handle) as fd:
            ioctl.set_read_only(fd, read_only=True)
        point("subvolume-sealed")

    def delete(self, handle: int) -> bool:
        """Destroy a subvolume, and first those that somebody made in it."""
        if not self._exists(handle):
            return False
        with self._opened(handle) as fd:
            entry = self._user(handle)
            if entry is not None:
                raise LayerInUse(f"the layer is mounted on {entry.target}")
            with _explained("delete a subvolume"):
                nests.destroy_below(fd)
                point("subvolume-destroy")
                ioctl.destroy_subvolume(self._fd, str(handle))
                point("subvolume-destroyed")
        return True

    def attach(self, storage: Storage, *, read_only: bool) -> int:
        """Clone the mount that the store is on, at the subvolume, and allow in it what a layer may need.

        The kernel clones mounts of its caller's mount namespace only, so the mount is looked up anew: the process may
        have left the namespace in which it opened the store.
        """
        with self._opened(storage.handle) as fd:
            path = self._directory / str(storage.handle)
            here = _open_again(path, fd)
            try:
                return mounts.clone(here, read_only=read_only or storage.immutable, said=str(path))
            finally:
                os.close(here)

    def release(self, handle: int) -> bool:
        """Whether no mount namespace has the layer mounted."""
        return self._user(handle) is None

    def _user(self, handle: int) -> MountEntry | None:
        found = (entry for entry in mounts.everywhere(self._device) if self._holder(entry) == handle)
        return next(found, None)

    def handle_of(self, entry: MountEntry) -> int | None:
        """The number of the subvolume whose root is mounted."""
        return self._holder(entry) if "/" not in entry.root.removesuffix(_DELETED)[len(self._path) :] else None

    def _holder(self, entry: MountEntry) -> int | None:
        """The number of the subvolume that is mounted, wholly or from a directory in it on."""
        if entry.device != self._device or not entry.root.startswith(self._path):
            return None
        name = entry.root.removesuffix(_DELETED)[len(self._path) :].partition("/")[0]
        return int(name) if name.isdecimal() else None

    def has_users(self, handle: int) -> bool:
        """Whether any mount namespace has the layer mounted."""
        return self._user(handle) is not None

    # -- looking

    def stored(self) -> frozenset[int]:
        """All subvolumes that have a number."""
        return frozenset(int(name) for name in names(self._fd) if name.isdecimal())

    def findings(self) -> Iterator[Finding]:
        """Snapshots for a moment whose makers are gone."""
        place = os.open(_PASSING, _OPEN, dir_fd=self._fd)
        try:
            left = os.listdir(place)
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(place)
        for name in left:
            yield Finding(
                "leftover-snapshot",
                f"subvolume {name}",
                "it was made to look at a layer, by a process that died",
                "delete it",
                "nobody has the lock of those who make them",
            )

    def usages(self, layers: Sequence[tuple[int, int | None]]) -> Mapping[int, Usage]:
        """Read the subvolumes' trees; `thinpool.btrfs.held` says what counts.

        `size` and `exclusive` are exact for data in extents, but for what was shared across layers by other means than
        a snapshot (cp --reflink between mounts, deduplication); small files, which lie in the tree, count as shared as
        soon as the layer has a child. `referenced` is what du(1) would count, before compression, and with `inodes` it
        takes a look at every inode. A layer whose subvolume is gone occupies nothing.
        """
        found: dict[int, Usage] = {}
        self._write_out([handle for handle, _ in layers])
        for handle, parent in layers:
            try:
                with self._opened(handle) as fd:
                    found[handle] = self._usage(handle, fd, parent)
            except PoolFailed:
                found[handle] = Usage(0, 0, 0, None)
        return found

    def _write_out(self, handles: Sequence[int]) -> None:
        """Put into the trees what was written to layers: one by a snapshot, more by one sync, which costs less."""
        writable = []
        for handle in handles:
            with suppress(PoolFailed), self._opened(handle) as fd:
                if not ioctl.subvolume_info(fd).read_only:
                    writable.append(handle)
        if len(writable) == 1:
            with self._opened(writable[0]) as fd, self._passing_snapshot(fd):
                pass
        elif writable:
            syscalls.syncfs(self._fd)

    def _usage(self, handle: int, fd: int, parent: int | None) -> Usage:
        since = 0
        if parent is not None:
            with self._opened(parent) as above:
                since = ioctl.subvolume_info(above).changed
        tree = Tree(fd)
        held = held_since(tree, since)
        occupied, inodes = totals(tree)
        with ExitStack() as children:
            trees = (
                Tree(children.enter_context(self._opened(child)))
                for child in self._records.offspring(handle)
                if self._exists(child)
            )
            own = exclusive(held, trees, since)
        return Usage(size=held.size, exclusive=own, referenced=max(occupied, held.size), inodes=inodes)

    def scope(self, older: Storage, newer: Storage, common: Storage) -> Scope:
        """Find the inodes that changed in each of the two since they were one; see `thinpool.btrfs.changed`."""
        if not common.immutable and {older.handle, newer.handle} != {common.handle}:
            raise Unsure("they are two states of one active layer")
        scope = Scope()
        alone = common.handle in {older.handle, newer.handle}
        with self._opened(common.handle) as base:
            info = ioctl.subvolume_info(base)
            since = info.changed
            for side in (older, newer):
                if side.handle == common.handle:
                    continue
                if not info.read_only or self._made_in(side.handle) < since:
                    raise Unsure("the layer that both descend from was changed after it was committed")
                with self._still(side) as fd:
                    try:
                        add_differences(scope, Tree(base), Tree(fd), since, alone=alone)
                    except Undecidable as reason:
                        raise Unsure(str(reason)) from reason
        return scope

    def _made_in(self, handle: int) -> int:
        with self._opened(handle) as fd:
            return ioctl.subvolume_info(fd).made

    @contextmanager
    def _still(self, storage: Storage) -> Iterator[int]:
        """A subvolume with nothing left to be written into its tree: itself, or a snapshot of it for the moment."""
        with self._opened(storage.handle) as fd:
            if storage.immutable:
                yield fd
                return
            if nests.first_path(fd) is not None:
                raise Unsure("there is a subvolume in it")
            with self._passing_snapshot(fd) as copy:
                yield copy

    @contextmanager
    def _passing_snapshot(self, source: int) -> Iterator[int]:
        """A read-only snapshot that goes with the block; whoever mends the store removes it if this process dies."""
        name = secrets.token_hex(8)
        place = os.open(_PASSING, _OPEN, dir_fd=self._fd)
        try:
            fcntl.flock(place, fcntl.LOCK_SH)
            with _explained("make a snapshot"):
                ioctl.create_snapshot(place, name, source, read_only=True)
            point("passing-made")
            try:
                fd = os.open(name, _OPEN, dir_fd=place)
                try:
                    yield fd
                finally:
                    os.close(fd)
            finally:
                ioctl.destroy_subvolume(place, name)
            point("passing-destroyed")
        finally:
            os.close(place)

    def mend(self) -> None:
        """Delete what no record names, and snapshots for the moment whose makers are gone."""
        with suppress(FileExistsError):
            os.mkdir(_PASSING, 0o700, dir_fd=self._fd)
        for name in names(self._fd):
            if name.isdecimal() and not self._records.is_named(int(name)):
                with suppress(LayerInUse, PoolFailed):
                    self.delete(int(name))
        self._drop_passing()
        if self.up():
            self._records.put(_BOOT, _boot())

    def _drop_passing(self) -> None:
        place = os.open(_PASSING, _OPEN, dir_fd=self._fd)
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(place):
                ioctl.destroy_subvolume(place, name)
                point("passing-dropped")
        except BlockingIOError:
            pass  # somebody alive has one; the rest goes the next time
        finally:
            os.close(place)

    def status(self) -> DriverStatus:
        """Options, and a warning where no layer can be begun."""
        free = self._free()
        warnings = []
        if free < self._options.min_space:
            warnings.append(
                f"{human_size(free)} are free, less than btrfs.min_space={human_size(self._options.min_space)}: "
                "no layer can be begun"
            )
        return DriverStatus(self.options, None, warnings)

    # -- subvolumes by number

    def _free(self) -> int:
        room = os.fstatvfs(self._fd)
        return room.f_bavail * room.f_frsize

    def _require_room(self) -> None:
        self.reserve.take()
        if self._options.min_space and (free := self._free()) < self._options.min_space:
            raise PoolFull(
                f"{human_size(free)} are free at {self._directory}, less than "
                f"btrfs.min_space={human_size(self._options.min_space)}",
                hint="free space, or open the store with a smaller btrfs.min_space",
            )

    def _exists(self, handle: int) -> bool:
        return os.access(str(handle), os.F_OK, dir_fd=self._fd, follow_symlinks=False)

    @contextmanager
    def _opened(self, handle: int) -> Iterator[int]:
        """The root directory of a layer's subvolume.

        Raises:
            PoolFailed: it is gone, or something else is in its place.
        """
        path = self._directory / str(handle)
        try:
            fd = os.open(str(handle), _OPEN, dir_fd=self._fd)
        except FileNotFoundError as error:
            raise PoolFailed(
                f"the subvolume {path} of the layer is gone: somebody else deleted it", hint="remove the layer"
            ) from error
        except OSError as error:
            raise PoolFailed(f"the subvolume {path} of the layer cannot be opened: {error.strerror}") from error
        try:
            self._require_subvolume(fd, handle)
            yield fd
        finally:
            os.close(fd)

    def _require_subvolume(self, fd: int, handle: int) -> None:
        if os.fstat(fd).st_ino != ioctl.FIRST_INODE:
            raise PoolFailed(f"{self._directory / str(handle)} is not the subvolume of a layer any more")

    @contextmanager
    def _made(self, handle: int) -> Iterator[str]:
        """The name under which to make a subvolume; what was half made under it before is gone."""
        if self._exists(handle):
            self.delete(handle)
        with _explained("make a subvolume"):
            point("subvolume-make")
            yield str(handle)
            point("subvolume-made")

    def _set_mode(self, handle: int) -> None:
        """Undo what the process's umask did to the mode of a new subvolume."""
        with self._opened(handle) as fd:
            if stat.S_IMODE(os.fstat(fd).st_mode) != _ROOT_MODE:
                os.fchmod(fd, _ROOT_MODE)
                ioctl.commit(fd)


def _boot() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _open_directory(directory: Path) -> int:
    try:
        fd = os.open(directory, _OPEN)
    except OSError as error:
        raise PoolFailed(f"the store's directory {directory} cannot be opened: {error.strerror}") from error
    if ioctl.is_btrfs(fd):
        return fd
    os.close(fd)
    raise PoolFailed(f"{directory} is not on btrfs any more", hint="is the file system mounted?")


def _open_again(path: Path, fd: int) -> int:
    """An open directory by its path; raises MountError where that leads to another one."""
    try:
        found = os.open(path, _OPEN)
    except OSError as error:
        raise MountError(f"cannot mount {path}: {error.strerror}") from error
    if os.path.sameopenfile(found, fd):
        return found
    os.close(found)
    raise MountError(f"cannot mount {path}: something else is mounted over it")


def _whereabouts(fd: int, directory: Path) -> tuple[tuple[int, int], str]:
    """The file system's device in mount tables, and the directory's path in it, with a slash at the end."""
    entry = mounts.mount_of(fd)
    if entry is None:
        raise PoolFailed(f"the mount that {directory} is on is not in the mount table")
    within = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), entry.target)
    return entry.device, f"{entry.root.rstrip('/')}/{'' if within == '.' else f'{within}/'}"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say what a failed ioctl means."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise PoolFull(
                f"no space left on the file system to {what}", hint="free space, or remove layers"
            ) from error
        raise PoolFailed(f"cannot {what}: {error.strerror} ({error.filename})") from error
