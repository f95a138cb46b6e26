"""Run tools/lab as its users do: as a process; and see that nothing of it stays behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
Finished = subprocess.CompletedProcess[str]
_GONE_SECONDS = 60.0


@attrs.frozen
class RunningLab:
    """A lab whose command runs.

    Attributes:
        process: the launcher.
        output: what comes from the command.
    """

    process: subprocess.Popen[str]
    output: IO[str]

    def wait_for(self, line: str) -> None:
        """Read up to this line; the command is in the middle of its work then."""
        for each in self.output:
            if each == line + "\n":
                return
        pytest.fail(f"the lab ended without saying {line!r}")

    def end(self, signum: signal.Signals) -> int:
        """Send the launcher a signal and wait for its end; gives back its status."""
        self.process.send_signal(signum)
        return self.process.wait()


@attrs.frozen
class Lab:
    """Starts labs that keep their temporary things in one folder.

    Attributes:
        folder: the labs' $TMPDIR.
        started: launchers that were not waited for.
    """

    folder: Path
    started: list[subprocess.Popen[str]] = attrs.field(factory=list)

    def run(self, *arguments: object, cwd: Path = CHECKOUT, **environment: str) -> Finished:
        return subprocess.run(
            self._command(arguments),
            cwd=cwd,
            env=self._environment(environment),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def start(self, *arguments: object, **environment: str) -> RunningLab:
        process = subprocess.Popen(
            self._command(arguments),
            cwd=CHECKOUT,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        return RunningLab(process, process.stdout)

    def output_of(self, *arguments: object) -> str:
        """Standard output and error of a lab, both in one pipe."""
        return subprocess.run(
            self._command(arguments),
            cwd=CHECKOUT,
            env=self._environment({}),
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout

    def left(self) -> list[str]:
        """Files and processes of the labs that are still there."""
        processes = [f"{process}: {' '.join(line)}" for process, line in self.processes().items()]
        return [*processes, *map(str, self.folder.iterdir())]

    def processes(self) -> dict[int, list[str]]:
        """Command lines, by process id, of whatever was started for these labs."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.folder) in environment or str(self.folder) in " ".join(line):
                found[int(entry.name)] = line
        return found

    def wait_until_gone(self) -> None:
        limit = time.monotonic() + _GONE_SECONDS
        while self.left():
            assert time.monotonic() < limit, f"still there: {self.left()}"
            time.sleep(0.02)

    def _command(self, arguments: tuple[object, ...]) -> list[str]:
        return [str(CHECKOUT / "tools" / "lab"), *map(str, arguments)]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.folder), **more}


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A starter of labs; after the test no file and no process of theirs may be there."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="lab-test-")))
    try:
        yield lab
        assert lab.left() == []
    finally:
        for process in lab.started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for number in lab.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(lab.folder)
