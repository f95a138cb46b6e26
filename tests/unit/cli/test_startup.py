import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    return set(done.stderr.split())


def test_the_version_is_told_without_importing_anything_heavy() -> None:
    """An import of its dependencies would take a multiple of the interpreter's own start."""
    loaded = modules_after("from thinpool.__main__ import main; sys.argv[1:] = ['--version']; main()")
    own = {name for name in loaded if name.split(".")[0] == "thinpool"}
    assert own == {"thinpool", "thinpool.__main__"}
    assert not loaded & {"click", "attrs", "attr", "rich", "logging", "sqlite3", "json"}


@pytest.mark.parametrize("arguments", [["ls", "--help"], ["device", "--help"], ["--help"]])
def test_help_needs_neither_the_store_nor_rich(arguments: list[str]) -> None:
    loaded = modules_after(f"from thinpool.__main__ import main; sys.argv[1:] = {arguments!r}; main()")
    assert not loaded & {"thinpool.store", "thinpool.dm", "rich", "sqlite3", "pyudev", "sh"}
