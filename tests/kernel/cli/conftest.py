import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from thinpool.cli import app

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


@pytest.fixture
def cli(empty: Cli, thin_check: Callable[[Path], None]) -> Iterator[Cli]:
    """The command line on a small new store."""
    status, _, errors = empty.outcome("-s", "devicemapper", *OPTIONS, *SMALL, "init")
    assert status == 0, errors
    yield empty
    assert app.run(["--root", str(empty.root), "down"]) == 0, empty.capture()[1]
    thin_check(empty.root / "devicemapper" / "metadata")


@pytest.fixture(scope="session")
def busybox_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that can run a shell."""
    folder = tmp_path_factory.mktemp("busybox")
    for name in ("bin", "etc", "proc", "dev", "tmp"):
        (folder / "tree" / name).mkdir(parents=True)
    (folder / "tree/bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (folder / "tree/bin/busybox").chmod(0o755)
    for name in ("sh", "cat", "kill", "sleep"):
        (folder / "tree/bin" / name).symlink_to("busybox")
    (folder / "tree/etc/motd").write_text("hello\n")
    archive = folder / "busybox.tar"
    subprocess.run(["tar", "-C", folder / "tree", "-cf", archive, "."], check=True)
    assert os.path.getsize(archive) > 1 << 19
    return archive


@pytest.fixture
def with_base(cli: Cli, busybox_tar: Path) -> Cli:
    """A store with the committed layer `base`."""
    cli("import", "base", str(busybox_tar))
    return cli
