"""A store whose making is killed at every point, and finished by the next who opens it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.kernel.conformance.drivers import btrfs, ext4, in_memory
from tests.kernel.conformance.layers import end_guard
from tests.kernel.crashes.engine import killed, left_behind, passages, traced
from thinpool import Store
from thinpool.errors import StoreNotFound
from thinpool.units import MIB

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

FILES = {"dm.loopdatasize": "512M", "dm.loopmetadatasize": "16M", "dm.basesize": "64M"}
PLACES = {"devicemapper": in_memory, "overlay": ext4, "btrfs": btrfs}


def is_begun_or_whole(root: Path) -> None:
    """Nobody but who makes stores takes what is only begun for one."""
    with contextlib.suppress(StoreNotFound), Store.open(root, create=False) as store:
        store.up()


def finished(root: Path, driver: str, options: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a store that was made over what another process left."""
    is_begun_or_whole(root)
    with Store.open(root, driver, options) as store:
        yield from left_behind(store)
        store.prepare("work")
        with store.mount("work") as mounted:
            (mounted / "f").write_text("f")
        store.commit("done", "work")
        yield from left_behind(store)
        store.down()
        end_guard(store)


def chosen(names: list[str], long_run: bool) -> list[tuple[str, int]]:
    """The passages to kill at: each first right after another; all in a long run."""
    found = passages(names)
    pairs = list(zip(["", *names[:-1]], names, strict=True))
    return [passage for index, passage in enumerate(found) if long_run or pairs.index(pairs[index]) == index]


def kill_everywhere(
    fresh: Callable[[], tuple[Path, Mapping[str, str]]], driver: str, long_run: bool, until: str = ""
) -> tuple[list[str], int]:
    """Kill the making of fresh stores at all its points, in a short run up to one: what is wrong, and how many."""
    root, options = fresh()

    def make() -> None:
        Store.open(root, driver, options).close()

    names = traced(make)
    found = list(finished(root, driver, options))
    last = names.index(until) + 1 if until and not long_run else len(names)
    for name, passage in chosen(names[:last], long_run):
        root, options = fresh()
        killed(make, name, passage)
        try:
            found += [f"killed at {name}:{passage}: {problem}" for problem in finished(root, driver, options)]
        except Exception as error:  # noqa: BLE001 - told with all the others
            found.append(f"killed at {name}:{passage}: {error!r}")
    return found, len(names)


@pytest.mark.parametrize("driver", PLACES)
def test_making_a_store_is_killed_at_every_point(scratch: Path, driver: str, long_run: bool) -> None:
    with PLACES[driver](scratch) as place:
        roots = (place / f"root-{number}" for number in range(10_000))
        options = FILES if driver == "devicemapper" else {}

        def fresh() -> tuple[Path, Mapping[str, str]]:
            for old in place.glob("root-*/devicemapper"):
                shutil.rmtree(old)  # its files lie in memory
            return next(roots), options

        found, count = kill_everywhere(fresh, driver, long_run)
    assert not found, "\n".join(found)
    assert count > (40 if driver == "devicemapper" else 5)


def test_making_a_store_on_block_devices_is_killed_at_every_point(
    scratch: Path, disk_factory: Callable[[int], Path], long_run: bool
) -> None:
    data, metadata = disk_factory(512 * MIB), disk_factory(16 * MIB)
    roots = (scratch / f"root-{number}" for number in range(10_000))
    options = {"dm.datadev": str(data), "dm.metadatadev": str(metadata), "dm.basesize": "64M"}

    def fresh() -> tuple[Path, Mapping[str, str]]:
        for disk in (data, metadata):
            with disk.open("r+b", 0) as file:
                file.write(bytes(MIB))
                os.fsync(file.fileno())
        return next(roots), options

    found, count = kill_everywhere(fresh, "devicemapper", long_run, until="pool-named")
    assert not found, "\n".join(found)
    assert count > 40
