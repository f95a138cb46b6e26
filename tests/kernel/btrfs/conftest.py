"""A btrfs on a disk in memory, and a store on it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from thinpool import Store
from thinpool.filesystem import syscalls
from thinpool.units import GIB

Host = Callable[..., Path]


@pytest.fixture
def make_host(scratch: Path, disk_factory: Callable[[int], Path]) -> Iterator[Host]:
    """Make and mount a btrfs of so many bytes; unmounted after the test."""
    with ExitStack() as undo:

        def make(size: int = GIB, *arguments: str, options: str = "") -> Path:
            disk = disk_factory(size)
            subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", *arguments, str(disk)], check=True)
            place = scratch / f"host-{disk.name}"
            place.mkdir()
            syscalls.mount(str(disk), str(place), "btrfs", 0, options)
            undo.callback(syscalls.umount, str(place))
            return place

        yield make


@pytest.fixture
def host(make_host: Host) -> Path:
    """A mounted btrfs."""
    return make_host()


@pytest.fixture
def root(host: Path) -> Path:
    """Where the store is."""
    return host / "root"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    """An open store; nothing of it is mounted afterwards."""
    with Store.open(root, "btrfs") as store:
        yield store
    with Store.open(root) as again:
        again.down()
