"""`thinpool device`, beside dmsetup."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from .conftest import Cli

pytestmark = pytest.mark.kernel

DATA_SECTORS = 20971520
THIN_SECTORS = 2097152
MKFS = (
    "mkfs.ext4",
    "-q",
    "-E",
    "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
    "-U",
    "12345678-1234-1234-1234-123456789abc",
)


def sh(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def lines(text: str) -> list[str]:
    """Without the blank that dmsetup puts after a target that has nothing to say."""
    return [line.rstrip() for line in text.splitlines()]


@attrs.frozen
class Tool:
    """One way to do the steps of the walk-through."""

    prefix: str
    cli: Cli | None

    def attach(self, path: Path) -> str:
        if self.cli is None:
            return sh("losetup", "--find", "--show", str(path))
        return self.cli("device", "attach", str(path)).strip()

    def detach(self, loop: str) -> None:
        if self.cli is None:
            sh("losetup", "--detach", loop)
        else:
            self.cli("device", "detach", loop)

    def create(self, name: str, table: str) -> str:
        if self.cli is None:
            sh("dmsetup", "create", self.prefix + name, "--table", table)
            return f"/dev/mapper/{self.prefix}{name}"
        return self.cli("device", "create", self.prefix + name, "--table", table).strip()

    def message(self, name: str, text: str) -> None:
        if self.cli is None:
            sh("dmsetup", "message", self.prefix + name, "0", text)
        else:
            self.cli("device", "message", self.prefix + name, text)

    def suspend(self, name: str) -> None:
        if self.cli is None:
            sh("dmsetup", "suspend", self.prefix + name)
        else:
            self.cli("device", "suspend", self.prefix + name)

    def resume(self, name: str) -> None:
        if self.cli is None:
            sh("dmsetup", "resume", self.prefix + name)
        else:
            self.cli("device", "resume", self.prefix + name)

    def remove(self, name: str) -> None:
        if self.cli is None:
            sh("dmsetup", "remove", self.prefix + name)
        else:
            self.cli("device", "remove", self.prefix + name)


@attrs.frozen
class Seen:
    """What dmsetup shows of the devices, numbers of devices replaced by their roles."""

    tables: tuple[str, ...]
    statuses: tuple[str, ...]


def numbers(path: str) -> str:
    return sh("lsblk", "--noheadings", "--output", "MAJ:MIN", path).split()[0]


def walk_through(tool: Tool, folder: Path) -> Iterator[Seen]:
    """The classic walk-through of thin provisioning: a pool, a thin device, a file system, a snapshot."""
    roles: dict[str, str] = {}

    def seen(*names: str) -> Seen:
        tables = []
        for name in names:
            words = sh("dmsetup", "table", tool.prefix + name).split()
            tables.append(" ".join(roles.get(word, word) for word in words))
        return Seen(tuple(tables), tuple(sh("dmsetup", "status", tool.prefix + name) for name in names))

    folder.mkdir()
    with ExitStack() as undo:
        for name, size in (("metadata", 100 << 20), ("data", DATA_SECTORS * 512)):
            with (folder / name).open("wb") as file:
                file.truncate(size)
        loops = {}
        for name in ("metadata", "data"):
            loops[name] = tool.attach(folder / name)
            undo.callback(tool.detach, loops[name])
            roles[numbers(loops[name])] = name
        pool = tool.create("pool", f"0 {DATA_SECTORS} thin-pool {loops['metadata']} {loops['data']} 128 0")
        undo.callback(tool.remove, "pool")
        roles[numbers(pool)] = "pool"
        yield seen("pool")
        tool.message("pool", "create_thin 0")
        thin = tool.create("thin", f"0 {THIN_SECTORS} thin {pool} 0")
        undo.callback(tool.remove, "thin")
        yield seen("pool", "thin")
        sh(*MKFS, thin)
        place = folder / "place"
        place.mkdir()
        sh("mount", thin, str(place))
        (place / "file").write_bytes(b"x" * (1 << 20))
        sh("umount", str(place))
        tool.suspend("thin")
        tool.message("pool", "create_snap 1 0")
        tool.resume("thin")
        snap = tool.create("snap", f"0 {THIN_SECTORS} thin {pool} 1")
        undo.callback(tool.remove, "snap")
        sh("mount", "-o", "ro", snap, str(place))
        assert (place / "file").read_bytes() == b"x" * (1 << 20)
        sh("umount", str(place))
        yield seen("pool", "thin", "snap")


def test_the_classic_walk_through_is_dmsetups(empty: Cli, scratch: Path) -> None:
    ours = list(walk_through(Tool("ours-", empty), scratch / "ours"))
    theirs = list(walk_through(Tool("theirs-", None), scratch / "theirs"))
    assert [step.tables for step in ours] == [step.tables for step in theirs]
    assert ours[0].tables == (f"0 {DATA_SECTORS} thin-pool metadata data 128 0 0",)
    assert [step.statuses for step in ours][:2] == [step.statuses for step in theirs][:2]
    last, same = ours[2].statuses, theirs[2].statuses
    assert [status.split()[:2] for status in last] == [status.split()[:2] for status in same]
    assert mapped(last) == mapped(same)


def mapped(statuses: tuple[str, ...]) -> list[str]:
    """Transaction id, metadata and data of the pool; the mapped sectors of the thin devices."""
    pool, *thins = (status.split() for status in statuses)
    return [*pool[3:], *(fields[3] for fields in thins)]


@pytest.fixture
def linear(empty: Cli, disk_factory: object, scratch: Path) -> Iterator[str]:
    del disk_factory
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    loop = empty("device", "attach", str(image)).strip()
    yield loop
    empty("device", "detach", loop)


def test_what_is_shown_is_what_dmsetup_shows(empty: Cli, linear: str) -> None:
    path = empty(
        "device", "create", "two", "--uuid", "TEST-two", "--table", f"0 8 linear {linear} 0", "--table", "8 8 error"
    ).strip()
    assert Path(path).is_block_device()
    assert Path(path) == Path("/dev/mapper/two")
    for verb in ("table", "status"):
        assert empty("device", verb, "two").splitlines() == lines(sh("dmsetup", verb, "two"))
        assert empty("device", verb).splitlines() == lines(sh("dmsetup", verb))
    assert [line["target"] for line in empty.json("device", "table", "two")] == ["linear", "error"]
    entries = empty.json("device", "list")
    entry = next(entry for entry in entries if entry["name"] == "two")
    assert entry["size"] == 16 * 512
    assert entry["uuid"] == "TEST-two"
    assert entry["targets"] == ["linear", "error"]
    assert entry["thin_id"] is None
    assert sorted(entry["name"] for entry in entries) == sorted(sh("dmsetup", "ls").split()[::2])
    assert empty("device", "remove", "two") == ""
    assert not Path(entry["path"]).exists()


def test_a_device_that_cannot_be_made_leaves_nothing(empty: Cli, linear: str) -> None:
    before = sh("dmsetup", "ls")
    empty.fails(1, "device", "create", "bad", "--table", f"0 8 nosuchtarget {linear} 0")
    empty.fails(1, "device", "create", "bad", "--table", "0 8 linear /dev/missing 0")
    assert sh("dmsetup", "ls") == before


@pytest.mark.parametrize("table", ["", "0 8", "zero 8 linear", "0 -8 zero", "0 8 zero\nx"])
def test_a_malformed_table(empty: Cli, table: str) -> None:
    empty.fails(2, "device", "create", "bad", "--table", table)


def test_what_is_no_loop_device_is_not_detached(empty: Cli, linear: str, scratch: Path) -> None:
    path = empty("device", "create", "two", "--table", f"0 8 linear {linear} 0").strip()
    (scratch / "file").touch()
    for wrong in (path, str(scratch / "file")):
        assert "no loop device" in empty.fails(1, "device", "detach", wrong)
    assert "missing" in empty.fails(1, "device", "detach", "/dev/missing")
    assert empty("device", "remove", "two") == ""


def test_errors_name_the_device(empty: Cli) -> None:
    for verb in (("remove",), ("table",), ("status",), ("suspend",), ("resume",)):
        assert "missing" in empty.fails(1, "device", *verb, "missing")
    assert "missing" in empty.fails(1, "device", "message", "missing", "create_thin 0")


def test_read_only_and_deferred(empty: Cli, linear: str) -> None:
    path = empty("device", "create", "fixed", "--read-only", "--table", f"0 8 linear {linear} 0").strip()
    with open(path, "rb", buffering=0) as device:
        with pytest.raises(OSError, match=r"not permitted|Read-only"), open(path, "r+b", buffering=0) as writable:
            writable.write(bytes(512))
        assert device.read(512) == bytes(512)
        entry = next(entry for entry in empty.json("device", "list") if entry["name"] == "fixed")
        assert (entry["read_only"], entry["users"]) == (True, 1)
        assert "in use" in empty.fails(1, "device", "remove", "fixed")
        assert empty("device", "remove", "--deferred", "fixed") == ""
    assert "fixed" not in sh("dmsetup", "ls").split()


def test_devices_of_a_store_are_left_alone(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    cli("mount", "base", str(place))
    pool = cli.json("info")["pool"]["name"]
    for arguments in (("remove", pool), ("suspend", pool), ("message", pool, "create_thin 77")):
        errors = cli.fails(1, "device", *arguments)
        assert "belongs to a thinpool store" in errors
        assert "--force" in errors
    thin = next(entry for entry in cli.json("device", "list") if entry["thin_id"] is not None)
    shown = cli.json("device", "id", str(thin["thin_id"]))
    assert shown["layer"] == "base"
    assert shown["name"] == thin["name"]
    assert shown["path"] == thin["path"]
    assert shown["active"] is True
    cli("umount", "base")
    assert cli.json("device", "id", str(thin["thin_id"]))["active"] is False
    cli("down")
    assert cli.json("device", "id", str(thin["thin_id"]))["path"] is None


def test_json_of_a_message(empty: Cli, scratch: Path) -> None:
    tool = Tool("talk-", empty)
    for _ in walk_through(tool, scratch / "talk"):
        answer = json.loads(empty.outcome("device", "message", "talk-pool", "--json", "set_transaction_id 0 0")[1])
        assert answer == {"name": "talk-pool", "answer": None}
