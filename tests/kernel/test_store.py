"""The life of layers on the devicemapper driver, on a real kernel."""

import io
import os
import signal
import stat
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from thinpool import Kind, Store
from thinpool.errors import (
    ArchiveError,
    ConfigError,
    InvalidName,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    MountError,
    WrongKind,
)
from thinpool.store import Compression

pytestmark = pytest.mark.kernel


def archive(files: dict[str, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    out.seek(0)
    return out


def listed(store: Store, name: str, base: str | None = None) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in store.changes(name, base)]


@pytest.fixture
def debian(store: Store) -> Store:
    store.import_layer("debian", archive({"etc/motd": b"hello\n", "bin/sh": b"#!", "etc/passwd": b"root:x:0:0\n"}))
    return store


def test_the_example_of_the_contract(debian: Store, scratch: Path) -> None:
    store = debian
    store.prepare("job-1", parent="debian")
    with store.mount("job-1") as root_dir:
        (root_dir / "hello").write_text("hi")
    assert listed(store, "job-1") == [("A", "/hello")]
    layer = store.commit("debian-hello", "job-1")
    assert (layer.kind, layer.parent, layer.name) == (Kind.COMMITTED, "debian", "debian-hello")
    with (scratch / "layer.tar").open("wb") as file:
        store.export_layer("debian-hello", file)
    with tarfile.open(scratch / "layer.tar") as tar:
        assert "hello" in [member.name for member in tar.getmembers() if member.isfile()]
    store.prepare("job-2", parent="debian-hello")
    with store.device("job-2") as device:
        assert stat.S_ISBLK(os.stat(device).st_mode)
    assert sorted(layer.name for layer in store.walk()) == ["debian", "debian-hello", "job-2"]


def test_an_empty_layer_is_an_empty_root(store: Store) -> None:
    store.prepare("empty")
    with store.mount("empty") as root:
        assert os.listdir(root) == []
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert listed(store, "empty") == []


def test_a_layer_holds_what_was_written_and_its_parent_does_not(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        (root / "etc/motd").write_text("changed\n")
        (root / "bin/sh").unlink()
        (root / "new").mkdir()
        (root / "new/file").write_bytes(b"x" * 100_000)
    assert listed(debian, "work") == [("D", "/bin/sh"), ("C", "/etc/motd"), ("A", "/new"), ("A", "/new/file")]
    with debian.mount("debian") as root:
        assert (root / "etc/motd").read_text() == "hello\n"
        assert (root / "bin/sh").exists()


def test_committed_layers_and_views_are_read_only(debian: Store) -> None:
    debian.view("look", "debian")
    for name in ("debian", "look"):
        with debian.mount(name, read_only=False) as root, pytest.raises(OSError, match="Read-only"):
            (root / "x").write_text("x")
        with debian.device(name) as device, device.open("r+b", 0) as file, pytest.raises(OSError, match="permitted"):
            file.write(bytes(4096))


def test_an_active_layer_can_be_mounted_read_only_beside(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as writable, debian.mount("work", read_only=True) as looking:
        (writable / "a").write_text("a")
        assert (looking / "a").read_text() == "a"
        with pytest.raises(OSError, match="Read-only"):
            (looking / "b").write_text("b")


def test_commit_of_a_mounted_layer_is_the_instant_of_the_call(debian: Store) -> None:
    debian.prepare("work", "debian")
    mounted = debian.mount("work")
    with mounted as root:
        (root / "before").write_text("before")
        debian.commit("done", "work")
        (root / "after").write_text("after")
        with pytest.raises(LayerNotFound):
            debian.stat("work")
        debian.prepare("work", "done")
        with debian.mount("work") as again:
            assert (again / "before").read_text() == "before"
            assert not (again / "after").exists()
    assert listed(debian, "done") == [("A", "/before")]
    assert {layer.name for layer in debian.walk()} == {"debian", "done", "work"}


def test_storage_committed_while_mounted_goes_with_its_last_mount(debian: Store) -> None:
    before = debian.info().pool
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        debian.commit("done", "work")
        (root / "junk").write_bytes(os.urandom(4 << 20))
        os.sync()
    debian.remove("done")
    after = debian.info().pool
    assert before is not None
    assert after is not None
    assert after.data_used == before.data_used


def test_checkpoints_go_on(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        for number in range(3):
            (root / f"file-{number}").write_text("x")
            debian.checkpoint(f"point-{number}", "work")
    assert listed(debian, "point-1") == [("A", "/file-0"), ("A", "/file-1")]
    assert listed(debian, "point-2", "point-0") == [("A", "/file-1"), ("A", "/file-2")]
    assert debian.stat("work").kind is Kind.ACTIVE


def test_a_layer_in_use_is_compared_and_exported_as_of_the_instant(debian: Store) -> None:
    before = debian.info().pool
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        (root / "a").write_text("a")
        assert listed(debian, "work") == [("A", "/a")]
        carried = io.BytesIO()
        debian.export_layer("work", carried)
        (root / "b").write_text("b")
        assert listed(debian, "work") == [("A", "/a"), ("A", "/b")]
    with tarfile.open(fileobj=io.BytesIO(carried.getvalue())) as tar:
        assert [member.name for member in tar.getmembers() if member.isfile()] == ["a"]
    debian.remove("work")
    after = debian.info().pool
    assert before is not None
    assert after is not None
    assert after.data_used == before.data_used


def test_any_two_layers_can_be_compared(debian: Store) -> None:
    for name in ("a", "b"):
        debian.prepare(f"{name}.work", "debian")
        with debian.mount(f"{name}.work") as root:
            (root / name).write_text(name)
        debian.commit(name, f"{name}.work")
    assert listed(debian, "a", "b") == [("A", "/a"), ("D", "/b")]
    assert listed(debian, "a", "a") == []


def test_a_deep_chain_reads_like_one_tree(debian: Store) -> None:
    parent = "debian"
    for level in range(40):
        debian.prepare("work", parent)
        with debian.mount("work") as root:
            (root / f"level-{level:02}").write_text(str(level))
        parent = debian.commit(f"level-{level}", "work").name
    with debian.mount(parent) as root:
        assert [name for name in sorted(os.listdir(root)) if name.startswith("level")] == [
            f"level-{level:02}" for level in range(40)
        ]


def test_export_and_import_carry_a_layer(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        (root / "etc/motd").unlink()
        (root / "data").write_bytes(os.urandom(300_000))
        os.link(root / "data", root / "link")
        os.symlink("data", root / "symlink")
    debian.commit("layer", "work")
    compressions: tuple[Compression, ...] = ("none", "gzip", "zstd", "xz")
    for compress in compressions:
        carried = io.BytesIO()
        debian.export_layer("layer", carried, compress=compress)
        carried.seek(0)
        copy = f"copy-{compress}"
        debian.import_layer(copy, carried, parent="debian")
        assert listed(debian, copy, "layer") == []


def test_a_bigger_layer_has_a_bigger_file_system(debian: Store) -> None:
    layer = debian.prepare("big", "debian", size="1G")
    assert layer.size == 1 << 30
    with debian.mount("big") as root:
        found = os.statvfs(root)
        assert found.f_blocks * found.f_frsize > 900 << 20
        assert (root / "etc/motd").exists()
    with pytest.raises(ConfigError, match="less than"):
        debian.prepare("small", "debian", size="100M")
    with pytest.raises(LayerNotFound):
        debian.stat("small")


def test_labels_and_times(debian: Store) -> None:
    layer = debian.prepare("work", "debian", labels={"a": "1"})
    assert layer.created == layer.updated
    assert layer.created.tzinfo is not None
    assert layer.labels == {"a": "1"}
    changed = debian.update_labels("work", {"b": "2"})
    assert changed.labels == {"b": "2"}
    assert changed.updated > layer.updated
    assert debian.commit("done", "work", labels={"c": "3"}).labels == {"c": "3"}


def test_usage_counts_what_is_shared_and_what_is_not(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        (root / "data").write_bytes(os.urandom(8 << 20))
    usage = debian.usage("work")
    assert usage.size >= 8 << 20
    assert usage.exclusive >= 8 << 20
    assert usage.referenced >= usage.exclusive
    pool = debian.info().pool
    debian.remove("work")
    after = debian.info().pool
    assert pool is not None
    assert after is not None
    assert pool.data_used - after.data_used == usage.exclusive


def test_private_mounts_leave_no_directory(debian: Store) -> None:
    debian.prepare("work", "debian")
    with debian.mount("work") as root:
        assert root.parent == debian.root / "mnt"
    assert os.listdir(debian.root / "mnt") == []


def test_mounting_again_on_the_same_target_is_one_mount(debian: Store, scratch: Path) -> None:
    debian.prepare("work", "debian")
    target = scratch / "target"
    target.mkdir()
    with debian.mount("work", target):
        with debian.mount("work", target) as again:
            assert (again / "etc/motd").exists()
        assert (target / "etc/motd").exists()
        assert list(debian.mounts("work")) == [target]
        assert debian.mounted() == {"work"}
        with pytest.raises(LayerInUse):
            debian.mount("debian", target)
    assert list(debian.mounts("work")) == []


def test_unmount_by_name_and_by_target(debian: Store, scratch: Path) -> None:
    target = scratch / "target"
    target.mkdir()
    debian.prepare("work", "debian")
    debian.mount("work", target)
    debian.unmount(target)
    first, second = debian.mount("work", target), debian.mount("work")
    debian.unmount("work")
    for mount in (first, second):
        with mount:
            pass
    with pytest.raises(MountError, match="not mounted"):
        debian.unmount("work")
    with pytest.raises(MountError, match="no layer"):
        debian.unmount(target)
    with pytest.raises(LayerNotFound):
        debian.unmount("nothing-of-that-name")


def test_bad_mount_targets(debian: Store, scratch: Path) -> None:
    debian.prepare("work", "debian")
    with pytest.raises(MountError, match="does not exist"):
        debian.mount("work", scratch / "missing")
    (scratch / "file").write_text("")
    with pytest.raises(MountError, match="not a directory"):
        debian.mount("work", scratch / "file")
    with debian.mount("work") as root:
        holder = subprocess.Popen(["sleep", "60"], cwd=root)
        with pytest.raises(LayerInUse, match="busy"):
            debian.unmount("work")
        holder.kill()
        holder.wait()


def test_what_is_in_use_is_not_removed(debian: Store) -> None:
    debian.prepare("work", "debian")
    with pytest.raises(LayerInUse, match="work"):
        debian.remove("debian")
    with debian.mount("work") as root, pytest.raises(LayerInUse, match=str(root)):
        debian.remove("work")
    with debian.device("work"), pytest.raises(LayerInUse, match="open"):
        debian.remove("work")
    debian.remove("work")
    debian.remove("debian")
    assert list(debian.walk()) == []


def test_kinds_are_kept(debian: Store) -> None:
    debian.prepare("work", "debian")
    debian.view("look", "debian")
    with pytest.raises(WrongKind, match="active"):
        debian.prepare("x", "work")
    with pytest.raises(WrongKind, match="view"):
        debian.prepare("x", "look")
    for name in ("look", "debian"):
        with pytest.raises(WrongKind):
            debian.commit("x", name)
        with pytest.raises(WrongKind):
            debian.checkpoint("x", name)
    with pytest.raises(LayerNotFound):
        debian.commit("x", "missing")
    with pytest.raises(LayerNotFound):
        debian.prepare("x", "missing")
    with pytest.raises(LayerExists):
        debian.prepare("debian")
    with pytest.raises(LayerExists):
        debian.commit("debian", "work")
    for name in ("", "..", "a//b", "-x", "/x", "a b", "x" * 256):
        with pytest.raises(InvalidName):
            debian.prepare(name)
    assert {layer.name for layer in debian.walk()} == {"debian", "work", "look"}


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08\x00cut"])
def test_a_refused_import_leaves_nothing(debian: Store, data: bytes) -> None:
    before = debian.info()
    with pytest.raises(ArchiveError):
        debian.import_layer("bad", io.BytesIO(data))
    whole = archive({"file": b"x" * 100_000}).getvalue()
    with pytest.raises(ArchiveError):
        debian.import_layer("bad", io.BytesIO(whole[:50_000]), parent="debian")
    after = debian.info()
    assert before.layers == after.layers
    assert before.pool is not None
    assert after.pool is not None
    assert after.pool.data_used == before.pool.data_used
    debian.import_layer("bad", io.BytesIO(whole))


def test_everything_is_there_after_down_and_up(debian: Store) -> None:
    debian.prepare("work", "debian")
    debian.mount("work")
    root, options = debian.root, debian.info().options
    usage = debian.usages()
    debian.down()
    assert debian.usages() == usage
    info = debian.info()
    assert info.pool is not None
    assert info.pool.mode == "inactive"
    assert [layer.name for layer in debian.walk()] == ["debian", "work"]
    debian.close()
    with Store.open(root) as again:
        assert again.driver == "devicemapper"
        assert again.info().options == options
        with again.mount("work") as mounted:
            assert (mounted / "etc/motd").read_text() == "hello\n"
        again.down()


def test_a_file_system_with_a_dirty_journal_can_be_committed(debian: Store, scratch: Path) -> None:
    """A microVM that is killed leaves its device without having unmounted it."""
    debian.prepare("vm", "debian")
    target = scratch / "vm"
    target.mkdir()
    with debian.device("vm") as device:
        subprocess.run(["mount", "-t", "ext4", device, target], check=True)
        (target / "written").write_text("by the vm")
        os.sync()
        debian.checkpoint("clean", "vm")
        image = scratch / "image"
        subprocess.run(["dd", f"if={device}", f"of={image}", "bs=1M", "conv=sparse", "status=none"], check=True)
        subprocess.run(["umount", target], check=True)
        subprocess.run(["dd", f"if={image}", f"of={device}", "bs=1M", "conv=fsync", "status=none"], check=True)
    debian.commit("crashed", "vm")
    with debian.mount("crashed") as root:
        assert (root / "written").read_text() == "by the vm"
    assert listed(debian, "clean", "debian") == [("A", "/written")]


def prepare_many(root: Path, worker: int) -> None:
    with Store.open(root) as store:
        for number in range(10):
            name = f"w{worker}-{number}"
            store.prepare(name, "debian")
            with store.mount(name) as mounted:
                (mounted / name).write_text(name)
            store.commit(f"{name}-done", name)
            if number % 2:
                store.remove(f"{name}-done")


def test_processes_and_threads_share_a_store(debian: Store) -> None:
    script = f"from {__name__} import prepare_many; import sys; prepare_many(sys.argv[1], int(sys.argv[2]))"
    workers = [subprocess.Popen(["python", "-c", script, debian.root, str(number)]) for number in range(2)]
    threads = [threading.Thread(target=prepare_many, args=(debian.root, number)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [worker.wait() for worker in workers] == [0, 0]
    assert len(list(debian.walk())) == 1 + 4 * 5


def test_one_store_value_serves_threads(debian: Store) -> None:
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(5):
                name = f"t{worker}-{number}"
                debian.prepare(name, "debian")
                with debian.mount(name) as root:
                    (root / name).write_text(name)
                debian.remove(name)
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [layer.name for layer in debian.walk()] == ["debian"]


def test_run_gives_the_command_s_status(store: Store) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    store.import_layer("tools", _busybox_layer(busybox))
    store.prepare("job", "tools")
    assert store.run("job", ["/bin/sh", "-c", "echo inside >/file; exit 7"]) == 7
    assert store.run("job", ["/missing"]) == 127
    assert store.run("job", ["/etc"]) == 126
    assert store.run("job", ["sh", "-c", "kill -9 $$"]) == 137
    assert store.run("job", ["sh", "-c", "test -c /dev/null && test -d /proc/self && test $$ -lt 10"]) == 0
    assert store.run("job", ["sh", "-c", "exit 125"]) == 125
    assert store.run("job", ["sh", "-c", "kill -PIPE $$; exit 0"]) == 128 + signal.SIGPIPE
    with pytest.raises(MountError, match="entered"):
        store.run("job", ["true"], cwd="/missing")
    assert listed(store, "job") == [("A", "/file")]
    assert store.run("tools", ["sh", "-c", "echo x >/file"]) != 0


def test_a_command_dies_with_the_process_that_runs_it(store: Store) -> None:
    store.import_layer("tools", _busybox_layer(Path("/bin/busybox").read_bytes()))
    store.prepare("job", "tools")
    script = "import sys; from thinpool import Store; Store.open(sys.argv[1]).run('job', ['sh', '-c', sys.argv[2]])"
    endless = "trap : TERM; echo ready; while :; do :; done"
    runner = subprocess.Popen(["python", "-c", script, store.root, endless], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    runner.kill()
    runner.wait()
    assert runner.stdout.read() == ""  # the end of the file comes when the last process that could write is gone
    runner.stdout.close()
    limit = time.monotonic() + 30
    while True:  # the kernel takes the namespace's mounts down after its last process, and tells nobody
        try:
            store.remove("job")
            break
        except LayerInUse:
            assert time.monotonic() < limit
            time.sleep(0.02)
    assert store.layer_of(store._session.record("tools").handle).name == "tools"
    with pytest.raises(LayerNotFound):
        store.layer_of(9_999)


def _busybox_layer(busybox: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        member = tarfile.TarInfo("bin/sh")
        member.size, member.mode = len(busybox), 0o755
        tar.addfile(member, io.BytesIO(busybox))
        for applet in ("test", "kill", "echo"):
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "sh"
            tar.addfile(member)
    out.seek(0)
    return out
