"""Modules and device nodes, also where nobody else sees to them: a module not loaded yet, no devtmpfs, no udevd.

In containers and early boot /dev is often a plain tmpfs. A node is only a name for a number, and the kernel tells every
number in /proc/misc and /sys, so a missing one is made here.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_MISC_MAJOR = 10  # Documentation/admin-guide/devices.txt
_MODPROBE_SECONDS = 30
_ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_ADMIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def open_misc(path: str, name: str, module: str) -> int:
    """Open a control device of the kernel read-write: a file descriptor.

    Where it is missing the module is loaded, once, and the node is made. A process that dies half-way leaves at most a
    loaded module and a node.

    Args:
        path: its node, as in `/dev/mapper/control`.
        name: its name in /proc/misc, as in `device-mapper`.
        module: the module that brings it, as modprobe(8) knows it.

    Raises:
        PermissionError: the caller may not open it, or not make the node.
        OSError: the kernel does not have it (ENODEV), or the node cannot be made.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
    minor = _misc_minor(name)
    if minor is None:
        load_module(module)  # whether it helped shows in /proc/misc
        minor = _misc_minor(name)
    if minor is None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(_MISC_MAJOR, minor))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def ensure_block_node(path: Path, major: int, minor: int) -> None:
    """See to it that a path is the node of a block device; does nothing but a stat(2) where it is.

    Raises:
        OSError: the node cannot be made, or something that is no block device has its place.
    """
    device = os.makedev(major, minor)
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, device)
        found = os.stat(path, follow_symlinks=False)
    if not stat.S_ISBLK(found.st_mode):
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), str(path))
    if found.st_rdev != device:
        # by rename, so that no moment is without a node; left by a kernel that had other numbers
        fresh = f"{path}.{os.getpid()}"
        os.mknod(fresh, stat.S_IFBLK | 0o600, device)
        os.rename(fresh, path)


def _misc_minor(name: str) -> int | None:
    with open("/proc/misc", encoding="ascii") as lines:
        for line in lines:
            minor, _, found = line.strip().partition(" ")
            if found == name:
                return int(minor)
    return None


def load_module(module: str) -> str | None:
    """Have modprobe(8) load a module, by name or alias: None if it did, else why not."""
    import sh  # noqa: PLC0415 - it loads asyncio, and the module is there as a rule

    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}", "LC_ALL": "C.UTF-8"}
    try:
        modprobe = sh.Command("modprobe", search_paths=environment["PATH"].strip(":").split(":"))
        modprobe("--", module, _env=environment, _timeout=_MODPROBE_SECONDS, _tty_out=False)
    except sh.CommandNotFound:
        return "modprobe is not installed"
    except sh.TimeoutException:
        return f"modprobe took longer than {_MODPROBE_SECONDS} s"
    except sh.ErrorReturnCode as error:
        said: str = error.stderr.decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"modprobe failed with status {error.exit_code}"
    return None
