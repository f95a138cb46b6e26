import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from thinpool import Store
from thinpool.cli import app
from thinpool.cli.layers import removal_order

OPTIONS = ("--storage-opt", "dm.loopdatasize=2G", "--storage-opt", "dm.loopmetadatasize=64M")
SMALL = ("--storage-opt", "dm.basesize=512M")


@attrs.frozen
class Cli:
    """The command line on one store.

    Attributes:
        root: the store's root.
        capture: gives what was printed since the last time.
    """

    root: Path
    capture: Callable[[], tuple[str, str]]

    def outcome(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command in this process: exit status, output, errors."""
        status = app.run(["--root", str(self.root), *arguments])
        return status, *self.capture()

    def __call__(self, *arguments: str) -> str:
        """The output of a command that succeeds and complains of nothing."""
        status, output, errors = self.outcome(*arguments)
        assert (status, errors) == (0, ""), f"{arguments}: {status} {errors}"
        return output

    def answers(self, status: int, *arguments: str) -> str:
        """The output of a command that ends with that status and complains of nothing."""
        got, output, errors = self.outcome(*arguments)
        assert (got, errors) == (status, ""), f"{arguments}: {got} {errors}"
        return output

    def json(self, *arguments: str) -> Any:
        """The document that a command prints."""
        return json.loads(self("--json", *arguments))

    def fails(self, status: int, *arguments: str) -> str:
        """The error of a command that ends with that status and prints nothing."""
        got, output, errors = self.outcome(*arguments)
        assert (got, output) == (status, ""), f"{arguments}: {got} {errors}"
        return errors

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Begin a command in a process of its own."""
        command = [sys.executable, "-m", "thinpool", "--root", str(self.root), *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **options)


@pytest.fixture
def empty(scratch: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    """The command line on a root where no store is."""
    capfd.readouterr()
    return Cli(scratch / "root", capfd.readouterr)


def make_store(root: Path) -> None:
    assert app.run(["--root", str(root), "-s", "devicemapper", *OPTIONS, *SMALL, "init"]) == 0


def end_store(root: Path, thin_check: Callable[[Path], None]) -> None:
    assert app.run(["--root", str(root), "down"]) == 0
    thin_check(root / "devicemapper" / "metadata")


@pytest.fixture
def cli(empty: Cli, thin_check: Callable[[Path], None]) -> Iterator[Cli]:
    """The command line on a small new store."""
    make_store(empty.root)
    empty.capture()
    yield empty
    end_store(empty.root, thin_check)


@pytest.fixture(scope="module")
def busybox_tar() -> Iterator[Path]:
    """A root file system that can run a shell."""
    with folder_in_memory() as folder:
        for name in ("bin", "etc", "proc", "dev", "tmp"):
            (folder / "tree" / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", folder / "tree/bin/busybox")
        for name in ("sh", "cat", "kill"):
            (folder / "tree/bin" / name).symlink_to("busybox")
        (folder / "tree/etc/motd").write_text("hello\n")
        archive = folder / "busybox.tar"
        subprocess.run(["tar", "-C", folder / "tree", "-cf", archive, "."], check=True)
        assert archive.stat().st_size > 1 << 19
        yield archive


@pytest.fixture(scope="module")
def shared_root(busybox_tar: Path) -> Iterator[Path]:
    """A store for the tests of a module, with the committed layer `base`: to make one takes longer than most tests."""
    with folder_in_memory() as folder:
        root = folder / "root"
        make_store(root)
        assert app.run(["--root", str(root), "import", "base", str(busybox_tar)]) == 0
        yield root
        assert app.run(["--root", str(root), "down"]) == 0


@pytest.fixture
def with_base(shared_root: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line on the shared store; what a test makes in it is removed."""
    capfd.readouterr()
    cli = Cli(shared_root, capfd.readouterr)
    yield cli
    with Store.open(shared_root) as store:
        names = [layer.name for layer in store.walk() if layer.name != "base"]
        for name in removal_order(store.walk(), names, recursive=False):
            store.remove(name)


@contextlib.contextmanager
def folder_in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("LAB_SCRATCH")) as name:
        yield Path(name)
