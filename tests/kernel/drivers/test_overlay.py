"""What is particular to the overlay driver; what it has in common with the others is tested for all of them."""

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.drivers.conftest import disk, run
from tests.kernel.layer.trees import expected_changes, survey
from thinpool import Kind, Store
from thinpool.drivers import overlay as driver
from thinpool.drivers import selection
from thinpool.drivers.branches import name_of
from thinpool.drivers.stacking import Stack
from thinpool.errors import ConfigError, DriverUnsupported, LayerInUse, MountError, PoolFull
from thinpool.filesystem import syscalls

pytestmark = pytest.mark.kernel


def uppers(store: Store) -> Path:
    return store.root / "overlay" / "d"


def upper(store: Store, name: str) -> Path:
    record = store._session.record(name)
    return uppers(store) / name_of(record.handle)


def nothing_is_left(store: Store) -> None:
    directory = store.root / "overlay"
    assert sorted(path.name for path in (directory / "d").iterdir()) == ["0"]
    for part in "pwt":
        assert list((directory / part).iterdir()) == []


def commit(store: Store, name: str, parent: str | None = None, **files: str) -> None:
    store.prepare(f"{name}.work", parent)
    with store.mount(f"{name}.work") as root:
        for path, text in files.items():
            (root / path).write_text(text)
    store.commit(name, f"{name}.work")


def test_an_empty_layer_is_an_empty_directory_of_root(overlay: Store) -> None:
    overlay.prepare("empty")
    with overlay.mount("empty") as root:
        status = root.stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o755, 0, 0)
        assert list(root.iterdir()) == []
        assert os.listxattr(root) == []
    overlay.commit("base", "empty")
    with overlay.mount("base") as root:
        assert list(root.iterdir()) == []
    overlay.remove("base")
    nothing_is_left(overlay)


def test_a_child_has_its_parents_root_directory(overlay: Store) -> None:
    overlay.prepare("work")
    with overlay.mount("work") as root:
        os.chown(root, 7, 8)
        root.chmod(0o1750)
        os.setxattr(root, "trusted.mine", b"x")
        os.utime(root, ns=(5, 6))
    overlay.commit("base", "work")
    overlay.view("view", "base")
    with overlay.mount("base") as base, overlay.mount("view") as view:
        for root in (base, view):
            status = root.stat()
            assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns) == (0o1750, 7, 8, 6)
            assert os.getxattr(root, "trusted.mine") == b"x"
    assert list(overlay.changes("view")) == []


@pytest.mark.parametrize("depth", [3, 130])
def test_whiteouts_and_directories_made_again_through_many_layers(overlay: Store, depth: int) -> None:
    expected = build_chain(overlay, depth)
    assert contents(overlay, f"l{depth - 1}") == expected
    assert [(change.kind, change.path) for change in overlay.changes(f"l{depth - 1}", "l0", method="fast")] == [
        (change.kind, change.path) for change in overlay.changes(f"l{depth - 1}", "l0", method="walk")
    ]


def build_chain(store: Store, depth: int) -> dict[str, str]:
    """Each layer adds a file, removes the one before the last, and makes a directory anew; what is there at the end."""
    expected: dict[str, str] = {}
    for number in range(depth):
        store.prepare("work", f"l{number - 1}" if number else None)
        with store.mount("work") as root:
            (root / f"f{number}").write_text(str(number))
            expected[f"f{number}"] = str(number)
            if number >= 2:
                (root / f"f{number - 2}").unlink()
                del expected[f"f{number - 2}"]
            if number % 7 == 3:
                for path in sorted(expected):
                    if path.startswith("again/"):
                        (root / path).unlink()
                        del expected[path]
                if (root / "again").exists():
                    (root / "again").rmdir()
                (root / "again").mkdir()
            if number % 7 in {3, 4}:
                (root / "again" / str(number)).write_text("x")
                expected[f"again/{number}"] = "x"
        store.commit(f"l{number}", "work")
    return expected


def contents(store: Store, name: str) -> dict[str, str]:
    with store.mount(name) as root:
        return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.timeout(300)
def test_six_hundred_layers(ext4: Path) -> None:
    with Store.open(ext4 / "deep", "overlay") as store:
        expected = build_chain(store, 600)
        assert contents(store, "l599") == expected
        assert contents(store, "l498").keys() >= {"f498", "f497"}
        pressed = [path.name for path in uppers(store).iterdir() if path.name.endswith("+")]
        assert len(pressed) == 1
        store.prepare("more", "l599")
        with store.mount("more") as root:
            (root / "f599").unlink()
        assert [(c.kind, c.path) for c in store.changes("more", method="fast")] == [("D", "/f599")]
        below_and_above = store.changes("more", "l450", method="fast")
        assert below_and_above.entries == store.changes("more", "l450", method="walk").entries
        store.remove("more")
        for number in reversed(range(600)):
            store.remove(f"l{number}")
        nothing_is_left(store)
        store.down()


def test_pressed_layers_are_what_they_were(overlay: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many layers became one: hard links, types that changed, opaque directories, attributes."""
    monkeypatch.setattr(overlay._session.driver._branches, "_most", 5)  # type: ignore[attr-defined]
    commit(overlay, "l0", None, kept="0", gone="0", file="0")
    for number in range(1, 14):
        overlay.prepare("work", f"l{number - 1}")
        with overlay.mount("work") as root:
            (root / f"only{number}").write_text("x" * number)
            os.link(root / f"only{number}", root / f"link{number}")
            if number == 2:
                (root / "gone").unlink()
                (root / "file").unlink()
                (root / "file").mkdir()
                (root / "file" / "inside").symlink_to("nowhere")
            if number == 4:
                os.setxattr(root / "file", "trusted.t", b"4")
                os.mkfifo(root / "file" / "fifo", 0o640)
                (root / "gone").mkdir()
                os.utime(root / "kept", ns=(1, 2))
            if number == 6:
                (root / "file" / "fifo").unlink()
                os.chown(root / "file", 3, 4)
                (root / "link5").write_text("broken off")
        overlay.commit(f"l{number}", "work")
        older, newer = f"l{number - 1}", f"l{number}"
        with overlay.mount(older) as old, overlay.mount(newer) as new:
            expected = expected_changes(survey(old), survey(new))
        assert list(overlay.changes(newer, older, method="fast")) == expected
        assert list(overlay.changes(newer, older, method="walk")) == expected
    assert sum(path.name.endswith("+") for path in uppers(overlay).iterdir()) >= 2
    with overlay.mount("l13") as root:
        assert (root / "file").stat().st_uid == 3
        assert os.getxattr(root / "file", "trusted.t") == b"4"
        assert sorted(os.listdir(root / "file")) == ["inside"]
        assert os.listdir(root / "gone") == []
        assert (root / "kept").stat().st_mtime_ns == 2
        assert (root / "only5").read_text() == "xxxxx"
        assert (root / "only7").stat().st_ino == (root / "link7").stat().st_ino


def test_hard_links_broken_by_writing_are_changes_of_all_names(overlay: Store) -> None:
    overlay.prepare("work")
    with overlay.mount("work") as root:
        (root / "dir").mkdir()
        (root / "a").write_text("same")
        for name in ("b", "dir/c"):
            os.link(root / "a", root / name)
        (root / "lone").write_text("same")
    overlay.commit("base", "work")
    overlay.prepare("child", "base")
    with overlay.mount("child") as root:
        (root / "b").chmod(0o600)
        (root / "b").chmod(0o644)
    changes = overlay.changes("child", method="fast")
    assert [(change.kind, change.path) for change in changes] == [("C", "/a"), ("C", "/b"), ("C", "/dir/c")]
    assert changes.entries == overlay.changes("child", method="walk").entries


def test_a_directory_made_again_has_lost_what_was_in_it(overlay: Store) -> None:
    overlay.prepare("work")
    with overlay.mount("work") as root:
        (root / "dir").mkdir()
        (root / "dir" / "old").touch()
    overlay.commit("base", "work")
    overlay.prepare("child", "base")
    with overlay.mount("child") as root:
        (root / "dir" / "old").unlink()
        (root / "dir").rmdir()
        (root / "dir").mkdir()
    changes = overlay.changes("child", method="fast")
    assert [(change.kind, change.path) for change in changes] == [("D", "/dir/old")]


def test_an_export_has_nothing_of_the_driver_in_it(overlay: Store) -> None:
    commit(overlay, "base", None, gone="x")
    overlay.prepare("child", "base")
    with overlay.mount("child") as root:
        (root / "gone").unlink()
        (root / "gone").mkdir()
        (root / "gone" / "new").touch()
    out = io.BytesIO()
    overlay.export_layer("child", out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        members = archive.getmembers()
    assert [member.name.rstrip("/") for member in members if member.name.strip("./")] == ["gone", "gone/new"]
    assert not any("overlay" in key for member in members for key in member.pax_headers)


# -- layers in use


def test_two_mounts_of_an_active_layer_are_one_file_system(overlay: Store) -> None:
    overlay.prepare("work")
    with overlay.mount("work") as first, overlay.mount("work", read_only=True) as second:
        (first / "new").write_text("seen at once")
        assert (second / "new").read_text() == "seen at once"
        with pytest.raises(OSError, match="Read-only"):
            (second / "other").touch()
        with overlay.mount("work") as third:
            (third / "third").touch()
        assert (first / "third").exists()


@contextlib.contextmanager
def elsewhere() -> Iterator[int]:
    """A process with a mount namespace of its own, a copy of ours: its number."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def test_a_layer_mounted_elsewhere_is_the_same_here_and_in_use(overlay: Store, scratch: Path) -> None:
    """A process in a mount namespace of its own has the layer; ours has not."""
    overlay.prepare("work")
    mount = overlay.mount("work", scratch)
    with contextlib.ExitStack() as held:
        with mount as root:
            there = Path(f"/proc/{held.enter_context(elsewhere())}/root") / root.relative_to("/")
            (root / "before").touch()
        with pytest.raises(LayerInUse):
            overlay.remove("work")
        with overlay.mount("work", read_only=True) as root:
            with pytest.raises(OSError, match="Read-only"):
                (root / "refused").touch()
            (there / "after").touch()
            assert sorted(os.listdir(root)) == ["after", "before"]
        overlay.checkpoint("point", "work")
        assert contents(overlay, "point").keys() == {"after", "before"}
    overlay.remove("point")
    overlay.remove("work")
    nothing_is_left(overlay)


def test_an_immutable_layer_mounted_elsewhere_is_not_removed(overlay: Store, scratch: Path) -> None:
    commit(overlay, "base", None, f="x")
    with contextlib.ExitStack() as held:
        with overlay.mount("base", scratch):
            held.enter_context(elsewhere())
        with pytest.raises(LayerInUse):
            overlay.remove("base")
        with pytest.raises(LayerInUse):
            overlay.down()
    overlay.remove("base")
    nothing_is_left(overlay)


def test_a_mount_that_was_detached_while_a_file_was_open_is_known(overlay: Store) -> None:
    overlay.prepare("work")
    mount = overlay.mount("work")
    with open(mount.target / "file", "w") as file:
        syscalls.umount(str(mount.target), syscalls.MNT_DETACH)
        with pytest.raises(LayerInUse):
            overlay.remove("work")
        with pytest.raises(LayerInUse, match="open"):
            overlay.mount("work")
        overlay.commit("done", "work")
        file.write("belongs to no layer")
    overlay.up()
    with overlay.mount("done") as root:
        assert (root / "file").read_text() == ""
    overlay.remove("done")
    nothing_is_left(overlay)


def test_what_is_looked_into_is_not_removed(overlay: Store) -> None:
    """A comparison that takes long, of layers that no mount table shows."""
    commit(overlay, "base", None, f="x")
    with (
        Store.open(overlay.root) as other,
        other._session.locks.use(other._session.record("base").handle),
        pytest.raises(LayerInUse),
    ):
        overlay.remove("base")
    overlay.remove("base")


def test_commit_while_mounted_takes_the_state_of_the_instant(overlay: Store) -> None:
    commit(overlay, "base", None, old="old", gone="gone")
    overlay.prepare("work", "base")
    with overlay.mount("work") as root:
        (root / "old").write_text("new")
        (root / "gone").unlink()
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
            file.seek(512 << 10)
            file.write(b"data")
        os.mknod(root / "device", 0o20600, os.makedev(1, 3))
        os.link(root / "sparse", root / "link")
        before = survey(root)
        overlay.commit("done", "work")
        (root / "late").touch()
        (root / "old").write_text("later")
    with overlay.mount("done") as root:
        after = survey(root)
        assert {path: entry.what for path, entry in after.items()} == {p: e.what for p, e in before.items()}
        assert after[b"/sparse"].inode == after[b"/link"].inode
        assert (root / "sparse").stat().st_blocks * 512 < 1 << 18
    with pytest.raises(LayerInUse):
        overlay.remove("base")
    for name in ("done", "base"):
        overlay.remove(name)
    nothing_is_left(overlay)


def test_a_copy_during_which_somebody_writes_is_refused(overlay: Store) -> None:
    overlay.prepare("work")
    with overlay.mount("work") as root:
        for number in range(300):
            (root / str(number)).write_text("x" * 1000)
        ended = threading.Event()

        def write() -> None:
            while not ended.is_set():
                (root / "0").write_text("y")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with pytest.raises(LayerInUse, match="written to all the time"):
                overlay.checkpoint("point", "work")
        finally:
            ended.set()
            writer.join()
        assert [layer.name for layer in overlay.walk()] == ["work"]
        overlay.checkpoint("point", "work")
    assert contents(overlay, "point")["0"] == "y"


# -- options


def test_a_volatile_layer_is_committed_durably_and_refused_after_a_stop(ext4: Path) -> None:
    with Store.open(ext4 / "volatile", "overlay", {"overlay.mountopt": "volatile,nodev"}) as store:
        store.prepare("work")
        with store.mount("work") as root:
            (root / "f").write_text("x")
            table = Path("/proc/self/mountinfo").read_text()
            line = next(line for line in table.splitlines() if f" {root} " in line)
            assert "nodev" in line
            assert line.endswith(("volatile", "fsync=volatile"))
        with store.mount("work") as root:
            assert (root / "f").read_text() == "x"
        store.checkpoint("point", "work")
        store.mount("work").__exit__(None, None, None)
        note = store.root / "overlay" / "w" / upper(store, "work").name / "volatile"
        assert note.is_symlink()
        note.unlink()
        note.symlink_to("another boot")
        for attempt in (lambda: store.mount("work"), lambda: store.commit("done", "work")):
            with pytest.raises(MountError, match="cannot be trusted"):
                attempt()
        store.remove("work")
        store.prepare("work")
        with store.mount("work") as root:
            (root / "f").write_text("x")
        store.commit("done", "work")
        store.remove("done")
        store.remove("point")
        nothing_is_left(store)
        store.down()


def test_user_attributes_instead_of_trusted_ones(ext4: Path) -> None:
    options = {"overlay.mountopt": "userxattr"}
    with Store.open(ext4 / "user", "overlay", options) as store:
        commit(store, "base", None, f="x")
        store.prepare("work", "base")
        with store.mount("work") as root:
            (root / "f").unlink()
            (root / "f").mkdir()
        assert os.getxattr(upper(store, "work") / "f", "user.overlay.opaque") == b"y"
        assert [(c.kind, c.path) for c in store.changes("work", method="fast")] == [("C", "/f")]
        store.down()
    with pytest.raises(ConfigError, match="userxattr is fixed"):
        Store.open(ext4 / "user", options={"overlay.mountopt": ""})


def test_a_size_is_a_limit_where_there_are_project_quotas() -> None:
    kinds = [
        (("mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"), "prjquota"),
        (("mkfs.xfs", "-q", "-f"), "pquota"),
    ]
    for mkfs, options in kinds:
        with disk(*mkfs, options=options) as place:
            with Store.open(place / "store", "overlay", {"overlay.size": "8M"}) as store:
                assert store.prepare("work").size == 8 << 20
                with store.mount("work") as root:
                    with pytest.raises(OSError, match=r"quota|No space"):
                        fill(root / "big", 12)
                    (root / "big").unlink()
                    fill(root / "big", 6)
                store.commit("base", "work")
                assert store.prepare("larger", "base", size="16M").size == 16 << 20
                with store.mount("larger") as root:
                    fill(root / "more", 8)
                    assert (root / "big").stat().st_size == 6 << 20
                    (root / "dir").mkdir()
                    (root / "big").rename(root / "dir" / "big")
                store.down()
            with pytest.raises(ConfigError, match="can only grow"):
                Store.open(place / "store", options={"overlay.size": "4M"})


def fill(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(b"x" * (1 << 20))
        os.fsync(file.fileno())


def test_a_size_without_quotas_is_refused(overlay: Store, ext4: Path) -> None:
    with pytest.raises(ConfigError, match="project quotas"):
        overlay.prepare("work", size="1G")
    with pytest.raises(ConfigError, match="project quotas"):
        Store.open(ext4 / "sized", "overlay", {"overlay.size": "1G"})
    assert not (ext4 / "sized").exists()


def test_a_full_file_system_is_a_full_pool() -> None:
    with disk("mkfs.ext4", "-q", "-F", "-m", "0", size=24 << 20) as place, Store.open(place / "s", "overlay") as store:
        store.prepare("work")
        with store.mount("work") as root:
            with pytest.raises(OSError, match="No space"):
                fill(root / "big", 40)
            with pytest.raises(PoolFull):
                store.checkpoint("point", "work")
            with pytest.raises(OSError, match="No space"):
                fill(root / "more", 4)
        assert [layer.name for layer in store.walk()] == ["work"]
        store.remove("work")
        nothing_is_left(store)
        store.down()


# -- usage


def test_usage_is_what_the_directories_occupy(overlay: Store) -> None:
    commit(overlay, "base", None, big="x" * 100_000)
    commit(overlay, "child", "base", small="x")
    base, child = overlay.usage("base"), overlay.usage("child")
    assert 100_000 <= base.size == base.exclusive == base.referenced
    assert base.inodes == 2
    assert child.size < 20_000
    assert child.referenced == base.size + child.size
    assert overlay.usages() == {"base": base, "child": child}
    assert overlay.stat("base").size == 0


# -- what cannot be


def test_a_file_system_that_cannot_carry_layers_is_named(scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ["LAB_OUT"]) as out:  # of the machine, where no devices can be made
        with pytest.raises(DriverUnsupported, match=r"hostfs|9p"):
            Store.open(Path(out) / "store", "overlay")
        assert os.listdir(out) == []
    for name in ("lower", "upper", "work", "merged"):
        (scratch / name).mkdir()
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    syscalls.mount("overlay", str(scratch / "merged"), "overlay", 0, options)
    try:
        reason = selection.reason_against("overlay", scratch / "merged" / "store")
        assert reason is not None
        assert "overlay" in reason
        assert list((scratch / "merged").iterdir()) == []
    finally:
        syscalls.umount(str(scratch / "merged"))


def test_a_root_with_special_characters(scratch: Path) -> None:
    with Store.open(scratch / "a,b:c\\d=e \n", "overlay") as store:
        commit(store, "base", None, f="x")
        assert contents(store, "base") == {"f": "x"}
        store.down()


def test_a_directory_removed_behind_our_back_is_told(overlay: Store) -> None:
    commit(overlay, "base", None, f="x")
    commit(overlay, "child", "base", g="x")
    run("rm", "-r", str(upper(overlay, "base")))
    with pytest.raises(MountError, match="missing"):
        overlay.mount("child")
    with pytest.raises(MountError, match="missing"):
        overlay.prepare("more", "base")
    overlay.remove("child")
    overlay.remove("base")
    nothing_is_left(overlay)


# -- killed


@pytest.fixture
def killed_store(ext4: Path) -> Iterator[Store]:
    with Store.open(ext4 / "killed", "overlay") as store:
        commit(store, "base", None, f="x", g="y")
        yield store
        store.down()
    run("rm", "-r", str(ext4 / "killed"))


KILLED_AT = {
    "create": ("mkdir", "fchmod", "fsync", "symlink"),
    "snapshot": ("symlink", "mkdir", "utime", "fsync"),
    "delete": ("unlink", "rmdir", "fsync"),
}


@pytest.mark.parametrize("work", KILLED_AT)
def test_killed_at_each_step(killed_store: Store, work: str) -> None:
    """The process ends itself before its n-th call of a function, for each n until it comes to the end."""
    script = f"from {__name__} import die_at; import sys; die_at(*sys.argv[1:])"
    for function in KILLED_AT[work]:
        for number in range(1, 40):
            done = subprocess.run(
                [sys.executable, "-c", script, str(killed_store.root), work, function, str(number)], check=False
            )
            with Store.open(killed_store.root) as again:
                again.up()
                for layer in list(again.walk()):
                    if layer.kind is Kind.ACTIVE or layer.name.startswith("new"):
                        again.remove(layer.name)
                names = sorted(path.name for path in (again.root / "overlay/d").iterdir())
                assert names == sorted(["0", upper(again, "base").name])
                assert list((again.root / "overlay/t").iterdir()) == []
                assert contents(again, "base") == {"f": "x", "g": "y"}
            if done.returncode == 0:
                break
            assert done.returncode == -9
        else:
            pytest.fail("it never came to its end")


def die_at(root: str, work: str, function: str, number: str) -> None:
    """Do some work, and be killed before the n-th call of a function of the system."""
    with Store.open(root) as store:
        store.up()
        if work != "create":
            store.prepare("new", "base")
            with store.mount("new") as mounted:
                (mounted / "f").write_text("changed")
                (mounted / "dir").mkdir()
                os.link(mounted / "f", mounted / "dir" / "link")
        left = [int(number)]
        real = getattr(os, function)

        def counted(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
            return real(*arguments, **named)

        setattr(os, function, counted)
        if work == "create":
            store.prepare("new", "base")
        elif work == "snapshot":
            store.checkpoint("new2", "new")
        else:
            store.remove("new")


def test_nothing_is_mounted_when_a_mount_of_many_layers_is_over(ext4: Path) -> None:
    """The mount namespace of the moment keeps no copy of other mounts, which would keep their layers in use."""
    with Store.open(ext4 / "moment", "overlay") as store:
        store.prepare("other")
        with store.mount("other"):
            names = [f"empty{number}" for number in range(200)]
            for name in names:
                (uppers(store) / name).mkdir()
            stack = Stack("none", names)
            union = driver.Overlay()
            assert len(":".join(union.lowers(stack))) > driver._STRING_MAX
            os.close(union.mount(store.root / "overlay", stack))
        store.remove("other")
        store.down()
