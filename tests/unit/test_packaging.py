"""What users install is what gets tested: the wheel and the sdist, each in a clean virtual environment."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
IMPORT_ALL = """
import importlib, pkgutil, thinpool
names = [info.name for info in pkgutil.walk_packages(thinpool.__path__, "thinpool.")]
for name in names:
    importlib.import_module(name)
print("\\n".join(names))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "thinpool"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (CHECKOUT / name).exists() or (CHECKOUT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name, follow_symlinks=False)
    # without --wheel, the wheel is built from the sdist: both arrangements of the sources are proven
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_clean_environment_runs_it(distributions: dict[str, Path], tmp_path: Path, kind: str) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(distributions[kind])]
    subprocess.run(install, check=True, cwd=tmp_path)
    modules = subprocess.run([python, "-c", IMPORT_ALL], check=True, cwd=tmp_path, capture_output=True, text=True)
    names = set(modules.stdout.split())
    assert {"thinpool.store", "thinpool.drivers.devicemapper", "thinpool.dm.control", "thinpool.cli"} <= names
    assert "drivers" not in names
    shown = subprocess.run(
        [environment / "bin/thinpool", "--json", "drivers"], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert [entry["name"] for entry in json.loads(shown.stdout)] == ["aufs", "btrfs", "devicemapper", "overlay"]
    outside = subprocess.run([python, "-c", "import drivers"], check=False, cwd=tmp_path, capture_output=True)
    assert outside.returncode != 0
