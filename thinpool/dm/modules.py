"""Kernel modules, loaded where the kernel does not do so by itself, and the control device's node."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from thinpool.errors import DriverUnsupported, NotPermitted

_MISC = Path("/proc/misc")
_MISC_MAJOR = 10
_ADMIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS = 30.0


def load_module(name: str) -> str | None:
    """Have modprobe(8) load a module, by name or alias: None if it did, else why not."""
    import sh  # noqa: PLC0415 - it loads asyncio, and hardly any run of ours comes here

    path = shutil.which("modprobe") or shutil.which("modprobe", path=_ADMIN_PATH)
    if path is None:
        return "modprobe is not installed"
    try:
        sh.Command(path)("--", name, _tty_out=False, _timeout=_SECONDS)
    except sh.TimeoutException:
        return f"modprobe {name} took longer than {_SECONDS:.0f} s"
    except sh.ErrorReturnCode as error:
        said: str = error.stderr.decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"modprobe {name} failed"
    return None


def open_control(path: str) -> int:
    """Open the control device; where there is no node, as where no udevd or devtmpfs made one, it is made.

    Raises:
        NotPermitted: not root.
        DriverUnsupported: the kernel has no device-mapper, or the node cannot be made.
    """
    with suppress(FileNotFoundError):
        return _open(path)
    minor, reason = _misc_minor(), None
    if minor is None:
        reason = load_module("dm_mod")
        minor = _misc_minor()
    if minor is None:
        raise DriverUnsupported(f"this kernel has no device-mapper ({reason or 'module dm_mod did not bring it'})")
    if not os.path.exists(path):  # the module may have brought it
        _make_node(path, minor)
    return _open(path)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise NotPermitted("device-mapper needs root", hint="run as root") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DriverUnsupported(f"this kernel has no device-mapper ({path}: {error.strerror})") from error


def _misc_minor() -> int | None:
    for line in _MISC.read_text(encoding="ascii").splitlines():
        number, _, name = line.strip().partition(" ")
        if name == "device-mapper":
            return int(number)
    return None


def _make_node(path: str, minor: int) -> None:
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(_MISC_MAJOR, minor))
    except PermissionError as error:
        raise NotPermitted("device-mapper needs root", hint="run as root") from error
    except OSError as error:
        raise DriverUnsupported(f"there is no {path}, and it cannot be made: {error.strerror}") from error
