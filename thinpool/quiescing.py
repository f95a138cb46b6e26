"""Hooks around the moment of a commit: who works in a layer is told to hold still, and to go on.

The kernel freezes a file system that is mounted here. What runs in a microVM, or keeps data of its own in memory, only
its own agent can bring to rest: a command or a function that is called with `freeze` just before the copy is made, and
with `thaw` just after it, always, also where the freeze or the copy failed.
"""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Literal

import attrs

from thinpool.crashpoints import point
from thinpool.errors import ConfigError, HookFailed, ThinPoolError
from thinpool.guard import Guard, Order
from thinpool.pool.holding import HOLD_SECONDS

Step = Literal["freeze", "thaw"]
Hook = Callable[[Step], object] | Sequence[str]
"""A function, or a command with its arguments, which gets the step as one argument more."""

HOOK_SECONDS = 30.0
"""How long a command may take for one step."""

_SAID_MAX = 300
_LATE_SECONDS = 10.0


@attrs.frozen
class Quiesce:
    """One hook and its limit.

    Attributes:
        hook: see `Hook`.
        seconds: how long a command may take for one step; it is killed then, with all of its process group. A function
            has no limit but its own.
    """

    hook: Hook
    seconds: float = HOOK_SECONDS

    def __attrs_post_init__(self) -> None:
        if not callable(self.hook) and (isinstance(self.hook, str) or not self.hook):
            raise ConfigError(f"freeze hook {self.hook!r}: accepted are a function and a list of a command's words")
        if self.seconds <= 0:
            raise ConfigError(f"freeze hook with {self.seconds:g} s to do its work; it must be more than 0")

    @contextmanager
    def around(self) -> Iterator[None]:
        """Call the hook with `freeze` before the block and with `thaw` after it, whatever happens.

        A process that is killed in between calls nothing any more: for a command the guard does it then, or where the
        block does not end (`thinpool.guard`); of a function nothing is left. `thaw` may come once more than `freeze`.

        Raises:
            HookFailed: the hook failed. If it was the thaw, what the hook is for may still hold still.
        """
        with Guard() as guard, nullcontext() if callable(self.hook) else guard.over(self._order(self.hook)):
            try:
                self._call("freeze")
                point("hook-frozen")
                yield
            except BaseException:
                with suppress(ThinPoolError):  # the first error is the one to tell
                    self._call("thaw")
                raise
            self._call("thaw")
            point("hook-thawed")

    def _order(self, command: Sequence[str]) -> Order:
        return Order(2 * self.seconds + HOLD_SECONDS + _LATE_SECONDS, command=(*command, "thaw"))

    def _call(self, step: Step) -> None:
        if not callable(self.hook):
            _run([*self.hook, step], self.seconds)
            return
        try:
            self.hook(step)
        except ThinPoolError:
            raise
        except Exception as error:
            raise HookFailed(f"freeze hook failed at {step}: {type(error).__name__}: {error}") from error


def parse_command(text: str) -> Sequence[str]:
    """The words of a command, quoted as for a shell, which none is given to.

    Raises:
        ConfigError: a quote without an end, or no word.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"freeze hook {text!r}: {error}") from error
    if not words:
        raise ConfigError("a freeze hook without a command")
    return words


def _run(command: Sequence[str], seconds: float) -> None:
    shown = shlex.join(command)
    with tempfile.TemporaryFile() as said:  # a pipe would wait for all that the command leaves running
        try:
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise HookFailed(f"freeze hook `{shown}` cannot be run: {error.strerror}") from error
        try:
            status = process.wait(seconds)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise HookFailed(f"freeze hook `{shown}` took longer than {seconds:g} s and was ended") from error
            raise
        if status:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_MAX))
            last = " / ".join(said.read().decode(errors="replace").split("\n")).strip(" /")
            raise HookFailed(f"freeze hook `{shown}` failed with status {status}: {last or 'it said nothing'}")
