"""Names of devices in /dev, where nobody else makes them.

The kernel makes /dev/dm-N where /dev is a devtmpfs, and udevd links /dev/mapper/NAME to it. In a container or an
initramfs either may be missing. What is there is then brought in line with what the kernel has after each change; as
that asks the kernel again after it took something away, it needs no lock against others who do the same.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from thinpool.nodes import ensure_block_node

_DEV = "/dev"
_UDEVD = "/run/udev/control"
_MOUNTS = "/proc/self/mountinfo"

Device = tuple[int, int]


class Nodes:
    """Who makes device nodes here; found out once for the life of the value, as far as it is about /dev itself."""

    def __init__(self) -> None:
        self._by_kernel: bool | None = None

    def by_kernel(self) -> bool:
        """Whether /dev is a devtmpfs."""
        if self._by_kernel is None:
            self._by_kernel = _is_devtmpfs(os.stat(_DEV).st_dev)
        return self._by_kernel

    def by_others(self) -> bool:
        """Whether kernel and udevd make all names here, and nothing is left to do."""
        return self.by_kernel() and os.path.exists(_UDEVD)

    def settle(self, name: str, device: Device, find: Callable[[str], Device | None]) -> None:
        """Bring the names of one device in line with what the kernel has.

        Args:
            name: the device's name.
            device: major and minor that it has or had.
            find: tells the major and minor of a device of that name, or None.

        Raises:
            OSError: a node is needed, and cannot be made.
        """
        if not self.by_kernel():
            _settle_node(device)
        with suppress(OSError):  # the link is for people, and /dev may be read-only
            _settle_link(name, find)


def _is_devtmpfs(device: int) -> bool:
    number = f"{os.major(device)}:{os.minor(device)}"
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split(" ", 3)[2] == number:
                return after.startswith("devtmpfs ")
    return False


def _settle_node(device: Device) -> None:
    path = f"{_DEV}/dm-{device[1]}"
    if not _exists(device):
        with suppress(FileNotFoundError):
            os.unlink(path)
    if not _exists(device):
        return
    ensure_block_node(Path(path), *device)


def _exists(device: Device) -> bool:
    return os.path.exists(f"/sys/dev/block/{device[0]}:{device[1]}")


def _settle_link(name: str, find: Callable[[str], Device | None]) -> None:
    path = f"{_DEV}/mapper/{name}"
    if find(name) is None:
        with suppress(FileNotFoundError):
            os.unlink(path)
    device = find(name)
    if device is None:
        return
    wanted = f"../dm-{device[1]}"
    try:
        if os.stat(path).st_rdev == os.makedev(*device):
            return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    with suppress(FileExistsError):
        os.symlink(wanted, path)
