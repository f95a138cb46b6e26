"""Run the tests in two parts, host and lab, and count them together.

What the lab was to run is collected on the host first, so that a test which got lost on the way is noticed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_NO_TESTS = 5  # pytest's exit status
_TEST_SECONDS = 600
_LAB_SECONDS = 45 * 60
_LONG_FACTOR = 12
_LAB = ("tools/lab", "--disk", "8G", "--memory", "4G")
_IN_LAB = 'exec python -m pytest "$@" --outcomes "$LAB_OUT/outcomes"'


def main(arguments: Sequence[str]) -> int:
    """Run the tests that the arguments select; gives back the exit status."""
    for argument in arguments:
        if argument.startswith("-m") and not argument.startswith("--"):
            print("tools/test: -m is what keeps the two parts apart; select by file or -k", file=sys.stderr)
            return 2
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="thinpool-test-") as folder:
            return _run_all(list(arguments), Path(folder))
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _run_all(arguments: list[str], folder: Path) -> int:
    factor = _LONG_FACTOR if "--long" in arguments or os.environ.get("THINPOOL_TEST_LONG") == "1" else 1
    listing = folder / "collected"
    collecting = _call(
        [*_pytest(), "--collect-only", "--quiet", "--quiet", "--outcomes", str(listing), *arguments], quiet=True
    )
    collected = _read(listing)
    if collecting not in {0, _NO_TESTS}:
        # shown by pytest itself: the run would only repeat what cannot be collected
        print(f"tools/test: the tests cannot be collected (pytest ended with status {collecting})")
        print("0 passed, 1 failed")
        return 1
    host = [test for test, where in collected.items() if where == "host"]
    kernel = [test for test, where in collected.items() if where == "kernel"]
    limit = ["-o", f"timeout={_TEST_SECONDS * factor}"]
    outcomes: dict[str, str] = {}
    complaints: list[str] = []
    if host:
        file = folder / "host"
        status = _call([*_pytest(), "-m", "not kernel", *limit, "--outcomes", str(file), *arguments])
        outcomes |= _part(host, _read(file), status, "on the host", complaints)
    if kernel:
        out = folder / "lab"
        lab = [
            "tools/lab",
            "--disk",
            "8G",
            "--memory",
            "4G",
            "--out",
            str(out),
            "--timeout",
            str(_LAB_SECONDS * factor),
        ]
        pytest = ["sh", "-c", _IN_LAB, "pytest", "-p", "no:cacheprovider", "-m", "kernel", *limit, *arguments]
        status = _call([*lab, "--", *pytest])
        ran = _part(kernel, _read(out / "outcomes"), status, "in the lab", complaints)
        complaints += [f"skipped in the lab: {test}" for test, outcome in ran.items() if outcome == "skipped"]
        outcomes |= ran
    if not collected:
        complaints.append("no test is selected")
    return _summary(outcomes, complaints)


def _part(
    expected: Iterable[str], ran: Mapping[str, str], status: int, where: str, complaints: list[str]
) -> dict[str, str]:
    """Outcomes of one part, with what did not run counted as failed and said."""
    result = {test: outcome for test, outcome in ran.items() if outcome in {"passed", "failed", "skipped"}}
    for test in expected:
        if test not in result:
            complaints.append(f"did not run {where}: {test}")
            result[test] = "failed"
    if status and "failed" not in result.values():
        complaints.append(f"the tests {where} ended with status {status}")
    return result


def _summary(outcomes: Mapping[str, str], complaints: Sequence[str]) -> int:
    counts = Counter(outcomes.values())
    print()
    for test, outcome in outcomes.items():
        if outcome == "failed":
            print(f"FAILED {test}")
    for complaint in complaints:
        print(f"tools/test: {complaint}")
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {counts['failed']} failed{skipped}", flush=True)
    return 1 if counts["failed"] or complaints else 0


def _read(file: Path) -> dict[str, str]:
    """The last word on each test, from what tests/conftest.py wrote with --outcomes."""
    if not file.exists():
        return {}
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["test"]: line["outcome"] for line in lines}


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest"]


def _call(command: Sequence[str], *, quiet: bool = False) -> int:
    """Run a command in the checkout; a signal that ends us ends it first. Quiet shows output of failures only."""
    sys.stdout.flush()
    output = subprocess.PIPE if quiet else None
    with subprocess.Popen(command, cwd=_CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, text=True) as process:
        try:
            text, _ = process.communicate()
        except KeyboardInterrupt as interrupt:
            if interrupt.args:  # a Ctrl-C has reached the child already; anything else it takes for one, and cleans up
                process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if text and process.returncode not in {0, _NO_TESTS}:
        print(text, end="")
    return process.returncode


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
