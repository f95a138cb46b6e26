"""`python -m bench NAME`: run a benchmark and hold its figures against their targets."""

import argparse
import shutil
import sys

from bench import diff, layers, ops
from bench.measure import report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "name",
        choices=["ops", "layers", "diff"],
        help="ops: the operations of a store; layers: what is in them; diff: comparisons",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=50, help="rounds for short operations (default: 50)")
    arguments = parser.parse_args()
    scratch = ops.scratch_directory()
    try:
        rows = {"ops": ops, "layers": layers, "diff": diff}[arguments.name].run(scratch, arguments.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report(rows, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
