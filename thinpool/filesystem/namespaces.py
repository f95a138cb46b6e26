"""The mount namespaces of this machine: which there are, what is mounted in each, and work done inside one.

A namespace is found by the processes that live in it. One without processes is found where something keeps it that can
be seen from here: a bind mount of `/proc/PID/ns/mnt`, as unshare(1) makes with `--mount=FILE`, or a process that has
such a file open.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import attrs

from thinpool.filesystem import syscalls as sys
from thinpool.filesystem.mounts import MountEntry, parse_mountinfo
from thinpool.filesystem.threads import apart

T = TypeVar("T")

_SELF = "/proc/self/ns/mnt"
_NAMED = re.compile(r"mnt:\[(\d+)\]")


@attrs.frozen
class Namespace:
    """A mount namespace.

    Attributes:
        inode: the kernel's number of it.
        path: opens it, for setns(2), for as long as whoever keeps it does.
        pid: a process that lives in it; None where none does.
        is_own: it is the one of this process.
    """

    inode: int
    path: str
    pid: int | None
    is_own: bool = False

    def __str__(self) -> str:
        return f"the mount namespace that {self.path} keeps"


def mount_namespaces() -> Iterator[Namespace]:
    """Every mount namespace that can be found, our own first; one that ends meanwhile may be given still."""
    own = os.stat(_SELF).st_ino
    yield Namespace(own, _SELF, os.getpid(), is_own=True)
    seen = {own}
    for process in processes():
        path = f"/proc/{process}/ns/mnt"
        with suppress(OSError):
            inode = os.stat(path).st_ino
            if inode not in seen:
                seen.add(inode)
                yield Namespace(inode, path, process)
    for path in _keepers():
        with suppress(OSError):
            inode = os.stat(path).st_ino
            if inode not in seen:
                seen.add(inode)
                yield Namespace(inode, path, None)


def processes() -> list[int]:
    """The numbers of the processes that can be seen, lowest first."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def _keepers() -> Iterator[str]:
    """Paths that keep a mount namespace: bind mounts of its file, and files that processes have open."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    for line in lines:
        if b" - nsfs " in line:
            entry = parse_mountinfo(line)
            if _NAMED.fullmatch(entry.root):
                yield str(entry.target)
    for process in processes():
        with suppress(OSError):
            for name in os.listdir(f"/proc/{process}/fd"):
                path = f"/proc/{process}/fd/{name}"
                with suppress(OSError):
                    if _NAMED.fullmatch(os.readlink(path)):
                        yield path


def inside(namespace: Namespace, work: Callable[[], T]) -> T:
    """Do something in a mount namespace, in a thread of its own whose root directory is the namespace's.

    Args:
        namespace: which.
        work: what to do; it must leave nothing open that belongs to a thread.

    Raises:
        OSError: the namespace is gone, or cannot be entered.
    """

    def entered() -> T:
        fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sys.unshare(sys.CLONE_FS)
            sys.setns(fd, sys.CLONE_NEWNS)
        finally:
            os.close(fd)
        return work()

    return work() if namespace.is_own else apart(entered)


def mounts_in(namespace: Namespace, word: bytes) -> list[MountEntry]:
    """The mounts in a namespace whose line has a word, as its first process or, without one, we would see them.

    A process that changed its root directory sees only what is below it; `thinpool.filesystem.mounts.everywhere` asks
    those too.

    Raises:
        OSError: the namespace is gone.
    """
    if namespace.pid is not None and not namespace.is_own:
        text = _read(f"/proc/{namespace.pid}/mountinfo")
    elif namespace.is_own:
        text = _read("/proc/thread-self/mountinfo")
    else:
        text = _table_inside(namespace)
    return [parse_mountinfo(line) for line in text.splitlines() if word in line] if word in text else []


def _table_inside(namespace: Namespace) -> bytes:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # which need not be mounted in there
    try:
        return inside(namespace, lambda: _read("thread-self/mountinfo", proc))
    finally:
        os.close(proc)


def entries_inside(namespace: Namespace, work: Callable[[MountEntry], bool]) -> int:
    """Do something with each mount of a namespace, from within it, last mounted first: how often it was done.

    Args:
        namespace: which.
        work: gets each entry, with paths that lead to it from within; returns whether it did something.

    Raises:
        OSError: the namespace is gone, or cannot be entered.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def walk() -> int:
        table = _read("thread-self/mountinfo", proc).splitlines()
        return sum(work(parse_mountinfo(line)) for line in reversed(table))

    try:
        return inside(namespace, walk)
    finally:
        os.close(proc)


def _read(path: str, directory: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        return file.read()
