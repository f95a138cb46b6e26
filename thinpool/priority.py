"""Long work that gives way: the I/O priority of a thread, and the control group of a process.

What an import, an export or a walk reads and writes competes with what runs in the layers. Two ways hold it back:

- the I/O priority (ioprio_set(2)) of the calling thread. Threads and programs that it starts inherit it. It counts for
  what the thread reads, and writes past the page cache, where the disk's scheduler knows priorities (bfq; mq-deadline
  since Linux 5.14 for the classes). What goes through the page cache is written out by the kernel later, for which it
  does not count; but the writing thread waits where too much is dirty.
- a control group of version 2, with `io.max` or `io.weight`. There I/O is accounted to the process: threads of one
  process cannot be in groups of their own, as the io controller is none that works with threads (cgroup-v2.rst,
  "Threads"). So the whole process is moved, and moved back; a program that does other things meanwhile should do the
  work in a process of its own, as the command line does. What goes through the page cache counts, where the group has
  the memory controller too, and the file system can tell (ext4, xfs and btrfs can).

A commit is never held back by either: who waits for it is the workload.
"""

import ctypes
import enum
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import attrs

from thinpool.errors import ConfigError, NotPermitted, ThinPoolError
from thinpool.filesystem.mounts import mount_table

_CLASS_SHIFT = 13  # IOPRIO_CLASS_SHIFT of include/uapi/linux/ioprio.h
_WHO_PROCESS = 1
_LEVELS = range(8)
_NUMBERS = {"x86_64": (251, 252), "aarch64": (30, 31), "riscv64": (30, 31), "loongarch64": (30, 31)}
"""System calls ioprio_set and ioprio_get by machine (include/uapi/asm-generic/unistd.h, and x86's own table)."""

_libc = ctypes.CDLL(None, use_errno=True)


class IoClass(enum.IntEnum):
    """Classes of I/O priority, as ionice(1) numbers them."""

    BEST_EFFORT = 2
    IDLE = 3


@attrs.frozen
class IoPriority:
    """An I/O priority.

    Attributes:
        io_class: `BEST_EFFORT`, or `IDLE`: only when the disk has nothing else to do.
        level: 0 (first) to 7 within the class; 0 for `IDLE`.
    """

    io_class: IoClass
    level: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `idle`, `best-effort` (which is level 4) or `best-effort:LEVEL`.

        Raises:
            ConfigError: it is none of them.
        """
        name, colon, level = text.partition(":")
        if name == "idle" and not colon:
            return cls(IoClass.IDLE)
        if name == "best-effort" and (not colon or (level.isascii() and level.isdigit() and int(level) in _LEVELS)):
            return cls(IoClass.BEST_EFFORT, int(level) if colon else 4)
        raise ConfigError(f"I/O priority {text!r}: accepted are idle, best-effort and best-effort:0 to best-effort:7")

    @property
    def value(self) -> int:
        """As the kernel has it."""
        return self.io_class << _CLASS_SHIFT | self.level


@contextmanager
def background(
    *, ioprio: IoPriority | str | None = None, cgroup: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Do what is in the block with a lower I/O priority, in another control group, or both; as before afterwards.

    A process that dies inside leaves nothing but an empty control group of the caller's.

    Args:
        ioprio: for the calling thread and those that it starts; the others keep theirs.
        cgroup: directory of a control group of version 2, which the whole process is moved to, see above.

    Raises:
        ConfigError: no such priority or control group.
        NotPermitted: the kernel refuses.
    """
    with ExitStack() as undo:
        if ioprio is not None:
            wanted = IoPriority.parse(ioprio) if isinstance(ioprio, str) else ioprio
            undo.callback(_set_priority, _priority())
            _set_priority(wanted.value)
        if cgroup is not None:
            before = _current_group()
            _join(Path(cgroup))
            undo.callback(_join, before)
        yield


def _priority() -> int:
    """The calling thread's, as the kernel has it."""
    return _ioprio(1)


def _set_priority(value: int) -> None:
    _ioprio(0, value)


def _ioprio(which: int, *arguments: int) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise ThinPoolError(f"I/O priorities are not known for this machine ({platform.machine()})")
    found: int = _libc.syscall(numbers[which], _WHO_PROCESS, 0, *arguments)
    if found < 0:
        raise NotPermitted(f"the I/O priority cannot be changed: {os.strerror(ctypes.get_errno())}")
    return found


def _current_group() -> Path:
    """Directory of the control group that this process is in."""
    mounted = next((entry.target for entry in mount_table() if entry.fs_type == "cgroup2"), None)
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
    if mounted is None or not paths:
        raise ConfigError("no control groups of version 2 are mounted here")
    return mounted / paths[0].lstrip("/")


def _join(group: Path) -> None:
    members = group / "cgroup.procs"
    try:
        fd = os.open(members, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{group} is no control group of version 2: {error.strerror}") from error
    try:
        os.write(fd, b"0")
    except OSError as error:
        raise NotPermitted(f"this process cannot be moved to control group {group}: {error.strerror}") from error
    finally:
        os.close(fd)
