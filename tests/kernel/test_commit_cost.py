"""What a commit asks of the kernel, counted by strace(1): the fsyncs, the ioctls, and all that is done in the hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

SCRIPT = """
import os, sys
from contextlib import suppress
from thinpool import Store

def mark(text):
    with suppress(OSError):
        os.stat(f"/mark/{text}")

options = {"dm.loopdatasize": "2G", "dm.loopmetadatasize": "64M", "dm.basesize": "256M"}
with Store.open(sys.argv[1], "devicemapper", options) as store:
    for turn in ("first", "again"):
        store.prepare("rest")
        mark(f"rest {turn}")
        store.commit(f"rest-{turn}", "rest")
        mark("")
    store.prepare("work")
    with store.mount("work") as root:
        for turn in ("first", "again"):
            (root / turn).write_text(turn)
            mark(f"checkpoint {turn}")
            store.checkpoint(f"point-{turn}", "work")
            mark("")
        (root / "last").write_text("last")
        mark("commit again")
        store.commit("done", "work")
        mark("")
    store.down()
"""
SYNCS = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync")


def traced(folder: Path) -> dict[str, list[str]]:
    """The system calls of the process, by operation, one a line."""
    log = folder / "trace"
    words = ["strace", "-f", "-o", str(log), sys.executable, "-c", SCRIPT, str(folder / "root")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, list[str]] = {}
    current: list[str] = []
    ours = ""
    for line in log.read_text(errors="replace").splitlines():
        pid, call = line.split(maxsplit=1)
        ours = ours or pid
        marked = re.search(r'"/mark/(.*?)"', call)
        if pid != ours or call.startswith("<..."):
            continue
        if marked:
            current = found.setdefault(marked[1], [])
        else:
            current.append(call)
    return found


def named(calls: list[str], *names: str) -> list[str]:
    """The calls of those names, and for ioctls which they are."""
    found = []
    for call in calls:
        name = call.partition("(")[0]
        if name in names:
            found.append(re.findall(r"\bDM_[A-Z_]+", call)[0] if name == "ioctl" and "DM_" in call else name)
    return found


def test_what_each_commit_costs(scratch: Path) -> None:
    calls = traced(scratch)
    for turn in ("first", "again"):
        rest = calls[f"rest {turn}"]
        assert named(rest, *SYNCS) == ["fdatasync"]
        assert set(named(rest, "ioctl")) == {"DM_DEV_STATUS"}
    for operation, ioctls in (("checkpoint first", 8), ("checkpoint again", 8), ("commit again", 10)):
        live = calls[operation]
        assert named(live, *SYNCS) == ["syncfs", "fdatasync"]
        assert len([name for name in named(live, "ioctl") if name.startswith("DM_")]) <= ioctls
        first, last = [at for at, call in enumerate(live) if "DM_DEV_SUSPEND" in call]
        held = [call for call in live[first : last + 1] if not call.startswith(("clock_gettime", "futex"))]
        assert named(held, "ioctl") == ["DM_DEV_SUSPEND", "DM_TARGET_MSG", "DM_DEV_SUSPEND"]
        assert len(held) == 3, held
    for operation in ("checkpoint again", "commit again"):
        assert named(calls[operation], "clone", "clone3", "fork", "vfork", "execve") == []
