"""One comparison in a process of its own, for its peak memory: `python -m bench.differ ROOT NAME`."""

import resource
import sys

from thinpool import Store


def main() -> None:
    root, name = sys.argv[1:]
    with Store.open(root, create=False) as store:
        changes = store.changes(name, method="fast")
    print(len(changes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
