"""Work in a thread of its own, for what must not be seen by the rest of the process.

A thread can have a working directory and a mount namespace that the process does not have (unshare(2) with CLONE_FS
and CLONE_NEWNS): they end with it, also when the process is killed. It costs no fork.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from thinpool.filesystem import syscalls as sys

T = TypeVar("T")


def apart(work: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Carry out work in a short-lived thread: what it returns or raises.

    Args:
        work: what to do.
        undo: called with the result where nobody takes it any more, as the wait for it was interrupted.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=run, name="thinpool-apart")
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()
        if undo is not None:
            for result in done:
                undo(result)
        raise
    if failed:
        raise failed[0]
    return done[0]


@contextmanager
def own_mounts() -> Iterator[None]:
    """Give the thread, which `apart` made, a mount namespace and a working directory of its own.

    What is mounted in the block propagates nowhere, and is gone at its end, with the copies of all other mounts; a
    clone by open_tree(2) stays.
    """
    sys.unshare(sys.CLONE_FS | sys.CLONE_NEWNS)
    try:
        sys.mount("none", "/", None, sys.MS_REC | sys.MS_PRIVATE)
        yield
    finally:
        # not by the end of the thread, which comes after somebody who waits for it goes on
        os.chdir("/")
        sys.umount("/", sys.MNT_DETACH)
