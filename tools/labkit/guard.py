"""The guard: a process that owns the guest, ends it together with the launcher, and cleans up behind both.

A guest is a whole group of processes, whose members outlive their first one; and a launcher may be killed without a
chance to do anything about that. So a process in between, in a session of its own, adopts all of the guest's
processes (PR_SET_CHILD_SUBREAPER), ends them when the launcher asks or is gone, waits until none is left, and
removes the lab's folder. Should the guard be killed, the guest's first process dies with it (PR_SET_PDEATHSIG), and the
launcher cleans up.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Guard:
    """The launcher's end: the lab's folder, and the wire to the guard.

    Attributes:
        folder: the lab's own folder on the host; the guard removes it.
    """

    folder: Path
    _wire: socket.socket
    _pid: int

    def boot(self, command: Sequence[str], environment: Mapping[str, str], keep: Sequence[int]) -> None:
        """Start the guest.

        Args:
            command: the emulator's argument list.
            environment: its environment.
            keep: file descriptors it inherits.
        """
        self._wire.sendall(json.dumps([list(command), dict(environment), list(keep)]).encode() + b"\n")

    def wait(self, seconds: float) -> bool:
        """Wait until the guest is gone with all its processes, at most so long; True when it is."""
        return bool(select.select([self._wire], [], [], seconds)[0])

    def end_guest(self) -> None:
        """End the guest, as a power cut does, and wait until its last process is gone."""
        with contextlib.suppress(OSError):
            self._wire.sendall(b"end")
        self.wait(60.0)

    def close(self) -> None:
        """End the guest if need be, and wait until the guard has cleaned up; if it could not, do it instead."""
        self._wire.close()
        os.waitpid(self._pid, 0)
        _kill_children()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_guard() -> Guard:
    """Fork the guard, which makes the lab's folder.

    Raises:
        LabError: the folder could not be made.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the guard would leave, should it be killed, becomes ours
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            _guard(theirs)
        finally:
            os._exit(0)
    theirs.close()
    with ours.makefile("rb") as reader:
        folder = os.fsdecode(reader.readline().rstrip(b"\n"))
    if not folder:
        os.waitpid(pid, 0)
        raise LabError(f"cannot make a folder in {tempfile.gettempdir()}")
    return Guard(Path(folder), ours, pid)


def _guard(wire: socket.socket) -> None:
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)  # else whoever reads the launcher's output waits for the guard
    folder = tempfile.mkdtemp(prefix="thinpool-lab-")
    try:
        wire.sendall(os.fsencode(folder) + b"\n")
        order = _read_line(wire)
        if order:
            command, environment, keep = json.loads(order)
            _run_guest(command, environment, keep, Path(folder, "console"), wire)
        wire.sendall(b"gone")
        while wire.recv(4096):  # the launcher reads what the guest has written, then closes
            pass
    except OSError:
        pass  # the launcher is gone; only the cleaning is left
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_line(wire: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = wire.recv(65536)
        if not part:
            return b""
        line += part
    return line


def _run_guest(
    command: Sequence[str], environment: Mapping[str, str], keep: Sequence[int], console: Path, wire: socket.socket
) -> None:
    with console.open("wb") as output:
        guest = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=keep,
            start_new_session=True,
            preexec_fn=_before_exec,  # noqa: PLW1509 - the guard has no threads
        )
    try:
        life = os.pidfd_open(guest.pid)
        poll = select.poll()
        poll.register(life, select.POLLIN)
        poll.register(wire, select.POLLIN | select.POLLRDHUP)
        poll.poll()
        os.close(life)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guest.pid, signal.SIGKILL)
        _kill_children()


def _before_exec() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_children() -> None:
    """Kill all children, and what they leave as it becomes ours, until there is none; reap them all."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            # proc(5): after the name in parentheses come the state and the parent
            if int(Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(entry))
    return found


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
