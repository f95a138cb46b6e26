"""A process that is killed at any moment loses nothing that was acknowledged, and leaves nothing behind."""

import io
import os
import random
import select
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.crashes.scenarios import archive
from thinpool import Kind, Store
from thinpool.metadata import Books

pytestmark = pytest.mark.kernel


def workload(root: str, seed: int, out: int) -> None:
    """Work on a store for ever, and acknowledge what is done, a line each."""

    def say(line: str) -> None:
        if line:
            os.write(out, f"{line}\n".encode())

    dice = random.Random(seed)
    with Store.open(root) as store:
        for number in range(1_000_000):
            name = f"{seed}-{number}"
            committed = [layer.name for layer in store.walk() if layer.kind is Kind.COMMITTED]
            store.prepare(name, dice.choice(committed) if committed and dice.random() < 0.8 else None)
            with store.mount(name) as mounted:
                (mounted / name).write_text(name)
                if dice.random() < 0.5:
                    store.commit(f"{name}.done", name)
            if dice.random() < 0.5 and (name in {layer.name for layer in store.walk()}):
                store.commit(f"{name}.done", name)
            say(f"committed {name}.done" if f"{name}.done" in {layer.name for layer in store.walk()} else "")
            if dice.random() < 0.3:
                store.import_layer(f"{name}.tar", io.BytesIO(archive(name)))
                say(f"imported {name}.tar")
            leaves = {layer.name for layer in store.walk()} - {layer.parent for layer in store.walk()}
            if len(leaves) > 6:
                gone = dice.choice(sorted(leaves))
                say(f"removing {gone}")
                store.remove(gone)
                say(f"removed {gone}")


def expected(lines: list[str]) -> tuple[set[str], set[str]]:
    """The layers that must be there, and those that must not; what was just being removed may be either."""
    there: set[str] = set()
    gone: set[str] = set()
    for line in lines:
        verb, _, name = line.partition(" ")
        if verb in {"committed", "imported"}:
            there.add(name)
        else:
            there.discard(name)
            if verb == "removed":
                gone.add(name)
    return there, gone


@pytest.mark.timeout(3600)
def test_killed_at_random_moments(store: Store, long_run: bool) -> None:
    dice = random.Random(2024)
    there: set[str] = set()
    for seed in range(1000 if long_run else 30):
        lines = killed_some_time(partial(workload, str(store.root), seed), dice)
        acknowledged, removed = expected(lines)
        touched = {line.partition(" ")[2] for line in lines if line.startswith("remov")}
        with Store.open(store.root) as again:
            again._session.ready()
            names = {layer.name for layer in again.walk()}
            there = (there - touched) | acknowledged
            assert there <= names
            assert not removed & names
            check_storage(again)
            _check_contents(again, sorted(acknowledged)[:2])
            if seed % 5 == 0:
                again.down()


def killed_some_time(work: Callable[[int], object], dice: random.Random) -> list[str]:
    """Let a child work, which tells what it has done, and kill it after some lines and some time more: the lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(writing)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        lines = [file.readline().strip() for _ in range(dice.randrange(8))]
        select.select([], [], [], dice.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        lines += file.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return lines


def check_storage(store: Store) -> None:
    """Every record has its thin device, and every thin device its record, once nothing is mounted any more."""
    session = store._session
    for path in [path for layer in store.walk() for path in store.mounts(layer.name)]:
        store.unmount(path)
    store.up()
    assert session.state.unfinished() == []
    base = session.driver._base.storage.handle  # type: ignore[attr-defined]
    handles = {record.handle for record in session.state.layers()} | {base}
    with session.driver._pool.open_metadata() as device, Books.open(device) as books:  # type: ignore[attr-defined]
        assert {details.thin_id for details in books.devices()} == handles


def _check_contents(store: Store, names: list[str]) -> None:
    for name in names:
        with store.mount(name) as mounted:
            own = name.rpartition(".")[0]
            assert (Path(mounted) / own).read_text() == own
