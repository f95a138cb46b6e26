"""Mounts put together where nobody sees them: in a mount namespace that lasts as long as one call."""

import os
import threading
from collections.abc import Callable

from thinpool.filesystem import syscalls as sys


def mounted_apart(work: Callable[[], int]) -> int:
    """Call `work` in a thread with a mount namespace and a working directory of its own.

    What it mounts is gone with the thread, also if the process is killed; what it keeps is a detached mount, as of
    open_tree(2) with OPEN_TREE_CLONE. Nothing propagates out of the namespace. The threads of this process notice
    nothing.

    Returns:
        The file descriptor that `work` returns.

    Raises:
        OSError: the namespace cannot be made.
        BaseException: whatever `work` raises.
    """
    made: list[int] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            sys.unshare(sys.CLONE_FS | sys.CLONE_NEWNS)
            sys.mount("none", "/", None, sys.MS_REC | sys.MS_PRIVATE)
            made.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=body, name="thinpool-mount")
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()
        for fd in made:
            os.close(fd)
        raise
    if failed:
        raise failed[0]
    return made[0]
