"""The leak check notices what a test leaves, names it, and takes it away."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

LEAKY = """
import os
import subprocess
import pytest

pytestmark = pytest.mark.kernel

def test_that_leaks(scratch, disk_factory):
    disk = disk_factory(64 << 20)
    subprocess.run(["dmsetup", "create", "leaked", "--table", f"0 131072 linear {disk} 0"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "/dev/mapper/leaked"], check=True)
    (scratch / "two words").mkdir()
    subprocess.run(["mount", "/dev/mapper/leaked", scratch / "two words"], check=True)
    os.open("/dev/mapper/leaked", os.O_RDONLY)
    subprocess.run("exec sleep 1000 &", shell=True, stdin=subprocess.DEVNULL)

def test_that_comes_after(scratch, disk_factory):
    disk_factory(1 << 20)
"""


def test_what_a_test_leaves_is_named_and_taken_away(scratch: Path) -> None:
    here = Path(__file__)
    (scratch / "below").mkdir()
    shutil.copy(here.parent.parent / "conftest.py", scratch)
    shutil.copy(here.parent / "conftest.py", scratch / "below")
    (scratch / "below" / "test_leaky.py").write_text(LEAKY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", here.parents[2] / "pyproject.toml", "--rootdir", scratch, scratch],
        check=False,
        cwd=scratch,
        env={**os.environ, "LAB_SCRATCH": str(scratch)},
        capture_output=True,
        text=True,
    )
    assert "2 passed, 1 error" in done.stdout, done.stdout
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("left behind: "))
    for leak in ("device-mapper device leaked", "loop device loop", "two words", "sleep 1000", "file descriptor"):
        assert leak in told
    assert sorted(each.name for each in scratch.iterdir() if each.name.startswith(("scratch-", "disk-"))) == []
