"""Volumes: directories and files of the host, mounted inside a layer that is mounted.

They are put together with the layer where nobody sees them and appear with it at once; no volume is part of what a
commit, a comparison or an export looks at, as those look into the layer's storage.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import attrs

from thinpool.crashpoints import point
from thinpool.errors import MountError
from thinpool.filesystem import mounts, syscalls
from thinpool.filesystem.threads import apart, own_mounts
from thinpool.layer.openat2 import Resolver
from thinpool.model import Volume

_PLACE = os.O_PATH | os.O_CLOEXEC


def assemble(layer: int, place: Path, volumes: Sequence[Volume]) -> int:
    """Put volumes into a layer.

    A target is looked up as the layer's own processes would find it: symbolic links are followed, and lead nowhere
    out of the layer. A target that is missing is made, a directory for a directory and an empty file for anything
    else, and stays in the layer; after a failure it is gone again.

    Args:
        layer: a detached mount, which stays the caller's.
        place: an empty directory of ours, which is mounted over where nobody else sees it.
        volumes: mounted in this order, each with what is mounted below its source.

    Returns:
        A detached mount of the layer with its volumes. If the process dies, all is gone but the targets made.

    Raises:
        MountError: a source is missing, or a target cannot be used.
    """

    def build() -> int:
        with own_mounts(), ExitStack() as held:
            directory = _opened(held, os.open(place, _PLACE | os.O_DIRECTORY))
            syscalls.move_mount(layer, directory)
            root = _opened(held, os.open(place, _PLACE | os.O_DIRECTORY))
            with _Targets(root) as targets:
                try:
                    for volume in volumes:
                        source = _opened(held, _source(volume))
                        target = _opened(held, targets.find(volume, directory=stat.S_ISDIR(os.fstat(source).st_mode)))
                        _move(source, target, volume)
                    return syscalls.open_tree(root, "", clone=True, recursive=True)
                finally:  # or the targets that were made could not be taken away again
                    syscalls.umount(str(place), syscalls.MNT_DETACH)

    return apart(build, undo=os.close)


def _opened(held: ExitStack, fd: int) -> int:
    held.callback(os.close, fd)
    return fd


def _source(volume: Volume) -> int:
    """The mount of a source to be, detached, private, with what is mounted below it."""
    try:
        fd = syscalls.open_tree(syscalls.AT_FDCWD, str(volume.source), clone=True, recursive=True)
    except OSError as error:
        raise MountError(f"volume source {volume.source}: {os.strerror(error.errno or 0)}") from error
    if volume.read_only:
        syscalls.mount_setattr(fd, set_attributes=syscalls.MOUNT_ATTR_RDONLY, recursive=True)
    return fd


def _move(source: int, target: int, volume: Volume) -> None:
    try:
        syscalls.move_mount(source, target)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise MountError(f"cannot mount volume {volume.source} on {volume.target}: {reason}") from error


class _Targets:
    """The places in a layer that volumes are mounted on; those made are taken away again after an error."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._resolver = Resolver(root)
        self._undo = ExitStack()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is not None:
            self._undo.close()
        self._held.close()

    def find(self, volume: Volume, *, directory: bool) -> int:
        """Open a target, made if it is missing."""
        fd = self._reach(volume, directory=directory)
        found = os.fstat(fd)
        problem = None
        if stat.S_ISDIR(found.st_mode) != directory:
            problem = "a directory can be mounted on a directory only, and a file on a file"
        elif os.path.samestat(found, os.fstat(self._root)):
            problem = "that is the layer's root directory"
        if problem is not None:
            os.close(fd)
            raise MountError(f"volume target {volume.target}: {problem}")
        return fd

    def _reach(self, volume: Volume, *, directory: bool) -> int:
        parts = volume.target.strip("/").split("/")
        for depth in range(1, len(parts)):
            os.close(self._open(volume, parts[:depth]) or self._make(volume, parts[:depth], directory=True))
        return self._open(volume, parts) or self._make(volume, parts, directory=directory)

    def _open(self, volume: Volume, parts: Sequence[str]) -> int:
        """Open what is there; 0 where nothing is."""
        try:
            return self._resolver.open(os.fsencode("/".join(parts) or "."), _PLACE)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise _refused(volume, parts, error) from error

    def _make(self, volume: Volume, parts: Sequence[str], *, directory: bool) -> int:
        above = self._open(volume, parts[:-1])
        self._held.callback(os.close, above)
        name = parts[-1]
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=above)
                self._undo.callback(_remove, os.rmdir, name, above)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=above))
                self._undo.callback(_remove, os.unlink, name, above)
            point("volume-target-made")
        except FileExistsError as error:
            raise MountError(f"volume target {volume.target}: a symbolic link on the way leads nowhere") from error
        except OSError as error:
            raise _refused(volume, parts, error) from error
        return os.open(name, _PLACE | os.O_NOFOLLOW, dir_fd=above)


def _remove(call: Callable[..., None], name: str, above: int) -> None:
    with suppress(OSError):
        call(name, dir_fd=above)


def _refused(volume: Volume, parts: Sequence[str], error: OSError) -> MountError:
    reason = os.strerror(error.errno or 0)
    return MountError(f"volume target {volume.target}: /{'/'.join(parts)}: {reason}")


def mounted_in(target: Path, volumes: Sequence[Volume]) -> list[Path]:
    """Where volumes are mounted inside a layer that is mounted, in the order given."""
    root = os.open(target, _PLACE | os.O_DIRECTORY)
    try:
        resolver = Resolver(root)
        found: list[Path] = []
        for volume in volumes:
            with suppress(OSError):
                fd = resolver.open(os.fsencode(volume.target.strip("/")), _PLACE)
                if syscalls.is_mount_root(fd):
                    found.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
                os.close(fd)
        return found
    finally:
        os.close(root)


@contextmanager
def taken_out(target: Path, volumes: Sequence[Volume]) -> Iterator[None]:
    """Unmount the volumes of a layer, last first, and bring them back if that or what follows fails.

    Raises:
        LayerInUse: somebody works in one of them.
    """
    kept: list[_Kept] = []
    try:
        for place in reversed(mounted_in(target, volumes)):
            copy = syscalls.open_tree(syscalls.AT_FDCWD, str(place), clone=True, recursive=True)
            kept.append(_Kept(copy, place, len(_mounts_at(place))))
            for below in reversed(_mounts_at(place)):
                mounts.unmount(below)
                point("volume-taken-off")
        yield
    except BaseException:
        for volume in reversed(kept):
            volume.put_back()
        raise
    finally:
        for volume in kept:
            os.close(volume.copy)


@attrs.frozen
class _Kept:
    """A volume that is unmounted.

    Attributes:
        copy: a detached copy of its mount, with what is mounted below it.
        place: where it was.
        mounts: how many mounts these are.
    """

    copy: int
    place: Path
    mounts: int

    def put_back(self) -> None:
        """Mount it again, unless it is there still."""
        left = len(_mounts_at(self.place))
        if left == self.mounts:
            return
        with suppress(OSError):
            if left:
                syscalls.umount(str(self.place), syscalls.MNT_DETACH)
            directory = os.open(self.place, _PLACE | os.O_NOFOLLOW)
            try:
                syscalls.move_mount(self.copy, directory)
            finally:
                os.close(directory)


def _mounts_at(place: Path) -> list[Path]:
    """The mounts on a place and below it."""
    return [entry.target for entry in mounts.mount_table() if entry.target.is_relative_to(place)]
