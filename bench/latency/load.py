"""What else the disk has to do: random writes of 4 KiB, 32 of them at any time, by fio."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from bench.latency.disk import SlowDisk

_FIO = "/usr/bin/fio"
_STARTED_WRITES = 200
_STARTED_SECONDS = 60.0
_STOP_SECONDS = 60.0
LOAD_BYTES = 32 << 20
"""Size of the file that is written to, or of the part of the disk."""


@attrs.define
class Load:
    """A load that runs.

    Attributes:
        pid: fio's process.
        writes_per_second: what it reached, once it has ended.
    """

    pid: int
    writes_per_second: float = 0.0


@contextmanager
def writing(disk: SlowDisk, target: Path, adopt: Callable[[int], None] | None = None) -> Iterator[Load]:
    """Write at random places of a file or device, from before this returns until the end.

    Args:
        disk: where the writes must be seen to arrive.
        target: an existing file, or a block device.
        adopt: is given fio's process, to put it where the writers of a layer are.
    """
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        process = subprocess.Popen(
            [
                _FIO, "--name=load", f"--filename={target}", f"--size={LOAD_BYTES}", "--rw=randwrite", "--bs=4k",
                "--iodepth=32", "--ioengine=libaio", "--direct=1", "--thread", "--time_based", "--runtime=86400",
                "--randrepeat=1", "--fallocate=none", "--output-format=json", f"--output={output.name}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        load = Load(process.pid)
        try:
            if adopt is not None:
                adopt(process.pid)
            _wait_for_writes(disk, process)
            yield load
        finally:
            _stop(process)
        load.writes_per_second = _writes_per_second(output.read())


def _wait_for_writes(disk: SlowDisk, process: subprocess.Popen[bytes]) -> None:
    before, limit = disk.writes(), time.monotonic() + _STARTED_SECONDS
    while disk.writes() - before < _STARTED_WRITES:
        if process.poll() is not None:
            raise RuntimeError(f"fio ended with status {process.returncode} before it wrote")
        if time.monotonic() > limit:
            raise RuntimeError(f"fio wrote next to nothing within {_STARTED_SECONDS:g} s")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask fio to end and to sum up."""
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _writes_per_second(text: str) -> float:
    """From fio's summary, before which it may print a line for people."""
    start = text.find("{")
    return float(json.loads(text[start:])["jobs"][0]["write"]["iops"]) if start >= 0 else 0.0
