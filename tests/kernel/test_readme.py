"""What README.md shows works as it stands there."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.readme import example

pytestmark = pytest.mark.kernel


def test_the_python_example(scratch: Path) -> None:
    script = f"from pathlib import Path\nroot = Path({str(scratch / 'root')!r})\n{example('python')}"
    done = subprocess.run(["python", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A /hello\n/dev/dm-")
    assert (scratch / "root/layer.tar").stat().st_size > 0


def test_the_tour_of_the_shell(scratch: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("THINPOOL_")}
    script = f"set -eux\n{example('shell')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "A /hello\n" in done.stdout
    assert '"devicemapper"' in done.stdout
    begin = done.stdout.index('{"')
    assert json.JSONDecoder().raw_decode(done.stdout[begin:])[0]["layers"] == 3
