"""What `check` finds, what `recover` does about it, and what it keeps its hands off."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.cli.conftest import Cli
from tests.kernel.conformance.layers import fill, text
from tests.kernel.crashes.dying import killed_at
from tests.kernel.pool.tools import run
from tests.kernel.test_store import archive
from thinpool import Store
from thinpool.findings import Finding

pytestmark = pytest.mark.kernel

Work = Callable[[Store], object]


def kinds(store: Store) -> list[str]:
    return sorted(finding.kind for finding in store.check())


def only(store: Store, kind: str) -> Finding:
    """The one finding that there is."""
    (found,) = store.check()
    assert found.kind == kind
    return found


def mended(store: Store, kind: str) -> None:
    """There is something of that kind, and a recovery leaves nothing; looking changes nothing."""
    found = store.check()
    assert kind in {finding.kind for finding in found}
    assert [finding.key for finding in store.check()] == [finding.key for finding in found]
    done = store.recover()
    assert (list(done.mended), list(done.left)) == (found, [])
    assert store.check() == []


def left(store: Store, kind: str) -> Finding:
    """The one finding there is stays, and nothing is done about it."""
    found = only(store, kind)
    assert found.remedy is None
    done = store.recover()
    assert (list(done.mended), [finding.key for finding in done.left]) == ([], [found.key])
    return found


def number_of(store: Store, name: str) -> int:
    return store._session.record(name).handle


def device_of(store: Store, name: str) -> str:
    pool = store.info().pool
    assert pool is not None
    return pool.name.replace("-pool", f"-{number_of(store, name)}")


def pool_of(store: Store) -> str:
    pool = store.info().pool
    assert pool is not None
    return pool.name


# -- nothing wrong


def test_nothing_is_found_in_a_store_in_use(store: Store) -> None:
    assert store.check() == []
    fill(store, "base", text("f"))
    store.prepare("work", "base")
    store.prepare("other", "base")
    with store.mount("work") as root, store.device("other"):
        assert store.check() == []
        (root / "g").write_text("g")
        store.commit("done", "work")  # what is mounted now goes when it is unmounted
        assert store.check() == []
    assert store.check() == []
    store.down()
    assert store.check() == []
    assert not os.path.exists(f"/dev/mapper/{pool_of(store)}")


def test_an_import_that_is_going_on_is_nothing_wrong(store: Store) -> None:
    begun, ended = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(begun[1], "wb", 0) as told, open(ended[0], "rb") as waits:

                class Slow:
                    def read(self, _: int = -1) -> bytes:
                        told.write(b"x")
                        return waits.read(1) and b""

                store.import_layer("new", Slow())  # type: ignore[arg-type]
        finally:
            os._exit(0)
    os.close(ended[0])
    os.read(begun[0], 1)
    assert store.check() == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for fd in (begun[0], begun[1], ended[1]):
        os.close(fd)
    mended(store, "abandoned-import")


# -- left by a process that died


@pytest.mark.parametrize(
    ("where", "kind", "work"),
    [
        ("thin-made", "half-made", lambda store: store.prepare("work", "base")),
        ("records-written", "half-removed", lambda store: store.remove("base")),
        ("archive-unpacked", "abandoned-import", lambda store: store.import_layer("new", archive({"f": b""}))),
        ("snapshot-reserved", "pinned", lambda store: store._session.driver._pool.metadata_snapshot().__enter__()),
        ("mount-directory-made", "leftover-directory", lambda store: store.mount("base")),
        ("mount-attach", "idle", lambda store: store.mount("base")),
        ("device-made", "half-made-device", lambda store: store.mount("base")),
    ],
)
def test_what_a_process_that_died_left_is_found_and_mended(store: Store, where: str, kind: str, work: Work) -> None:
    fill(store, "base", text("f"))
    killed_at(where, lambda: work(store))
    mended(store, kind)
    store.prepare("again", None)
    if kind != "half-removed":
        with store.mount("base", read_only=True) as root:
            assert (root / "f").read_text() == "text"


@contextmanager
def suspended(name: str) -> Iterator[None]:
    run("dmsetup", "suspend", name)
    try:
        yield
    finally:
        run("dmsetup", "resume", name)


def test_a_device_that_a_process_held_as_it_died(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as root:
        (root / "f").write_text("f")
        (store.root / "devicemapper/held").write_text(f"{number_of(store, 'work')}")
        run("dmsetup", "suspend", device_of(store, "work"))
        mended(store, "suspended")
        (root / "g").write_text("g")


def test_a_pool_that_a_process_suspended_as_it_died(store: Store) -> None:
    run("dmsetup", "suspend", pool_of(store))
    mended(store, "suspended")


# -- whose it is nobody knows, or what nobody can bring back


def test_a_device_that_somebody_suspended(store: Store) -> None:
    store.prepare("work")
    with store.mount("work"), suspended(device_of(store, "work")):
        assert "dmsetup resume" in left(store, "suspended").reason


def test_storage_that_no_record_names_is_kept(store: Store) -> None:
    fill(store, "base", text("f"))
    run("dmsetup", "message", pool_of(store), "0", f"create_snap 70000 {number_of(store, 'base')}")
    assert left(store, "unrecorded").subject == "storage 70000"
    run("dmsetup", "message", pool_of(store), "0", "delete 70000")
    assert store.check() == []


def test_a_layer_whose_storage_is_gone(store: Store) -> None:
    fill(store, "base", text("f"))
    run("dmsetup", "message", pool_of(store), "0", f"delete {number_of(store, 'base')}")
    assert left(store, "missing").subject == "layer base"
    store.remove("base")
    assert store.check() == []


def test_a_metadata_snapshot_that_somebody_else_reserved(store: Store) -> None:
    run("dmsetup", "message", pool_of(store), "0", "reserve_metadata_snap")
    assert "release_metadata_snap" in left(store, "pinned").reason
    run("dmsetup", "message", pool_of(store), "0", "release_metadata_snap")


def test_metadata_that_went_on_without_the_records(store: Store) -> None:
    status = store.info().pool
    assert status is not None
    now = status.transaction_id
    run("dmsetup", "message", status.name, "0", f"set_transaction_id {now} {now + 7}")
    assert "newer than the records" in left(store, "other-metadata").problem
    run("dmsetup", "message", status.name, "0", f"set_transaction_id {now + 7} {now}")
    assert store.check() == []


def test_a_name_of_ours_that_somebody_took(store: Store) -> None:
    name = pool_of(store).replace("-pool", "-70000")
    run("dmsetup", "create", "--noudevsync", name, "--table", "0 8 zero")
    assert left(store, "name-taken").subject == f"device {name}"
    run("dmsetup", "remove", "--noudevsync", name)


@pytest.mark.parametrize("name", ["data", "metadata"])
def test_a_file_that_was_replaced_below_the_pool(store: Store, name: str) -> None:
    file = store.root / "devicemapper" / name
    away = file.with_name("away")
    file.rename(away)
    assert left(store, "other-file").subject == str(file)
    file.write_bytes(b"")
    assert left(store, "other-file").subject == str(file)
    away.rename(file)
    assert store.check() == []


def test_a_pool_whose_file_is_gone(store: Store) -> None:
    store.down()
    file = store.root / "devicemapper/data"
    file.rename(file.with_name("away"))
    assert "data" in left(store, "unusable-pool").problem
    file.with_name("away").rename(file)
    assert store.check() == []


def test_a_pool_with_the_metadata_of_another(store: Store, scratch: Path) -> None:
    with Store.open(
        scratch / "other", "devicemapper", {"dm.loopdatasize": "2G", "dm.loopmetadatasize": "64M"}
    ) as other:
        other.down()
    store.down()
    file = store.root / "devicemapper/metadata"
    file.rename(file.with_name("away"))
    shutil.copy(scratch / "other/devicemapper/metadata", file)
    assert "of another pool" in left(store, "unusable-pool").problem
    file.unlink()
    file.with_name("away").rename(file)


# -- the commands


def test_the_commands(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    cli = Cli(store.root, capfd.readouterr)
    capfd.readouterr()
    fill(store, "base", text("f"))
    assert cli("check") == "nothing found\n"
    assert cli("recover") == "nothing found\n"
    assert json.loads(cli("check", "--json")) == []
    run("dmsetup", "message", pool_of(store), "0", f"create_snap 70000 {number_of(store, 'base')}")
    (store.root / "mnt/70001-x").mkdir()
    assert "leftover-directory: " in cli.answers(1, "check")
    found = json.loads(cli.answers(1, "check", "--json"))
    assert {each["kind"]: each["remedy"] for each in found} == {"unrecorded": None, "leftover-directory": "remove it"}
    assert "would mend: " in cli.answers(1, "recover", "--dry-run")
    done = json.loads(cli.answers(1, "recover", "--json"))
    assert {each["kind"]: each["mended"] for each in done} == {"unrecorded": False, "leftover-directory": True}
    run("dmsetup", "message", pool_of(store), "0", "delete 70000")
    assert cli("check") == "nothing found\n"


def test_records_that_are_damaged_are_said_to_be(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    cli = Cli(store.root, capfd.readouterr)
    store.down()
    store.close()
    file = store.root / "store.db"
    kept = file.read_bytes()
    try:
        file.write_bytes(b"x" * len(kept))
        assert "store.db" in cli.fails(1, "check")
        assert "store.db" in cli.fails(1, "recover")
    finally:
        file.write_bytes(kept)
