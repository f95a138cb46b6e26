"""A process that dies at a crash point."""

import os
import signal
from collections.abc import Callable

from thinpool.crashpoints import Death, point


def killed_at(name: str, work: Callable[[], object]) -> None:
    """Work in a child that dies at a crash point."""
    child = os.fork()
    if child == 0:
        try:
            point.watch(Death(name))
            work()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, name
