"""Every operation killed at every point that it passes, and every recovery after that at every point of its own.

The store is then opened anew, and compared with a plain model: what was acknowledged is there, what was not is wholly
there or not at all, nothing is left behind, and the next operations of every kind work.
"""

import io
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest

from tests.kernel.conformance.drivers import DRIVERS, opened, quota_ext4
from tests.kernel.conformance.layers import end_guard, told
from tests.kernel.conftest import LeakCheck, Resources
from tests.kernel.crashes.engine import (
    Model,
    in_child,
    killed,
    left_behind,
    observed,
    passages,
    traced,
    unmount_everything,
)
from tests.kernel.crashes.scenarios import ALL, LOOKS, SCENARIOS, Place, Scenario, archive, make_base
from thinpool import Kind, Store
from thinpool.crashpoints import VARIABLE, declared, point
from thinpool.drivers.base import Growable
from thinpool.drivers.devicemapper import Devicemapper

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

_OWN = {"records-write", "records-written", "thin-made", "subvolume-made", "branch-kept"}


_HANDLES = 64


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each scenario with the drivers that it is for."""
    if "scenario" in metafunc.fixturenames:
        pairs = [(name, scenario) for name in sorted(ALL) for scenario in SCENARIOS if name in scenario.drivers]
        ids = [f"{name}-{scenario.name}" for name, scenario in pairs]
        metafunc.parametrize(("driver_name", "scenario"), pairs, ids=ids)
    if "crashed" in metafunc.fixturenames:
        crashes = [
            (name, (scenario, death))
            for name, deaths in RECOVERED.items()
            for scenario in SCENARIOS
            if (death := deaths.get(scenario.name))
        ]
        ids = [f"{name}-{scenario.name}-{death}" for name, (scenario, death) in crashes]
        metafunc.parametrize(("driver_name", "crashed"), crashes, ids=ids)


@pytest.fixture(scope="session")
def passed() -> set[str]:
    """The points that were passed until now."""
    return set()


@pytest.fixture(scope="module")
def killings(passed: set[str], pytestconfig: pytest.Config) -> Iterator["Callable[[str], Killing]"]:
    """For each driver, a store with one layer, made when it is asked for first and used by all scenarios."""
    before = LeakCheck(Resources.now())
    known: dict[str, Killing] = {}
    thorough = bool(pytestconfig.getoption("--long"))
    with ExitStack() as undo:

        def find(name: str) -> Killing:
            if name not in known:
                known[name] = Killing(undo.enter_context(made(name, passed)), thorough)
            return known[name]

        yield find
    assert before.settled().describe() == []


@contextmanager
def made(name: str, passed: set[str]) -> Iterator[Place]:
    """A store of a driver, with one layer."""
    [driver] = [driver for driver in DRIVERS if driver.name == name]
    if name == "overlay":
        driver = attrs.evolve(driver, place=quota_ext4)
    with ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="crash-", dir=os.environ.get("LAB_SCRATCH")))
        point.watch(passed.add)
        try:
            store = undo.enter_context(opened(driver))
            make_base(store)
        finally:
            point.watch(None)
        undo.callback(end_guard, store)
        yield Place(store, Path(folder))


@pytest.fixture
def killing(driver_name: str, killings: Callable[[str], "Killing"], leak_check: LeakCheck) -> Iterator["Killing"]:
    """What is killed, and where; what is there for all scenarios is no leak of one."""
    found = killings(driver_name)
    leak_check.before = Resources.now()
    yield found
    now = Resources.now()  # what is brought down and up again has other numbers; `left_behind` looks at what is there
    leak_check.before = attrs.evolve(leak_check.before, loops=now.loops, devices=now.devices)


def clear(store: Store) -> None:
    """Take everything away but the base."""
    left = {layer.name: layer.parent for layer in store.walk() if layer.name != "base"}
    while left:
        for name in set(left).difference(left.values()):
            store.remove(name)
            del left[name]
    if store.stat("base").labels:
        store.update_labels("base", {})


def _write(store: Store) -> None:
    with store.mount("next") as root:
        (root / "next").write_text("next")
    assert ("A", "/next") in told(store.changes("next"))


def _checkpoint(store: Store) -> None:
    with store.mount("next"):
        store.checkpoint("next.point", "next")
    store.remove("next.point")


def _commit(store: Store) -> None:
    store.prepare("next.work", "base")
    store.commit("next.done", "next.work")
    store.view("next.view", "next.done")
    store.remove("next.view")
    store.remove("next.done")


def _carry(store: Store) -> None:
    out = io.BytesIO()
    store.export_layer("base", out, "next")
    store.import_layer("next.tar", io.BytesIO(archive("next")), parent="base")
    store.remove("next.tar")


def _look(store: Store) -> None:
    store.update_labels("next", {"next": "next"})
    assert store.usage("next").referenced
    if isinstance(store._session.driver, Growable):
        data, metadata = ((store.root / "devicemapper" / name).stat().st_size for name in ("data", "metadata"))
        store.grow(data=data, metadata=metadata)


Next = Callable[[Store], None]
NEXT: tuple[Next, ...] = (_write, _checkpoint, _commit, _carry, _look)


def what_follows_works(store: Store, kinds: Iterable[Next]) -> None:
    """Make and remove a layer, with operations of some kinds in between."""
    store.prepare("next", "base")
    for kind in kinds:
        kind(store)
    store.remove("next")


def problems(store: Store, accepted: list[Model], kinds: Iterable[Next]) -> Iterator[str]:
    """What is wrong with a store that somebody died over."""
    store._session.ready()
    found = observed(store)
    if found not in accepted:
        yield f"{found}\n    is none of\n    " + "\n    ".join(map(str, accepted))
    unmount_everything(store)
    store.up()
    yield from left_behind(store)
    what_follows_works(store, kinds)
    yield from left_behind(store)


@attrs.define
class Killing:
    """Scenarios at one place.

    Attributes:
        place: the place.
        thorough: kill at every passage, and try all that may follow after each; else what is new in an operation, and
            one kind after the other.
    """

    place: Place
    thorough: bool
    _turn: int = 0
    _known: set[tuple[str, ...]] = attrs.field(factory=set)

    def trace(self, scenario: Scenario) -> list[str]:
        """Play it once to its end, and see that it did what the model says: the points that it passes."""
        self._begin()
        before = scenario.before(self.place)
        names = traced(partial(scenario.act, self.place))
        found = list(self.judge(scenario, [scenario.after(before)], NEXT))
        assert not found, "\n".join(found)
        return names

    def judge(self, scenario: Scenario, accepted: list[Model], kinds: Iterable[Next]) -> Iterator[str]:
        """Open the store anew, say what is wrong with it, and clear it."""
        try:
            with Store.open(self.place.store.root) as store:
                try:
                    yield from problems(store, accepted, kinds)
                    scenario.check(self.place)
                    clear(store)
                finally:
                    end_guard(store)
        except Exception as error:  # noqa: BLE001 - told with all the others
            yield "".join(traceback.format_exception(error)[-4:])
            self.rescue()

    def kill(self, scenario: Scenario, *deaths: tuple[str, int]) -> Iterator[str]:
        """Kill it at one passage, and the recovery after that at others, if any: what is wrong then."""
        self._begin()
        before = scenario.before(self.place)
        try:
            work: Callable[[], object] = partial(scenario.act, self.place)
            for number, (name, passage) in enumerate(deaths):
                # a second recovery has less to do, and may come to its end
                killed(work, name, passage, may_end=number > 1)
                work = self.recover
        except AssertionError as error:
            yield f"{scenario.name}: {error}"
            self.rescue()
            return
        accepted = [before, scenario.after(before), *scenario.between(before)]
        for problem in self.judge(scenario, accepted, self._kinds()):
            shown = ", then ".join(f"{name}:{passage}" for name, passage in deaths)
            yield f"{scenario.name} killed at {shown}: {problem}"

    def traced_recovery(self, scenario: Scenario, death: tuple[str, int]) -> list[str]:
        """Kill it, and let the recovery come to its end: the points that that passes."""
        self._begin()
        before = scenario.before(self.place)
        killed(partial(scenario.act, self.place), *death)
        names = traced(self.recover)
        found = list(self.judge(scenario, [before, scenario.after(before), *scenario.between(before)], NEXT))
        assert not found, "\n".join(found)
        return names

    def _begin(self) -> None:
        """See to it that no range of handles ends where none is expected to."""
        state = self.place.store._session.state
        state.put("reserved_handle", str(int(state.get("next_handle") or 0) + _HANDLES))

    def rescue(self) -> None:
        """Go on after a failure."""
        with Store.open(self.place.store.root) as store:
            store.up()
            unmount_everything(store)
            clear(store)

    def recover(self) -> None:
        """What whoever opens the store next does."""
        with Store.open(self.place.store.root) as store:
            store.up()

    def _kinds(self) -> Iterable[Next]:
        if self.thorough:
            return NEXT
        self._turn += 1
        return [NEXT[self._turn % len(NEXT)]]

    def chosen(self, scenario: Scenario, names: list[str]) -> list[tuple[str, int]]:
        """The passages to kill at; in a short run those where an operation does something that none did before.

        That is every passage right after another where nothing was killed yet; the making and the naming of storage
        count for each operation by itself.
        """
        found = passages(names)
        if self.thorough:
            return found
        new = []
        for index, (name, passage) in enumerate(found):
            own = scenario.name if name in _OWN else ""
            context = (own, *names[max(0, index - 1) : index + 1])
            if context not in self._known:
                self._known.add(context)
                new.append((name, passage))
        return new


def test_killed_at_every_point(
    killing: Killing, scenario: Scenario, passed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = killing.trace(scenario)
    passed.update(names)
    chosen = killing.chosen(scenario, names)
    with capsys.disabled():
        sys.stdout.write(f"\n{killing.place.store.driver} {scenario.name} {len(chosen)}: {' '.join(names)}\n")
    found = [problem for death in chosen for problem in killing.kill(scenario, death)]
    assert not found, "\n".join(found)


# -- recovery

RECOVERED = {
    "devicemapper": {
        "prepare-larger": "file-system-grown",
        "import": "archive-unpacked",
        "commit-mounted": "hold-begun",
        "remove": "thin-delete",
        "usage-pinned": "snapshot-reserved",
        "mount": "mount-directory-made",
        "grow": "table-suspended",
        "up": "device-loaded",
    },
    "overlay": {"import": "archive-unpacked", "prepare-deep": "press-synced", "mount": "mount-directory-made"},
    "btrfs": {"import": "archive-unpacked", "usage": "passing-made", "commit-mounted": "subvolume-made"},
}
"""Where a scenario is killed for a recovery with much to do."""


def test_recovery_killed_at_every_point(killing: Killing, crashed: tuple[Scenario, str], passed: set[str]) -> None:
    scenario, name = crashed
    death = (name, 1)
    names = killing.traced_recovery(scenario, death)
    passed.update(names)
    chosen = killing.chosen(scenario, names)
    found = [problem for second in chosen for problem in killing.kill(scenario, death, second)]
    if names:
        found += killing.kill(scenario, death, (names[0], 1), (names[-1], names.count(names[-1])))
        found += killing.kill(scenario, death, (names[-1], names.count(names[-1])), (names[0], 1))
    assert not found, "\n".join(found)


def test_a_device_is_resumed_where_the_guard_was_killed_too(store: Store, passed: set[str]) -> None:
    driver = store._session.driver
    assert isinstance(driver, Devicemapper)
    store.prepare("work")

    def kill_both(name: str) -> None:
        if name == "hold-begun":
            guard = driver._thins.holder.guard.pid
            assert guard is not None
            os.kill(guard, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def die() -> None:
        point.watch(kill_both)
        store.checkpoint("done", "work")

    def recover() -> None:
        with Store.open(store.root) as again:
            again.up()

    with store.mount("work") as root:
        assert in_child(die) == -signal.SIGKILL
        names = traced(recover)
        passed.update(names)
        assert "hold-resumed" in names
        (root / "f").write_text("f")
    assert [layer.name for layer in store.walk()] == ["work"]


def command(store: Store, at: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "thinpool", "--root", store.root, *arguments],
        env={**os.environ, VARIABLE: at},
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_command_dies_where_its_environment_says(store: Store) -> None:
    assert command(store, "records-write:1", "prepare", "work").returncode == -signal.SIGKILL
    with Store.open(store.root) as again:
        assert list(again.walk()) == []
        again.prepare("other")
        assert left_behind(again) == []
    assert command(store, "records-written:1", "prepare", "work").returncode == -signal.SIGKILL
    assert {(layer.name, layer.kind) for layer in store.walk()} == {("work", Kind.ACTIVE), ("other", Kind.ACTIVE)}
    wrong = command(store, "records-rewritten", "prepare", "more")
    assert wrong.returncode == 2
    assert "no crash point is named records-rewritten; accepted are archive-synced" in wrong.stderr


def test_every_point_was_passed_by_the_tests_above(passed: set[str]) -> None:
    """A new step of an operation has a point, and a point has a scenario; likewise every method of `Store`."""
    assert sorted(set(declared()) - passed) == []
    methods = {name for name in vars(Store) if not name.startswith("_")}
    assert methods == {scenario.method for scenario in SCENARIOS} | LOOKS
