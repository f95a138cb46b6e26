"""What the tests of pools do with the tools that people have."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def node_of(name: str) -> Path:
    """The node of a device-mapper device, which is there before udevd has made /dev/mapper/NAME."""
    return Path(f"/dev/dm-{run('dmsetup', 'info', '-c', '--noheadings', '-o', 'minor', name).strip()}")


@contextmanager
def mapped(name: str, table: str) -> Iterator[Path]:
    """A device-mapper device made with dmsetup: its node."""
    run("dmsetup", "create", "--noudevsync", name, "--table", table)
    try:
        yield node_of(name)
    finally:
        run("dmsetup", "remove", "--noudevsync", name)


@contextmanager
def loop_on(file: Path, *options: str) -> Iterator[Path]:
    """A loop device made with losetup: its node."""
    device = Path(run("losetup", "--find", "--show", *options, file).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
