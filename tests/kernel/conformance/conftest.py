"""Every test below is run for every driver that this kernel has; which those are is said when they are collected."""

from collections.abc import Iterator

import pytest

from tests.kernel.conformance.drivers import DRIVERS, Driver, opened
from tests.kernel.conformance.layers import clear, end_guard
from tests.kernel.conftest import LeakCheck, Resources
from thinpool import Store

_FOUND = pytest.StashKey[dict[str, bool]]()


def found_drivers(config: pytest.Config) -> dict[str, bool]:
    """For each driver, whether its tests are collected: where nothing is run, those that the lab will run."""
    if _FOUND not in config.stash:
        listing = config.getoption("collectonly")
        config.stash[_FOUND] = {
            driver.name: driver.in_lab if listing else driver.kernel(driver.name) for driver in DRIVERS
        }
    return config.stash[_FOUND]


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    if not any("driver" in getattr(item, "fixturenames", ()) for item in items):
        return []
    found = found_drivers(config)
    lacking = [name for name, here in found.items() if not here]
    line = f"conformance: {', '.join(name for name, here in found.items() if here)}"
    return [f"{line}; not in this kernel: {', '.join(lacking)}" if lacking else line]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        found = found_drivers(metafunc.config)
        here = [pytest.param(driver, id=driver.name) for driver in DRIVERS if found[driver.name]]
        metafunc.parametrize("driver", here, indirect=True, scope="module")


@pytest.fixture(scope="module")
def driver(request: pytest.FixtureRequest) -> Driver:
    """A driver that this kernel has."""
    found: Driver = request.param
    return found


@pytest.fixture(scope="module")
def shared_store(driver: Driver) -> Iterator[Store]:
    """The store that all tests of one module and driver use, one after the other."""
    before = LeakCheck(Resources.now())
    with opened(driver) as store:
        yield store
    assert before.settled().describe() == []


@pytest.fixture
def store(shared_store: Store) -> Iterator[Store]:
    """An empty store; what a test leaves in it is taken away, and nothing else may be left."""
    yield shared_store
    clear(shared_store)
    end_guard(shared_store)


@pytest.fixture
def own_store(driver: Driver) -> Iterator[Store]:
    """A store of the test's own, for what would disturb others."""
    with opened(driver) as store:
        yield store
