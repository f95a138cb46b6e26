import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from thinpool.cli import app

Process = subprocess.CompletedProcess[bytes]
RunProcess = Callable[..., Process]


@pytest.fixture
def thinpool() -> RunProcess:
    """Run the command as a process."""

    def run(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Process:
        return subprocess.run(
            [sys.executable, "-m", "thinpool", *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            env={**os.environ, **(env or {})},
        )

    return run


Outcome = tuple[int, str, str]
RunHere = Callable[..., Outcome]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHere:
    """Run a command line in this process, against a root where no store is; (status, stdout, stderr)."""
    monkeypatch.setenv("THINPOOL_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("THINPOOL_DRIVER", raising=False)

    def run(*arguments: str) -> Outcome:
        status = app.run(arguments)
        output, errors = capsys.readouterr()
        return status, output, errors

    return run
