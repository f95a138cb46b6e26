"""The linter, the formatter and the type checker are tests like any other."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("tools/lab",)  # Python without the suffix that the tools look for


def check(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_linter_finds_nothing() -> None:
    check("ruff", "check", "--quiet", ".", *SCRIPTS)


def test_the_formatter_would_change_nothing() -> None:
    check("ruff", "format", "--quiet", "--diff", ".", *SCRIPTS)


def test_the_types_of_the_project_are_right() -> None:
    check("mypy")


def test_the_types_of_the_lab_are_right() -> None:
    check("mypy", "--strict", "tools/labkit")
