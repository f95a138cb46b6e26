"""timerfd_create(2): a timer as a file, which a process can set and another one wait for."""

import ctypes
import os
import struct
import time

_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_NONBLOCK = os.O_NONBLOCK
_NANOSECONDS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """A timer of the kernel's, which is readable once it has run out.

    Attributes:
        fd: its file descriptor, which whoever inherits it shares.
    """

    def __init__(self) -> None:
        self.fd = _checked("timerfd_create", _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_CLOEXEC | _TFD_NONBLOCK))

    def set(self, seconds: float, again: float = 0.0) -> None:
        """Let it run out after so many seconds, and then each time after `again`; 0 stops it."""
        value = struct.pack("@4l", *_parts(again), *_parts(seconds))
        _checked("timerfd_settime", _libc.timerfd_settime(self.fd, 0, value, None))

    def close(self) -> None:
        """Close it; others that have it keep it."""
        os.close(self.fd)


def _parts(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * _NANOSECONDS), _NANOSECONDS)


def _checked(call: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result
