"""Work in a thread of its own, for what must not be seen by the rest of the process.

A thread can have a working directory and a mount namespace that the process does not have (unshare(2) with CLONE_FS
and CLONE_NEWNS): they end with it, also when the process is killed. It costs no fork.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Carry out work in a short-lived thread: what it returns or raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
