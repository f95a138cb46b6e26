"""Operations of a store against the tools and against the bare kernel, and how they grow with depth and number."""

import io
import os
import random
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.alone import peak
from bench.bare import Bare
from bench.measure import Row, in_turn, is_uml, ratio
from thinpool import Store
from thinpool.drivers.naming import store_prefix

FILES = 20_000
ARCHIVE_BYTES = 100_000_000
_OPTIONS = {"dm.basesize": "4G", "dm.loopdatasize": "16G", "dm.loopmetadatasize": "256M"}
_BARE_ID = 9_000_001
_TOOL_ID = 9_000_002


def run(scratch: Path, rounds: int) -> list[Row]:
    """All rows of the table."""
    rows: list[Row] = []
    with store_in(scratch / "ops") as store:
        store.prepare("origin")
        store.commit("base", "origin")
        rows += cycles(store, scratch, rounds)
        rows.append(depth(store, rounds))
        rows.append(information(store, rounds))
    rows.append(number_of_layers(scratch, rounds))
    rows.append(starting(scratch, max(rounds // 10, 3)))
    rows += importing(scratch, max(rounds // 10, 3))
    return rows


@contextmanager
def store_in(root: Path) -> Iterator[Store]:
    """A store of its own, brought down at the end."""
    with Store.open(root, "devicemapper", _OPTIONS) as store:
        try:
            yield store
        finally:
            store.down()


def cycle_of(store: Store, parent: str, target: Path, name: str = "cycle") -> Callable[[], None]:
    """Prepare, mount, unmount, remove."""

    def cycle() -> None:
        store.prepare(name, parent)
        with store.mount(name, target):
            pass
        store.remove(name)

    return cycle


def cycles(store: Store, scratch: Path, rounds: int) -> list[Row]:
    """The same cycle by thinpool, by bare ioctls and system calls, and by dmsetup and mount(8)."""
    targets = {name: scratch / f"target-{name}" for name in ("ours", "bare", "tools")}
    for target in targets.values():
        target.mkdir()
    pool = store.info().pool
    assert pool is not None
    with store.device("base") as device:
        name = Path(f"/sys/block/{device.name}/dm/name").read_text().strip()
        table = subprocess.run(["dmsetup", "table", name], check=True, capture_output=True, text=True).stdout.split()
    sectors, pool_device, origin = int(table[1]), table[3], int(table[4])
    bare = Bare(pool.name, pool_device, sectors, str(targets["bare"]))
    found = in_turn(
        {
            "thinpool": cycle_of(store, "base", targets["ours"]),
            "bare": lambda: bare.cycle(_BARE_ID, origin),
            "tools": lambda: tools_cycle(pool.name, pool_device, sectors, origin, targets["tools"]),
        },
        rounds,
    )
    bare.close()
    what = "prepare+mount+unmount+remove"
    ours = ("thinpool", found["thinpool"])
    return [
        ratio(
            f"{what} against dmsetup+mount(8)", ("tools", found["tools"]), ours, 15 if is_uml() else 5, at_least=True
        ),
        ratio(f"{what} against bare ioctls", ours, ("bare", found["bare"]), 2, at_least=False),
    ]


def tools_cycle(pool: str, pool_device: str, sectors: int, origin: int, target: Path) -> None:
    """The cycle as an administrator would type it."""

    def tool(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    tool("dmsetup", "message", pool, "0", f"create_snap {_TOOL_ID} {origin}")
    tool("dmsetup", "create", "bench-tools", "--table", f"0 {sectors} thin {pool_device} {_TOOL_ID}")
    tool("mount", "/dev/mapper/bench-tools", str(target))
    tool("umount", str(target))
    tool("dmsetup", "remove", "bench-tools")
    tool("dmsetup", "message", pool, "0", f"delete {_TOOL_ID}")


def depth(store: Store, rounds: int) -> Row:
    """The cycle on a layer 200 levels deep and on one 1 level deep."""
    parent = "base"
    for level in range(2, 201):
        store.prepare("deep", parent)
        parent = store.commit(f"level-{level}", "deep").name
    target = Path(tempfile.mkdtemp(dir=store.root.parent))
    found = in_turn({"deep": cycle_of(store, parent, target), "shallow": cycle_of(store, "base", target)}, rounds)
    return ratio(
        "the same at depth 200 against depth 1", ("200", found["deep"]), ("1", found["shallow"]), 1.2, at_least=False
    )


def number_of_layers(scratch: Path, rounds: int) -> Row:
    """The cycle in a store of 2,000 layers and in one of 10."""
    target = scratch / "target-many"
    target.mkdir()
    with ExitStack() as stores:
        contestants: dict[str, Callable[[], None]] = {}
        for name, layers in (("many", 2_000), ("few", 10)):
            store = stores.enter_context(store_in(scratch / name))
            store.prepare("work")
            store.commit("base", "work")
            for number in range(layers - 1):
                store.prepare(f"layer-{number}", "base")
            contestants[name] = cycle_of(store, "base", target)
        found = in_turn(contestants, rounds)
    return ratio(
        "the same with 2,000 layers against 10", ("2,000", found["many"]), ("10", found["few"]), 1.3, at_least=False
    )


def information(store: Store, rounds: int) -> Row:
    """`info` as a library call; its target is a time, as nothing else does the same."""
    sample = in_turn({"info": store.info}, rounds * 4)["info"]  # type: ignore[dict-item]
    return Row("info, library call", sample.median * 1e3, "ms", 1.0 if is_uml() else 10.0, False, f"{rounds * 4} calls")


def starting(scratch: Path, rounds: int) -> Row:
    """`thinpool up` as a process, for a store of 2,000 layers whose kernel objects a boot took away."""
    with store_in(scratch / "many") as store:

        def boot() -> None:
            for device in sorted(Path("/sys/block").glob("dm-*/dm/name"), reverse=True):
                name = device.read_text().strip()
                if name.startswith(store_prefix(store.root)):
                    subprocess.run(["dmsetup", "remove", "--noudevsync", "--retry", name], check=True)

        seconds = []
        for _ in range(rounds):
            boot()
            begun = time.perf_counter()
            subprocess.run(["thinpool", "--root", str(store.root), "up"], check=True)
            seconds.append(time.perf_counter() - begun)
        found = statistics.median(seconds)
    return Row("up after a boot, 2,000 layers, as a command", found, "s", 2.0, False, f"{rounds} times")


def importing(scratch: Path, rounds: int, *tar_options: str) -> list[Row]:
    """Import of a large archive against tar -x onto the same kind of file system on the same pool."""
    archive = scratch / "layer.tar"
    make_archive(archive)
    target = scratch / "target-tar"
    target.mkdir()
    peaks: list[int] = []
    with store_in(scratch / "import") as store:

        def ours() -> None:
            peaks.append(peak("import", store.root, "imported", archive))
            store.remove("imported")

        def tar() -> None:
            store.prepare("untarred")
            with store.mount("untarred", target):
                command = ["tar", *tar_options, "--numeric-owner", "-xpf", str(archive), "-C", str(target)]
                subprocess.run(command, check=True)
            store.remove("untarred")

        found = in_turn({"import": ours, "tar": tar}, rounds, warm_up=1)
    what = f"import of {FILES:,} files, {ARCHIVE_BYTES // 1_000_000} MB"
    return [
        ratio(
            f"{what} against {' '.join(('tar', *tar_options, '-x'))}",
            ("import", found["import"]),
            ("tar", found["tar"]),
            2,
            at_least=False,
        ),
        Row(f"{what}, peak memory", max(peaks) / 1024, "MiB", 100, False, "the importing process, Python included"),
    ]


def make_archive(path: Path) -> None:
    """Write a tar of many files of differing size, the same one every time."""
    dice = random.Random(20_000)
    data = dice.randbytes(1 << 20)
    sizes = [dice.randrange(1, 2 * ARCHIVE_BYTES // FILES) for _ in range(FILES)]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, size in enumerate(sizes):
            if number % 100 == 0:
                directory = tarfile.TarInfo(f"usr/share/part-{number // 100:03}")
                directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(directory)
            member = tarfile.TarInfo(f"usr/share/part-{number // 100:03}/file-{number:05}")
            member.size, member.mode, member.mtime = size, 0o644, 1_700_000_000 + number
            start = dice.randrange(len(data) - size)
            tar.addfile(member, io.BytesIO(data[start : start + size]))


def scratch_directory() -> Path:
    """A fresh directory on a fast file system."""
    return Path(tempfile.mkdtemp(prefix="thinpool-bench-", dir=os.environ.get("LAB_SCRATCH")))
