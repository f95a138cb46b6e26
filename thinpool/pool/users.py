"""Who uses a block device: for the message of an error, so it may cost what it costs."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from thinpool.filesystem.mounts import mount_table

_SHOWN = 6


def users(device: tuple[int, int]) -> str:
    """The device-mapper devices on top of a device, the mounts of it in any namespace, and who has it open.

    Args:
        device: (major, minor).

    Returns:
        One line, as in `mounted on /mnt, open by pid 123 (qemu)`; "" where nobody is found.
    """
    found = list(islice(_users(device), _SHOWN + 1))
    more = [] if len(found) <= _SHOWN else ["and others"]
    return ", ".join(found[:_SHOWN] + more)


def _users(device: tuple[int, int]) -> Iterator[str]:
    yield from (f"held by {name}" for name in holders(device))
    yield from _mounts(device)
    yield from _openers(os.makedev(*device))


def holders(device: tuple[int, int]) -> list[str]:
    """The block devices on top of a device (device-mapper, RAID): kernel name, and device-mapper name if it has one."""
    folder = Path(f"/sys/dev/block/{device[0]}:{device[1]}/holders")
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [_named(name) for name in names]


def _named(kernel_name: str) -> str:
    with suppress(OSError):
        name = Path(f"/sys/class/block/{kernel_name}/dm/name").read_text(encoding="utf-8").strip()
        return f"{kernel_name} ({name})"
    return kernel_name


def _mounts(device: tuple[int, int]) -> Iterator[str]:
    """The mounts in our mount namespace, then those in others, each namespace once."""
    seen = set()
    for process in ["self", *_processes()]:
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            for entry in mount_table(f"/proc/{process}/mountinfo"):
                if entry.device == device:
                    yield f"mounted on {entry.target}" + ("" if process == "self" else f" for {_process(process)}")


def _openers(number: int) -> Iterator[str]:
    for process in _processes():
        with suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with suppress(OSError):
                    found = os.stat(entry.path)
                    if stat.S_ISBLK(found.st_mode) and found.st_rdev == number and int(process) != os.getpid():
                        yield f"open by {_process(process)}"
                        break


def _processes() -> list[str]:
    return [entry for entry in os.listdir("/proc") if entry.isdigit()]


def _process(number: str) -> str:
    try:
        return f"pid {number} ({Path(f'/proc/{number}/comm').read_text(encoding='utf-8', errors='replace').strip()})"
    except OSError:
        return f"pid {number}"
