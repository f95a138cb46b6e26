"""What all contenders have in common: a tree, a layer on it with changes, and operations that can be timed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

_GONE_SECONDS = 60.0


def nothing() -> None:
    """For what needs no undoing."""


class CutShort(Exception):
    """An operation was ended at the limit of time.

    Attributes:
        seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@attrs.frozen
class Operation:
    """Something that a contender does and that is timed.

    Attributes:
        name: of the operation; `commit` and `diff` are compared between contenders.
        run: does it.
        undo: leaves the layer as `begin` did, for the next round; not timed.
        warm: brings the programs that it runs back into memory, where they are on a machine that does this often.
        context: it is measured on an idle disk only, to compare with.
    """

    name: str
    run: Callable[[], object]
    undo: Callable[[], object] = nothing
    warm: Callable[[], object] = nothing
    context: bool = False


class Contender(Protocol):
    """One way to have layers, on slices of the slow disk that are its own."""

    @property
    def name(self) -> str:
        """For people, and in the results."""

    @property
    def context(self) -> bool:
        """Whether it is measured on an idle disk only, to compare with."""

    @property
    def operations(self) -> Sequence[Operation]:
        """What is timed, on the layer that `begin` made."""

    @property
    def root(self) -> Path:
        """The root directory of that layer, mounted."""

    def build(self, files: int, archive: Path) -> None:
        """Make the tree that layers are made on, from a tar."""

    def begin(self, files: int, changes: int) -> None:
        """Make a layer on the tree, mounted and in use, and change it."""

    def end(self) -> None:
        """Remove that layer."""

    def adopt(self, pid: int) -> None:
        """Put a process where the writers of that layer are."""

    def other(self) -> Path:
        """The file for a load in another layer of the same pool, which is made where it is missing."""

    def close(self) -> None:
        """End all processes, and let go of all devices."""


def tool(*command: str) -> str:
    """Run a command; what it says on standard output."""
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout


def limited(seconds: float, *command: str) -> str:
    """Run a command as `tool` does, and end it at a limit of time, with all that it has started.

    Raises:
        CutShort: it was ended.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        _end_group(process)
        raise CutShort(seconds) from error
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return said


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill a session's processes and wait until the last is gone: one that is left keeps what it has open busy."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    limit = time.monotonic() + _GONE_SECONDS
    with suppress(ProcessLookupError):
        while time.monotonic() < limit:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
