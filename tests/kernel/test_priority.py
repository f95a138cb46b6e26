"""Work in the background on the real kernel: in force for the thread or process, for what it starts, and no longer."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import thinpool
from tests.kernel.cli.conftest import Cli
from tests.kernel.pool.tools import run
from tests.kernel.test_store import archive
from thinpool import Store
from thinpool.errors import ConfigError

pytestmark = pytest.mark.kernel


def ioprio() -> str:
    """What ionice(1) says of the calling thread."""
    return run("ionice", "--pid", str(threading.get_native_id())).strip()


def groups() -> list[str]:
    return [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]


@pytest.fixture
def group(scratch: Path) -> Iterator[Path]:
    """A control group with the io controller."""
    top = scratch / "cgroup"
    top.mkdir()
    run("mount", "-t", "cgroup2", "none", top)
    try:
        (top / "cgroup.subtree_control").write_text("+io +memory")
        made = top / "thinpool-test"
        made.mkdir()
        yield made
        made.rmdir()
    finally:
        run("umount", top)


class Noting(io.BytesIO):
    """An archive that notes what its reader's priority and group are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.seen: set[tuple[str, str]] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.seen.add((ioprio(), groups()[0]))
        return super().read(size)


def test_a_thread_and_what_it_starts(group: Path) -> None:
    before, at_home = ioprio(), groups()
    found: list[str] = []
    with thinpool.background(ioprio="idle", cgroup=group):
        thread = threading.Thread(target=lambda: found.append(ioprio()))
        thread.start()
        thread.join()
        assert [ioprio(), *found] == ["idle", "idle"]
        assert groups() == ["/thinpool-test"]
        assert "idle" in subprocess.run(["ionice"], check=True, capture_output=True, text=True).stdout
    assert (ioprio(), groups()) == (before, at_home)
    with pytest.raises(ZeroDivisionError), thinpool.background(ioprio="best-effort:7", cgroup=group):
        assert ioprio() == "best-effort: prio 7"
        raise ZeroDivisionError
    assert (ioprio(), groups()) == (before, at_home)


def test_a_group_that_is_not_there(group: Path) -> None:
    before = ioprio()
    with (
        pytest.raises(ConfigError, match="no control group of version 2"),
        thinpool.background(ioprio="idle", cgroup=group / "missing"),
    ):
        raise AssertionError
    assert ioprio() == before


def test_an_import_and_an_export(store: Store, group: Path) -> None:
    source = Noting(archive({"f": os.urandom(1 << 20)}).getvalue())
    with thinpool.background(ioprio="idle", cgroup=group):
        store.import_layer("base", source)
        store.export_layer("base", io.BytesIO())
        list(store.changes("base"))
    assert source.seen == {("idle", "/thinpool-test")}
    assert "idle" not in ioprio()


def test_the_commands(store: Store, group: Path, scratch: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cli = Cli(store.root, capfd.readouterr)
    capfd.readouterr()
    tar = archive({"f": b"text"}).getvalue()
    script = "import sys; from thinpool.cli import app; sys.exit(app.run(sys.argv[1:]))"
    words = ["--root", str(store.root), "import", "base", "--ioprio", "best-effort:6", "--cgroup", str(group)]
    with subprocess.Popen([sys.executable, "-c", script, *words], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(tar[:600])
        process.stdin.flush()
        while not (group / "cgroup.procs").read_text():
            assert process.poll() is None
        assert str(process.pid) in (group / "cgroup.procs").read_text().split()
        assert run("ionice", "--pid", str(process.pid)).strip() == "best-effort: prio 6"
        process.stdin.write(tar[600:])
    assert process.returncode == 0
    assert cli("diff", "base", "--ioprio", "idle", "--cgroup", str(group)) == "A /f\n"
    assert cli("export", "base", "--ioprio", "idle", "-o", str(scratch / "out.tar")) == ""
    assert "idle" not in ioprio()
    assert "accepted are idle, best-effort" in cli.fails(2, "diff", "base", "--ioprio", "highest")
    assert "no control group" in cli.fails(2, "export", "base", "--cgroup", str(scratch), "-o", str(scratch / "more"))
