"""What layers occupy, against `btrfs filesystem du`."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.btrfs.conftest import Host
from thinpool import Store
from thinpool.model import Usage
from thinpool.units import KIB, MIB

pytestmark = pytest.mark.kernel


def write(store: Store, name: str, **sizes: int) -> None:
    with store.mount(name) as tree:
        for file, size in sizes.items():
            (tree / file).write_bytes(os.urandom(size))


def told(root: Path, store: Store, name: str) -> tuple[int, int]:
    """The total and the exclusive bytes of a layer, as btrfs-progs count them from the files' extents."""
    subprocess.run(["sync", "--file-system", str(root)], check=True)
    subprocess.run(["btrfs", "subvolume", "sync", str(root / "btrfs")], check=True, capture_output=True)
    with store.mount(name) as tree:
        command = ["btrfs", "filesystem", "du", "--raw", "--summarize", str(tree)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    total, exclusive, *_ = lines[1].split()
    return int(total), int(exclusive)


def test_data_in_extents_is_counted_as_btrfs_counts_it(store: Store, root: Path) -> None:
    store.prepare("work")
    write(store, "work", a=MIB, b=2 * MIB, c=3 * MIB)
    assert store.usage("work") == Usage(6 * MIB, 6 * MIB, 6 * MIB, 4)
    store.commit("base", "work")
    store.prepare("work", "base")
    with store.mount("work") as tree:
        (tree / "a").unlink()
        with (tree / "b").open("r+b") as file:
            file.write(os.urandom(64 * KIB))
        (tree / "d").write_bytes(os.urandom(512 * KIB))
    assert store.usage("work") == Usage(576 * KIB, 576 * KIB, 5 * MIB + 512 * KIB, 4)
    store.commit("child", "work")
    base, child = store.usage("base"), store.usage("child")
    assert child == Usage(576 * KIB, 576 * KIB, 5 * MIB + 512 * KIB, 4)
    assert base == Usage(6 * MIB, MIB, 6 * MIB, 4)
    assert store.usages() == {"base": base, "child": child}
    assert told(root, store, "child") == (child.referenced, child.exclusive)
    assert told(root, store, "base") == (base.referenced, base.exclusive)


def test_what_one_of_several_children_still_has_is_not_exclusive(store: Store) -> None:
    store.prepare("work")
    write(store, "work", a=MIB, b=MIB, c=MIB)
    store.commit("base", "work")
    for name, gone in (("one", "ab"), ("two", "bc"), ("three", "b")):
        store.prepare(name, "base")
        with store.mount(name) as tree:
            for file in gone:
                (tree / file).unlink()
    assert store.usage("base").exclusive == MIB
    assert [usage.size for name, usage in sorted(store.usages().items())] == [3 * MIB, 0, 0, 0]


def test_small_files_count_with_their_bytes(store: Store) -> None:
    store.prepare("work")
    with store.mount("work") as tree:
        (tree / "a").write_text("12345")
    assert store.usage("work") == Usage(5, 5, 5, 2)


def test_compressed_data_counts_as_it_is_on_disk(make_host: Host) -> None:
    root = make_host(options="compress-force=zstd") / "root"
    with Store.open(root, "btrfs") as store:
        store.prepare("work")
        with store.mount("work") as tree:
            (tree / "zeros").write_bytes(b"x" * MIB)
        usage = store.usage("work")
        assert usage.size == usage.exclusive < 64 * KIB
        assert usage.referenced == MIB


def test_what_a_removal_frees_is_what_was_said(store: Store, host: Path) -> None:
    store.prepare("work")
    write(store, "work", a=40 * MIB)
    said = store.usage("work").exclusive
    subprocess.run(["sync", "--file-system", str(host)], check=True)
    before = os.statvfs(host)
    store.remove("work")
    subprocess.run(["sync", "--file-system", str(host)], check=True)
    subprocess.run(["btrfs", "subvolume", "sync", str(host)], check=True, capture_output=True)
    subprocess.run(["sync", "--file-system", str(host)], check=True)
    after = os.statvfs(host)
    freed = (after.f_bfree - before.f_bfree) * after.f_bsize
    assert said <= freed <= said + 2 * MIB
