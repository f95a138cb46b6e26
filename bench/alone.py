"""One operation of a store in a process of its own, and the peak of its resident memory: `alone.peak`."""

import subprocess
import sys
from pathlib import Path

from thinpool import Store


def peak(operation: str, root: Path, layer: str, archive: Path | None = None) -> int:
    """Carry out an operation (`export`, `import` or `diff`) in a new process: its largest resident size, in KiB."""
    command = [sys.executable, "-m", "bench.alone", operation, str(root), layer]
    if archive is not None:
        command.append(str(archive))
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _carry_out(operation: str, root: str, layer: str, archive: str = "") -> None:
    with Store.open(root, create=False) as store:
        if operation == "export":
            with open(archive, "wb") as file:
                store.export_layer(layer, file)
        elif operation == "import":
            with open(archive, "rb") as file:
                store.import_layer(layer, file)
        else:
            store.changes(layer, method="fast")


def _peak_resident() -> int:
    """Of this program alone; what getrusage(2) tells is inherited by a new one (`hiwater_rss`, fs/exec.c)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _carry_out(*sys.argv[1:])
    print(_peak_resident())
