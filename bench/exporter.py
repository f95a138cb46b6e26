"""Export one layer in a process of its own, and print the peak of its resident memory in KiB."""

import sys

from bench.ops import peak_resident
from thinpool import Store


def main(root: str, name: str, archive: str) -> None:
    with Store.open(root) as store, open(archive, "wb") as file:
        store.export_layer(name, file)
    print(peak_resident())


if __name__ == "__main__":
    main(*sys.argv[1:])
