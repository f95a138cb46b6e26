"""Volumes: seen inside a mounted layer, in nothing that is committed, and gone with the mount."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_store import archive
from thinpool import Store, Volume
from thinpool.errors import LayerInUse, LayerNotFound, MountError
from thinpool.filesystem.mounts import mount_table

pytestmark = pytest.mark.kernel


@pytest.fixture
def work(store: Store) -> Store:
    """A store with an active layer `work`."""
    store.import_layer("base", archive({"etc/motd": b"hello\n", "var/cache/old": b"old"}))
    store.prepare("work", "base")
    return store


@pytest.fixture
def source(scratch: Path) -> Iterator[Path]:
    """A directory of the host with a file, and another file system mounted below it."""
    folder = scratch / "source"
    (folder / "below").mkdir(parents=True)
    (folder / "file").write_text("of the host")
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "below"], check=True)
    (folder / "below" / "deep").write_text("deep")
    yield folder
    subprocess.run(["umount", folder / "below"], check=True)


@pytest.fixture
def target(scratch: Path) -> Path:
    folder = scratch / "target"
    folder.mkdir()
    return folder


def paths(store: Store, name: str) -> list[str]:
    return [f"{change.kind} {change.path}" for change in store.changes(name)]


def mounted_below(folder: Path) -> list[Path]:
    return [entry.target for entry in mount_table() if entry.target.is_relative_to(folder)]


def test_what_is_in_a_volume_is_in_no_layer(work: Store, source: Path, target: Path) -> None:
    volumes = [Volume(source, "/var/cache"), Volume(source / "file", "/made/for/it", read_only=True)]
    with work.mount("work", target, volumes=volumes) as root:
        assert (root / "var/cache/below/deep").read_text() == "deep"
        (root / "var/cache/new").write_text("by the layer")
        assert (root / "made/for/it").read_text() == "of the host"
        with pytest.raises(OSError, match="Read-only"):
            (root / "made/for/it").write_text("no")
        (root / "etc/own").write_text("own")
        made = ["A /etc/own", "A /made", "A /made/for", "A /made/for/it"]
        assert paths(work, "work") == made
        work.checkpoint("instant", "work")
        assert paths(work, "instant") == made
        work.commit("done", "work")
    assert mounted_below(target) == []
    assert (source / "new").read_text() == "by the layer"
    assert paths(work, "done") == made
    with work.mount("done") as root:
        assert (root / "made/for/it").read_bytes() == b""
        assert os.listdir(root / "var/cache") == ["old"]


def test_volumes_are_read_only_all_the_way_down(work: Store, source: Path, target: Path) -> None:
    with work.mount("work", target, volumes=[Volume(source, "/mnt", read_only=True)]) as root:
        for path in ("mnt/file", "mnt/below/deep"):
            with pytest.raises(OSError, match="Read-only"):
                (root / path).write_text("no")


def test_mounts_made_in_a_volume_do_not_come_out(work: Store, source: Path, target: Path) -> None:
    subprocess.run(["mount", "--make-shared", source / "below"], check=True)
    with work.mount("work", target, volumes=[Volume(source, "/mnt")]) as root:
        inner = root / "mnt/below/inner"
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
        assert not (source / "below/inner").is_mount()
        subprocess.run(["umount", inner], check=True)


@pytest.mark.parametrize("by", ["leaving", "name", "target", "down"])
def test_every_way_out_unmounts_them(work: Store, source: Path, target: Path, by: str) -> None:
    mount = work.mount("work", target, volumes=[Volume(source, "/a"), Volume(source, "/a/below"), Volume(source, "/b")])
    assert len(mounted_below(target)) == 7
    match by:
        case "leaving":
            with mount:
                pass
        case "name":
            work.unmount("work")
        case "target":
            work.unmount(target)
        case _:
            work.down()
    assert mounted_below(target) == []


def test_a_volume_in_use_keeps_all_as_it_was(work: Store, source: Path, target: Path) -> None:
    with work.mount("work", target, volumes=[Volume(source, "/a"), Volume(source, "/b")]) as root:
        before = sorted(mounted_below(target))
        for busy in ("a/file", "b/below/deep", "etc/motd"):
            with (root / busy).open(), pytest.raises(LayerInUse, match="busy"):
                work.unmount("work")
            assert sorted(mounted_below(target)) == before
            assert (root / "b/below/deep").read_text() == "deep"


def test_the_list_is_on_record_and_others_take_it(work: Store, source: Path, target: Path) -> None:
    own = Volume(source / "below", "/b")
    with work.mount("work", target, volumes=[Volume(source, "/a", read_only=True)]):
        pass
    assert work.stat("work").volumes == (Volume(source, "/a", read_only=True),)
    work.prepare("other", "base")
    with work.mount("other", target, volumes=[own], volumes_from=["work"]) as root:
        assert (root / "a/file").exists()
        assert (root / "b/deep").exists()
    assert set(work.stat("other").volumes) == {own, Volume(source, "/a", read_only=True)}
    with work.mount("other", target) as root:
        assert not (root / "a/file").exists()
    with pytest.raises(LayerNotFound):
        work.mount("other", target, volumes_from=["nobody"])


def test_links_in_the_layer_lead_nowhere_out(work: Store, source: Path, target: Path, scratch: Path) -> None:
    outside = scratch / "outside"
    outside.mkdir()
    with work.mount("work") as root:
        (root / "away").symlink_to(outside)
        (root / "up").symlink_to("../../../../../../etc")
        (root / "loop").symlink_to("loop")
    for place in ("/away", "/away/x"):
        with pytest.raises(MountError, match="leads nowhere"):
            work.mount("work", target, volumes=[Volume(source, place)])
    with pytest.raises(MountError, match="symbolic links"):
        work.mount("work", target, volumes=[Volume(source, "/loop/x")])
    with work.mount("work", target, volumes=[Volume(source, "/up/x")]) as root:
        assert (root / "etc/x/file").exists()
    assert list(outside.iterdir()) == []
    assert not Path("/etc/x").exists()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("missing", "/x"), "volume source .*missing: No such file"),
        (("", "/etc/motd"), "/etc/motd: a directory can be mounted on a directory only"),
        (("file", "/etc"), "/etc: a directory can be .* a file on a file"),
        (("", "/etc/motd/x"), "/etc/motd/x: Not a directory"),
        (("", "/root-link"), "root directory"),
    ],
)
def test_a_failure_leaves_all_as_it_was(
    work: Store, source: Path, target: Path, bad: tuple[str, str], reason: str
) -> None:
    with work.mount("work") as root:
        (root / "root-link").symlink_to("/")
    before = paths(work, "work")
    volumes = [Volume(source, "/new/place"), Volume(source / "file", "/new/file"), Volume(source / bad[0], bad[1])]
    with pytest.raises(MountError, match=reason):
        work.mount("work", target, volumes=volumes)
    with pytest.raises(MountError, match=reason):
        work.run("work", ["true"], volumes=volumes)
    assert mounted_below(target) == []
    assert paths(work, "work") == before
    assert work.stat("work").volumes == ()
    work.remove("work")


def test_a_read_only_layer_has_to_have_the_target(work: Store, source: Path, target: Path) -> None:
    with work.mount("base", target, volumes=[Volume(source, "/var/cache")]) as root:
        assert (root / "var/cache/file").exists()
    with pytest.raises(MountError, match="/new: Read-only"):
        work.mount("base", target, volumes=[Volume(source, "/new")])


def test_a_mount_without_them_is_not_taken_for_one_with(work: Store, source: Path, target: Path) -> None:
    with work.mount("work", target):
        with pytest.raises(LayerInUse, match="without 1 of the volumes"):
            work.mount("work", target, volumes=[Volume(source, "/a")])
        assert work.stat("work").volumes == ()
    with work.mount("work", target, volumes=[Volume(source, "/a")]):
        work.mount("work", target, volumes=[Volume(source, "/a")])


def test_one_who_dies_mounting_leaves_nothing_else(work: Store, source: Path, target: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from thinpool import Store, Volume\n"
        "from thinpool.filesystem import mounts\n"
        "mounts.attach = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "root, source, target = sys.argv[1:]\n"
        "Store.open(root).mount('work', target, volumes=[Volume(source, '/a')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, work.root, source, target], check=False)
    assert done.returncode == -9
    assert mounted_below(target) == []
    with work.mount("work", target, volumes=[Volume(source, "/a")]) as root:
        assert (root / "a/file").exists()
    work.remove("work")
