"""Processes that hold something, until they are told to let go."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

READY = "echo ready; read line"


@contextmanager
def somebody(script: str, *starter: str, files: Sequence[int] = ()) -> Iterator["subprocess.Popen[str]"]:
    """A shell that does something, says `ready`, and ends when it is told to or the block ends.

    Args:
        script: what it does first.
        starter: a command in front of it, such as `unshare --mount`.
        files: file descriptors that it gets.
    """
    with subprocess.Popen(
        [*starter, "sh", "-c", f"{script}\n{READY}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=files,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            let_go(process)


def let_go(process: "subprocess.Popen[str]") -> None:
    """Tell it to end, and wait for that."""
    assert process.stdin is not None
    if not process.stdin.closed:
        process.stdin.close()
    process.wait()
