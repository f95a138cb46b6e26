"""Compare one layer with its parent in a process of its own, and print the peak of its resident memory in KiB."""

import sys
from pathlib import Path

from thinpool import Store


def main(root: str, name: str) -> None:
    with Store.open(root) as store:
        store.changes(name)
    print(_peak_kib())


def _peak_kib() -> int:
    """Of this program alone: what getrusage(2) tells counts also what was resident before it was executed."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
