"""For all tests: the `kernel` marker, the long run, and outcomes that a machine can read.

A test marked `kernel` needs root and device-mapper (`kernel(device_mapper=False)`: root alone). Where either is missing
it fails: it is never skipped, so that a run which lacks them cannot pass for a good one. `-m "not kernel"` deselects
those tests on an ordinary host.
"""

import hashlib
import itertools
import json
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

_OUTCOMES = pytest.StashKey["_Outcomes"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("thinpool")
    group.addoption(
        "--long",
        action="store_true",
        default=os.environ.get("THINPOOL_TEST_LONG") == "1",
        help="search longer for counterexamples (also THINPOOL_TEST_LONG=1)",
    )
    group.addoption(
        "--outcomes", metavar="FILE", help="write one JSON line a test: its id and passed, failed or skipped"
    )
    group.addoption(
        "--share", metavar="DIR", help="run only test files that no other run with the same folder has taken"
    )
    group.addoption("--last-first", action="store_true", help="with --share: take the files from the end")


def pytest_configure(config: pytest.Config) -> None:
    for signum in (signal.SIGINT, signal.SIGQUIT):  # a shell lets what it runs in the background ignore them
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    # no deadline: how long an example takes says nothing about the code on a shared machine or in the lab
    hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
    hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=2000)
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "default")
    if config.getoption("--long"):
        os.environ["THINPOOL_TEST_LONG"] = "1"  # for what is decided when test modules are imported
    if file := config.getoption("--outcomes"):
        config.stash[_OUTCOMES] = outcomes = _Outcomes(Path(file))
        config.pluginmanager.register(outcomes, "outcomes")
    if folder := config.getoption("--share"):
        config.pluginmanager.register(_Share(Path(folder), from_end=config.getoption("--last-first")), "share")


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("kernel")
    if marker is not None and (lack := _lack(device_mapper=marker.kwargs.get("device_mapper", True))):
        pytest.fail(
            f"{lack}: run `tools/test` or `tools/lab -- python -m pytest`; this test is not skipped", pytrace=False
        )


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """True when --long asks for a thorough run."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def _private_environment() -> Iterator[None]:
    """Keep the settings of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("THINPOOL_ROOT", "THINPOOL_DRIVER"):
            patch.delenv(name, raising=False)
        yield


def _lack(*, device_mapper: bool) -> str | None:
    if os.geteuid() != 0:
        return "not root"
    if not device_mapper:
        return None
    try:
        misc = Path("/proc/misc").read_text(encoding="ascii")
    except OSError as error:
        return f"/proc/misc: {error.strerror}"
    return None if "device-mapper" in misc.split() else "this kernel has no device-mapper"


class _Share:
    """Runs the test files that no other run has taken, so that several labs finish together."""

    def __init__(self, folder: Path, *, from_end: bool) -> None:
        self._folder = folder
        self._from_end = from_end

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed or session.config.option.collectonly:
            return None
        mine = self._mine(session.items)
        item = next(mine, None)
        while item is not None:
            following = next(mine, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _mine(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        files = [(path, list(group)) for path, group in itertools.groupby(items, key=lambda item: item.path)]
        for path, group in reversed(files) if self._from_end else files:
            try:
                (self._folder / hashlib.sha256(bytes(path)).hexdigest()).open("x").close()
            except FileExistsError:
                continue
            yield from group


class _Outcomes:
    """Writes each test's outcome as soon as it is known, so that the file tells how far a run that died came."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._file.write_text("", encoding="utf-8")
        self._worst: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items if session.config.option.collectonly else ():
            self._write(item.nodeid, "kernel" if item.get_closest_marker("kernel") is not None else "host")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        yield
        before = self._worst.get(report.nodeid, "passed")
        self._worst[report.nodeid] = "failed" if "failed" in {before, report.outcome} else max(before, report.outcome)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(nodeid, self._worst.pop(nodeid, "failed"))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._write(report.nodeid, report.outcome)

    def _write(self, nodeid: str, outcome: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"test": nodeid, "outcome": outcome}) + "\n")
