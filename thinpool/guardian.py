"""The program of the guard's process: it acts where the process that it watches dies or is stuck (`thinpool.guard`).

It runs by itself, without thinpool and without a look at what is installed, so that it is there in milliseconds. The
order lies in a file in memory, as JSON; an empty one means that there is none.
"""

import contextlib
import fcntl
import json
import os
import select
import sys

_ORDER_MAX = 1 << 16
_COMMAND_SECONDS = 60


def watch(life: int, timer: int, order: int, device: int) -> None:
    """Carry the order out each time that the timer runs out, and when the watched process has ended.

    Args:
        life: file descriptor of a pipe that ends with the process.
        timer: of a timer, as timerfd_create(2).
        order: of the file that the order is in.
        device: what ioctls are done on.
    """
    while True:
        ready = select.select([life, timer], [], [])[0]
        if timer in ready:
            with contextlib.suppress(BlockingIOError):  # stopped just now
                os.read(timer, 8)
                act(order, device)
        if life in ready and not os.read(life, 1):
            act(order, device)
            return


def act(order: int, device: int) -> None:
    """Carry the order out: an ioctl each time, as it may come before what it is to end; a command once."""
    text = os.pread(order, _ORDER_MAX, 0)
    if not text:
        return
    found = json.loads(text)
    if "ioctl" in found:
        with contextlib.suppress(OSError):
            fcntl.ioctl(device, found["ioctl"], bytearray.fromhex(found["argument"]))
    if "command" in found:
        os.ftruncate(order, 0)
        import subprocess  # noqa: PLC0415 - seldom needed

        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(  # noqa: S603 - what the process that we watch would run itself
                found["command"], check=False, stdin=subprocess.DEVNULL, timeout=_COMMAND_SECONDS
            )


if __name__ == "__main__":
    watch(0, *map(int, sys.argv[1:]))
