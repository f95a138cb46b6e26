"""Without udevd: mount namespaces with a /dev that nobody looks after, as in many containers; a pause of udevd."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SETUP = """
set -e
if test -n "$1"; then
    mount -t tmpfs -o mode=755 tmpfs "$1"
    for name in null zero urandom; do touch "$1/$name"; mount --bind "/dev/$name" "$1/$name"; done
    mount --rbind "$1" /dev
fi
mount -t tmpfs tmpfs /run/udev
if test -n "$2"; then mount --bind "$2" /proc/misc; fi
exec "$3" -c "$4"
"""


def run_without_udevd(script: str, *, dev: str = "", misc: str = "") -> str:
    """Run Python in a mount namespace of its own, where nothing speaks of an udevd: what it prints.

    Args:
        script: the Python.
        dev: an empty folder, to become a /dev with none of the nodes that a devtmpfs has; "" leaves /dev as it is.
        misc: a file to be seen as /proc/misc; "" leaves that as it is.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh"]
    done = subprocess.run(
        [*command, dev, misc, sys.executable, script], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def paused_udevd() -> Iterator[None]:
    """Keep udevd from doing anything for the block; what it hears meanwhile it does afterwards.

    By stopping the process: after `udevadm control --stop-exec-queue` and `--start-exec-queue` it now and then forgets
    to go on (systemd 252), and every `udevadm settle` waits in vain.
    """
    subprocess.run(["udevadm", "settle"], check=True, timeout=120)
    numbers = []
    for entry in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if entry.read_text() == "systemd-udevd\n":
                numbers.append(int(entry.parts[2]))
    assert numbers
    try:
        _send(numbers, signal.SIGSTOP)
        yield
    finally:
        _send(numbers, signal.SIGCONT)
    subprocess.run(["udevadm", "settle"], check=True, timeout=120)


def _send(numbers: list[int], signum: signal.Signals) -> None:
    for number in numbers:
        with suppress(ProcessLookupError):  # a worker that had nothing to do any more
            os.kill(number, signum)
