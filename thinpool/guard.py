"""A process beside ours that ends what we began, where we die or are stuck before we could end it ourselves.

A device that is suspended, or a guest that was told to freeze, holds its users for as long as nobody resumes it: a
process that is killed, stopped (SIGSTOP) or blocked on a slow disk in between cannot. Neither can a thread of it, and
the kernel has no timer that would. So a small process of our own waits, for the end of a pipe that ends with us, and
for a timer. What it is to do then lies in a file in memory.

It is started once, as a new program, so that neither memory nor locks of ours are carried over, and waits until the
guard is closed. An order costs two system calls before and two after, and wakes nobody. It has a session of its own, so
that what a terminal sends to us does not reach it. Who kills or stops both (a whole cgroup, say) is beyond it: what is
left then is mended when the store is used next, see `thinpool.recovery`. Where this process forked, the child's copy of
the pipe has to end, too.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs

from thinpool.errors import ThinPoolError
from thinpool.timerfd import Timer

if TYPE_CHECKING:
    from subprocess import Popen

_PROGRAM = Path(__file__).with_name("guardian.py")
_AGAIN_SECONDS = 0.25


@attrs.frozen
class Order:
    """What is to be done where we cannot.

    Attributes:
        seconds: how long we may take.
        ioctl: request and argument of an ioctl(2), done every quarter of a second until we say that it is enough.
        command: a program and its arguments, run once.
    """

    seconds: float
    ioctl: tuple[int, bytes] | None = None
    command: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        """As `thinpool.guardian` reads it."""
        fields: dict[str, object] = {}
        if self.ioctl is not None:
            fields |= {"ioctl": self.ioctl[0], "argument": self.ioctl[1].hex()}
        if self.command is not None:
            fields["command"] = self.command
        return json.dumps(fields).encode()


class Guard:
    """The process, which has one order at a time; a context manager that ends it, as does forgetting the value.

    Args:
        device: file descriptor that ioctls are done on, or None where no order has one.
    """

    _running: "_Running | None" = None  # of the class, as `__init__` may be interrupted

    def __init__(self, device: int | None = None) -> None:
        self._device = device
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the process, where it is not there, so that it is ready when the first order comes; from any thread.

        Raises:
            ThinPoolError: it cannot be started.
        """
        if self._pid != os.getpid():  # another thread may have had it when ours forked
            self._mutex, self._pid = threading.Lock(), os.getpid()
        with self._mutex:
            if self._running is not None and not self._running.serves():
                self.close()
            if self._running is None:
                self._running = _Running(self._device)

    def close(self) -> None:
        """Let the process end, and wait for that; closing again does nothing."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process, where it was started."""
        return None if self._running is None else self._running.process.pid

    @contextmanager
    def over(self, order: Order) -> Iterator[None]:
        """Have an order carried out if the block takes too long, or never comes to its end.

        Raises:
            ThinPoolError: the process cannot be started.
        """
        self.start()
        running = self._running
        assert running is not None
        try:
            running.begin(order)
            yield
        finally:
            running.end()


class _Running:
    """The process with what it shares with us."""

    def __init__(self, device: int | None) -> None:
        if not sys.executable:
            raise ThinPoolError("cannot start the guard of a commit: this process does not know its Python interpreter")
        self._owner = os.getpid()
        self._order = os.memfd_create("thinpool-guard", os.MFD_CLOEXEC)
        self._timer = Timer()
        try:
            self.process = _spawn(self._timer.fd, self._order, self._order if device is None else device)
        except OSError as error:
            self._close_files()
            raise ThinPoolError(f"cannot start the guard of a commit: {error.strerror}") from error

    def serves(self) -> bool:
        """Whether it lives, and is ours: a fork must not share its parent's."""
        return self._owner == os.getpid() and self.process.poll() is None

    def begin(self, order: Order) -> None:
        os.pwrite(self._order, order.encode(), 0)
        self._timer.set(order.seconds, _AGAIN_SECONDS)

    def end(self) -> None:
        os.ftruncate(self._order, 0)
        self._timer.set(0)

    def close(self) -> None:
        if self._owner == os.getpid():
            with self.process:
                assert self.process.stdin is not None
                self.process.stdin.close()
        self._close_files()

    def _close_files(self) -> None:
        os.close(self._order)
        self._timer.close()


def _spawn(*shared: int) -> "Popen[bytes]":
    import subprocess  # noqa: PLC0415 - only where a layer in use is copied

    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, shared)],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        pass_fds=shared,
        start_new_session=True,
    )
