"""SIGINT, SIGTERM and SIGHUP as exceptions, so that whatever was begun is undone on the way out.

The first signal raises `Interrupted` in the main thread; later ones are ignored, because they would cut short the
undoing. A signal that was ignored when the process started (nohup, a background job) stays ignored.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_RETRY_SECONDS = 0.01


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return "interrupted" if self.signum == signal.SIGINT else f"ended by {signal.Signals(self.signum).name}"


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """What a process that a signal ended exits with: 128 and the signal's number."""
    return 128 + (interrupt.signum if isinstance(interrupt, Interrupted) else signal.SIGINT)


def install() -> None:
    """Make the handled signals raise `Interrupted`, once."""
    for signum in HANDLED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _raise_once)
    sys.unraisablehook = _raise_again


def disregard() -> None:
    """Let signals pass from now on: all is done, and the process ends anyway."""
    for signum in HANDLED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)


@contextlib.contextmanager
def dropping_output() -> Iterator[None]:
    """While an archive goes to standard output, let a signal drop the rest of it.

    Whoever reads it may have stopped reading, and a thread that writes would wait for ever.
    """
    mine = [signum for signum in HANDLED if signal.getsignal(signum) is _raise_once]
    for signum in mine:
        signal.signal(signum, _drop_and_raise)
    try:
        yield
    finally:
        for signum in mine:
            if signal.getsignal(signum) is _drop_and_raise:
                signal.signal(signum, _raise_once)


@contextlib.contextmanager
def left_to_child() -> Iterator[None]:
    r"""While a command runs in the foreground of our terminal, leave the keyboard's signals to it.

    The terminal sends Ctrl-C and Ctrl-\ to every process of the foreground group: the command decides what they mean
    (a shell in a layer goes on), and the store waits for its end. Elsewhere nothing changes.
    """
    if not _is_foreground():
        yield
        return
    # Functions, and not SIG_IGN, which the command would inherit.
    previous = {signum: signal.signal(signum, _leave) for signum in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _is_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _leave(_signum: int, _frame: FrameType | None) -> None:
    pass


def _raise_once(signum: int, _frame: FrameType | None) -> None:
    disregard()
    raise Interrupted(signum)


def _drop_and_raise(signum: int, _frame: FrameType | None) -> None:
    disregard()
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 1)
    os.close(null)
    for thread in threading.enumerate():  # a write that waits returns, and is tried again where it waits for nobody
        if thread is not threading.current_thread() and thread.ident is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident, signum)
    raise Interrupted(signum)


def _raise_again(unraisable: "UnraisableHookArgs") -> None:
    """Repeat a signal whose exception was lost because it arrived inside a finalizer, where none can be raised."""
    lost = unraisable.exc_value
    if not isinstance(lost, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    signal.signal(lost.signum, _raise_once)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(_RETRY_SECONDS, signal.pthread_kill, (main_thread, lost.signum))
    timer.daemon = True
    timer.start()
