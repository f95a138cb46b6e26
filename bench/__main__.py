"""`python -m bench NAME`: run a benchmark and hold its figures against their targets."""

import argparse
import shutil
import sys
from pathlib import Path

from bench import diff, layers, ops
from bench.latency import cli
from bench.measure import report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    tables = {"ops": "the operations of a store", "layers": "what is in layers", "diff": "comparisons of two layers"}
    for name, what in tables.items():
        chosen = names.add_parser(name, help=what)
        chosen.add_argument("--json", action="store_true", help="print one JSON document")
        chosen.add_argument("--rounds", type=int, default=50, help="rounds for short operations (default: 50)")
    latency = names.add_parser("commit-latency", help="commits against docker, containerd and tools, on a slow disk")
    cli.add_arguments(latency)
    again = names.add_parser("report", help="tables and page of what commit-latency has measured")
    again.add_argument("results", type=Path)
    again.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.name == "commit-latency":
        return cli.measure(options)
    if options.name == "report":
        return cli.report(options.results, options.page)
    scratch = ops.scratch_directory()
    try:
        rows = {"ops": ops, "layers": layers, "diff": diff}[options.name].run(scratch, options.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report(rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
