"""tools/test counts honestly: what failed, was skipped, got lost on the way to the lab or died with it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import CHECKOUT

SAMPLE = """
import os
import pytest

def test_on_the_host(): pass

@pytest.mark.kernel
def test_that_passes(): assert "LAB_KERNEL" in os.environ

@pytest.mark.kernel
def test_that_fails(): assert False

@pytest.mark.kernel
def test_that_is_skipped(): pytest.skip("no reason")

if "LAB_KERNEL" not in os.environ:
    @pytest.mark.kernel
    def test_that_gets_lost(): pass

@pytest.mark.kernel
def test_that_ends_the_lab():
    if "LAB_KERNEL" in os.environ:
        os.system("busybox poweroff -n -f")
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_sample.py").write_text(SAMPLE, encoding="utf-8")
    return tmp_path


def run(sample: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "tools/labkit/testing.py", "-c", "pyproject.toml", "--rootdir", sample, sample, *arguments],
        cwd=CHECKOUT,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


def test_both_parts_are_counted_together(sample: Path) -> None:
    status, lines = run(sample)
    assert status == 1
    assert lines[-1] == "2 passed, 3 failed, 1 skipped"
    assert "tools/test: did not run in the lab: test_sample.py::test_that_gets_lost" in lines
    assert "tools/test: did not run in the lab: test_sample.py::test_that_ends_the_lab" in lines
    assert "tools/test: skipped in the lab: test_sample.py::test_that_is_skipped" in lines
    assert "FAILED test_sample.py::test_that_fails" in lines


def test_labs_share_the_files_and_run_each_test_once(sample: Path) -> None:
    (sample / "test_sample.py").unlink()
    for number in range(4):
        text = (
            f"import pytest\n@pytest.mark.kernel\n@pytest.mark.parametrize('n', [1, 2])\ndef test_{number}(n): pass\n"
        )
        (sample / f"test_{number}.py").write_text(text, encoding="utf-8")
    status, lines = run(sample)
    assert (status, lines[-1]) == (0, "8 passed, 0 failed")
    counts = [int(found[1]) for line in lines if (found := re.match("=+ .*?([0-9]+) passed", line))]
    assert sum(counts) == 8


def test_a_selection_runs_only_its_part(sample: Path) -> None:
    assert run(sample, "-k", "host")[1][-1] == "1 passed, 0 failed"


def test_a_kernel_test_on_the_host_fails_and_is_not_skipped(sample: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--rootdir", sample, sample, "-k", "passes"],
        cwd=CHECKOUT,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 1
    assert "1 error" in done.stdout


def test_nothing_selected_is_a_failure(sample: Path) -> None:
    status, lines = run(sample, "-k", "no_such_test")
    assert (status, lines[-1]) == (1, "0 passed, 0 failed")


def test_what_cannot_be_collected_is_a_failure(sample: Path) -> None:
    (sample / "test_broken.py").write_text("import no_such_module", encoding="utf-8")
    status, lines = run(sample)
    assert (status, lines[-1]) == (1, "0 passed, 1 failed")
    assert any("no_such_module" in line for line in lines)


@pytest.mark.parametrize("asked", ["option", "environment"])
def test_a_long_run_is_long_on_the_host_and_in_the_lab(
    sample: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import os\nimport pytest\nLONG = os.environ.get('THINPOOL_TEST_LONG')\n"
        "def test_host(long_run): assert LONG == '1' and long_run\n"
        "@pytest.mark.kernel\ndef test_lab(long_run): assert LONG == '1' and long_run\n"
    )
    (sample / "test_sample.py").write_text(text, encoding="utf-8")
    if asked == "environment":
        monkeypatch.setenv("THINPOOL_TEST_LONG", "1")
    status, lines = run(sample, *(["--long"] if asked == "option" else []))
    assert (status, lines[-1]) == (0, "2 passed, 0 failed")
