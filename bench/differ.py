"""One comparison in a process of its own, and the peak of its resident memory in KiB: rows, then the peak."""

import sys

from bench.ops import peak_resident
from thinpool import Store


def main(root: str, name: str) -> None:
    with Store.open(root, create=False) as store:
        changes = store.changes(name, method="fast")
    print(len(changes), peak_resident())


if __name__ == "__main__":
    main(*sys.argv[1:])
