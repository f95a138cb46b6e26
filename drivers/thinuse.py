"""A thin device in somebody's use: its file system synced through a mount of our own, or found to be beyond that."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinpool.dm.device import device_path
from thinpool.errors import MountError, PoolFailed
from thinpool.filesystem import mounts, syscalls
from thinpool.pool.thins import ThinDevices

_ERRORS_OF_EXT4 = "/sys/fs/ext4/{}/errors_count"  # Documentation/ABI/testing/sysfs-fs-ext4


def settle(thins: ThinDevices, thin_id: int, fs_type: str) -> bool:
    """Sync the file system of a layer that somebody uses, so that it is frozen soon after for a short time only.

    Args:
        thins: the pool's thin devices.
        thin_id: the layer's.
        fs_type: of its file system.

    Returns:
        Whether a copy of this moment is a clean file system; False where the layer is in use as a block device, as by a
        microVM, which alone could sync it.

    Raises:
        PoolFailed: the file system has failed, or became read-only by an error.
    """
    with _pinned(thins, thin_id) as device:
        if device is None:  # nobody's, or suspended: a sync would wait, and what that means is found under the lock
            return True
        thins.holder.guard.start()  # ready when the sync is done
        if not is_claimed(device):
            return False
        try:
            with _shared_root(fs_type, device) as root:
                syscalls.syncfs(root)
        except MountError as error:
            if _failed(fs_type, device):
                raise PoolFailed(
                    f"the file system on {device} is read-only since an error, and holds less than was written to it",
                    hint="unmount it, and see what the kernel said of it (dmesg)",
                ) from error
        except OSError as error:
            raise PoolFailed(f"the file system on {device} cannot be synced: {error.strerror}") from error
        return True


def is_claimed(device: Path) -> bool:
    """Whether a mount, or whoever else opened it exclusively, has a block device (O_EXCL in open(2))."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


@contextmanager
def _pinned(thins: ThinDevices, thin_id: int) -> Iterator[Path | None]:
    """The node of a device that somebody uses, which stays that device's for the block; else, or suspended, None."""
    info = thins.in_use(thin_id)
    try:
        fd = -1 if info is None else os.open(device_path(info), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # let go of just now
        fd = -1
    try:
        yield device_path(info) if info is not None and fd >= 0 and _is_still(thins, thin_id, info.minor) else None
    finally:
        if fd >= 0:
            os.close(fd)


def _is_still(thins: ThinDevices, thin_id: int, minor: int) -> bool:
    """Whether the number of a node that is open is still the device's: others get it as soon as it is free."""
    info = thins.in_use(thin_id)
    return info is not None and info.minor == minor and not info.suspended


@contextmanager
def _shared_root(fs_type: str, device: Path, *options: str) -> Iterator[int]:
    """The root directory of a file system that is mounted already."""
    mount = mounts.detached_mount(fs_type, str(device), options)
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    try:
        yield root
    finally:
        os.close(root)


def _failed(fs_type: str, device: Path) -> bool:
    """Whether the file system that is mounted from a device is read-only, and by an error as far as can be told.

    A mount that says `ro` shares only a superblock that is read-only.
    """
    try:
        with _shared_root(fs_type, device, "ro"):
            pass
    except MountError:  # somebody else's claim
        return False
    try:
        return int(Path(_ERRORS_OF_EXT4.format(device.name)).read_text(encoding="ascii")) != 0
    except (OSError, ValueError):
        return True
