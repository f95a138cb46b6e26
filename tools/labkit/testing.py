"""Run the tests in two parts, host and lab, and count them together.

What the lab was to run is collected on the host first, so that a test which got lost on the way is noticed.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_NO_TESTS = 5  # pytest's exit status
_TEST_SECONDS = 600
_LAB_SECONDS = 45 * 60
_LONG_FACTOR = 12
_MOST_LABS = 2
_LAB = ("tools/lab", "--disk", "8G", "--memory", "4G")
_IN_LAB = 'exec python -m pytest "$@" "--share=$LAB_OUT" "--outcomes=$LAB_OUT/$0"'


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
        ran = _part(kernel, *_in_labs(kernel, folder / "lab", [*limit, *arguments], factor), "in the lab", complaints)
        complaints += [f"skipped in the lab: {test}" for test, outcome in ran.items() if outcome == "skipped"]
        outcomes |= ran
    if not collected:
        complaints.append("no test is selected")
    return _summary(outcomes, complaints)


def _in_labs(tests: Sequence[str], out: Path, arguments: Sequence[str], factor: int) -> tuple[dict[str, str], int]:
    """Run the tests in as many labs at once as there are processors, up to two; what ran, and the worst status.

    Each lab takes one file of tests after the other, the second from the end; its output comes when all have ended.
    """
    files = {test.partition("::")[0] for test in tests}
    labs = min(_MOST_LABS, os.cpu_count() or 1, len(files))
    out.mkdir()
    commands = [
        [
            *_LAB,
            *("--out", str(out), "--timeout", str(_LAB_SECONDS * factor), "--", "sh", "-c", _IN_LAB),
            *(f"outcomes-{number}", "-p", "no:cacheprovider", "-m", "kernel"),
            *(("--last-first",) if number else ()),
            *arguments,
        ]
        for number in range(labs)
    ]
    statuses = _call_together(commands, out)
    ran: dict[str, str] = {}
    for number in range(labs):
        ran |= _read(out / f"outcomes-{number}")
    return ran, max(statuses)


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
    """Run a command in the checkout. Quiet shows output of failures only."""
    with tempfile.TemporaryFile() as output, _started(command, output if quiet else None) as process:
        process.wait()
        if process.returncode not in {0, _NO_TESTS}:
            _show(output)
    return process.returncode


def _call_together(commands: Sequence[Sequence[str]], folder: Path) -> list[int]:
    """Run commands at the same time; the output of all but the first comes at the end."""
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in commands[1:]]
        processes = [
            stack.enter_context(_started(command, output))
            for command, output in zip(commands, [None, *outputs], strict=True)
        ]
        statuses = [process.wait() for process in processes]
        for output in outputs:
            _show(output)
    return statuses


@contextlib.contextmanager
def _started(command: Sequence[str], output: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs in the checkout; a signal that ends us ends it first."""
    sys.stdout.flush()
    with subprocess.Popen(command, cwd=_CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
        try:
            yield process
        except KeyboardInterrupt as interrupt:
            if interrupt.args:  # a Ctrl-C has reached the child already; anything else it takes for one, and cleans up
                process.send_signal(signal.SIGINT)
            process.wait()
            raise


def _show(output: IO[bytes]) -> None:
    output.seek(0)
    sys.stdout.flush()
    shutil.copyfileobj(output, sys.stdout.buffer)
    sys.stdout.flush()


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
