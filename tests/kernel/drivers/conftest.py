"""Stores of the overlay driver on real file systems."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thinpool import Store
from thinpool.filesystem import syscalls

MakePlace = Callable[..., Path]


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def disk(*mkfs: str, options: str | None = None, size: int = 400 << 20) -> Iterator[Path]:
    """A file system on a loop device, mounted."""
    folder = Path(tempfile.mkdtemp(prefix="disk-", dir=os.environ.get("LAB_SCRATCH")))
    with (folder / "image").open("wb") as file:
        file.truncate(size)
    loop = run("losetup", "--find", "--show", str(folder / "image")).strip()
    try:
        run(*mkfs, loop)
        place = folder / "mounted"
        place.mkdir()
        syscalls.mount(loop, str(place), mkfs[0].partition(".")[2], 0, options)
        try:
            yield place
        finally:
            syscalls.umount(str(place))
    finally:
        run("losetup", "--detach", loop)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ext4() -> Iterator[Path]:
    """An ext4 that the tests of a module share."""
    with disk("mkfs.ext4", "-q", "-F", "-I", "512", "-E", "lazy_itable_init=0,nodiscard") as place:
        yield place


@pytest.fixture(params=["ext4", "tmpfs"])
def overlay(request: pytest.FixtureRequest, scratch: Path, ext4: Path) -> Iterator[Store]:
    """An overlay store on each of two file systems; brought down after the test."""
    root = ext4 / "store" if request.param == "ext4" else scratch / "store"
    with Store.open(root, "overlay") as store:
        yield store
    with Store.open(root) as again:
        again.down()
    shutil.rmtree(root)
