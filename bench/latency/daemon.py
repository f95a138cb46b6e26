"""A service that runs for a while: started in a cgroup of its own, ended by its pid, nothing of it left."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_START_SECONDS = 60.0
_END_SECONDS = 60.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Daemon:
    """A running service.

    Args:
        name: of its cgroup.
        command: how it is started, in the foreground.
        log: a file for what it says.
        ready: tells whether it serves.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, ready: Callable[[], bool]) -> None:
        self._cgroup = _CGROUPS / f"bench-{name}"
        self._cgroup.mkdir(exist_ok=True)
        environment: Mapping[str, str] = {**os.environ, "PATH": _PATH}
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
            )
        (self._cgroup / "cgroup.procs").write_text(str(self._process.pid))
        limit = time.monotonic() + _START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"{command[0]} does not serve; the end of {log}:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and whatever it started and left."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(OSError):  # a kernel before 5.14
            (self._cgroup / "cgroup.kill").write_text("1")
        limit = time.monotonic() + _END_SECONDS
        while (self._cgroup / "cgroup.procs").read_text().strip() and time.monotonic() < limit:
            time.sleep(0.05)
        self._cgroup.rmdir()
