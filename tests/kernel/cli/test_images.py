"""Images by the command line, limits by option, and what becomes of an archive whose other end goes away."""

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.cli.conftest import Cli
from tests.unit.layer.tars import archive, entry, header
from tests.unit.oci.layouts import Made, layer_tar, sha256, simple
from thinpool.filesystem import syscalls

pytestmark = pytest.mark.kernel


@pytest.fixture
def small_disk(scratch: Path) -> Iterator[Path]:
    """A file system with room for a quarter of the base."""
    place = scratch / "small"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=256k")
    yield place
    syscalls.umount(str(place))


def test_an_image_there_and_back(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    cli("run", "job", "--", "/bin/sh", "-c", "echo more >/etc/motd")
    cli("commit", "app", "job")
    layout = scratch / "layout"
    cli("export", "app", "--oci", str(layout), "--tag", "app:1")
    told = cli.json("export", "app", "--oci", str(layout), "--tag", "app:2", "--compress", "zstd")
    assert (told["name"], told["directory"], told["tag"], told["compress"]) == ("app", str(layout), "app:2", "zstd")
    assert [layer["warnings"] for layer in told["layers"]] == [[], []]
    assert (layout / "blobs/sha256" / told["digest"][7:]).exists()
    assert cli.fails(1, "import", "back", "--oci", str(layout)) == (
        "thinpool: error: there is more than one image; tags are 'app:1', 'app:2'\nhint: name one with --tag\n"
    )
    made = cli.json("import", "back", "--oci", str(layout), "--tag", "app:1")
    assert made["name"] == "back"
    assert made["parent"] == told["layers"][0]["diff_id"]
    assert cli("run", "back", "--", "/bin/cat", "/etc/motd") == "more\n"
    assert cli("import", "again", str(layout), "--tag", "app:2") == ""
    assert cli("diff", "again", "app") == ""


def test_an_image_from_a_pipe(with_base: Cli) -> None:
    with with_base.start("import", "image", "--oci", "-", stdin=subprocess.PIPE) as process:
        _, errors = process.communicate(gzip.compress(simple("a", "b").tar()))
    assert (process.returncode, errors) == (0, b"")
    assert with_base("diff", "image") == "A /b\n"


def test_what_does_not_go_together(with_base: Cli, scratch: Path) -> None:
    layout, tar = simple("a").write(scratch / "layout"), scratch / "tar"
    tar.write_bytes(layer_tar({"a": b"a"}))
    for arguments, message in (
        (("import", "x", str(tar), "--tag", "a"), "--tag is for an image"),
        (("import", "x", str(tar), "--oci", str(layout)), "FILE is for a layer tar"),
        (("import", "x", "--oci", str(layout), "--parent", "base"), "--parent is for a layer tar"),
        (("import", "x", str(layout), "--parent", "base"), "--parent is for a layer tar"),
        (("import", "x", str(tar), "--limit", "sizes=1"), "limit 'sizes': accepted are entries, size,"),
        (("import", "x", str(tar), "--limit", "size"), "is not of the form KEY=VALUE"),
        (("export", "base", "--tag", "a"), "--tag is for an image"),
        (("export", "base", "base", "--oci", str(layout)), "BASE is for a layer tar"),
        (("export", "base", "-o", str(tar), "--oci", str(layout)), "-o is for a layer tar"),
        (("export", "base", "--oci", str(layout), "--compress", "xz"), "gzip, zstd or none, not with xz"),
        (("export", "base", "--oci", str(layout), "--tag", "a b"), "tag 'a b': accepted are"),
        (("export", "base", "--oci", str(scratch)), "is neither empty nor an OCI image layout"),
    ):
        assert message in with_base.fails(2, *arguments)
    assert "no image: there is neither" in with_base.fails(1, "import", "x", "--oci", str(tar))
    assert "No such file" in with_base.fails(1, "import", "x", "--oci", str(scratch / "missing"))
    assert with_base("ls", "-q") == "base\n"


def test_limits_and_devices(with_base: Cli, scratch: Path) -> None:
    tar = scratch / "tar"
    tar.write_bytes(archive(header(b"null", b"3", major=1, minor=3), entry(b"f", data=b"xyz")))
    for limit in ("size=2", "entries=1", "path_length=3"):
        assert "limit" in with_base.fails(1, "import", "x", str(tar), "--limit", limit)
    assert with_base("import", "x", str(tar), "--limit", "size=1K", "--limit", "entries=2") == ""
    assert with_base("diff", "x") == "A /f\nA /null\n"
    assert with_base.outcome("import", "y", str(tar), "--no-devices") == (
        0, "", "thinpool: warning: y: left out 'null': a device\n",
    )  # fmt: skip
    assert with_base("diff", "y") == "A /f\n"


@pytest.mark.parametrize("option", ["-o", "--oci"])
def test_export_to_a_full_disk_leaves_no_file(with_base: Cli, small_disk: Path, option: str) -> None:
    for before in ([], ["there"]):
        target = small_disk / "target"
        if before:
            with_base("prepare", "job")
            with_base("commit", "empty", "job")
            with_base("export", "empty", option, str(target))
        left = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
        errors = with_base.fails(1, "export", "base", option, str(target))
        assert errors.startswith(f"thinpool: error: {target}: ")
        assert "No space left on device\n" in errors
        assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()} == left
        assert target.exists() == bool(before)


def test_export_into_a_pipe_that_closes(with_base: Cli, scratch: Path) -> None:
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    with with_base.start("export", "base", "-o", str(fifo)) as process:
        with fifo.open("rb") as reader:
            assert reader.read(512)
        assert process.communicate()[1] == b""
    assert process.returncode == 141
    assert sorted(os.listdir(scratch)) == ["fifo"]


@pytest.mark.parametrize("arguments", [("import", "x", "-"), ("import", "x", "--oci", "-")])
def test_import_from_a_pipe_that_dies(with_base: Cli, busybox_tar: Path, arguments: tuple[str, ...]) -> None:
    made = Made()
    made.index([made.image([busybox_tar.read_bytes()])])
    whole = made.tar() if "--oci" in arguments else busybox_tar.read_bytes()
    for cut in (0, len(whole) // 2, len(whole) - 9 * 1024):
        with with_base.start(*arguments, stdin=subprocess.PIPE) as process:
            _, errors = process.communicate(whole[:cut])
        assert process.returncode == 1
        assert errors.startswith(b"thinpool: error: ")
        assert len(errors.splitlines()) == 1
        assert with_base("ls", "-q") == "base\n"


def test_an_image_with_a_bad_layer_leaves_nothing(with_base: Cli, scratch: Path) -> None:
    made = Made()
    good = layer_tar({"a": b"a"})
    config = {"rootfs": {"type": "layers", "diff_ids": [sha256(good), sha256(b"?")]}}
    made.index([made.image([good, good], config=config)])
    error = json.loads(
        with_base.fails(1, "--json", "import", "x", "--oci", str(made.write(scratch / "made"))).splitlines()[-1]
    )
    assert error["error"]["type"] == "ArchiveError"
    assert "its diff id is" in error["error"]["message"]
    assert with_base("ls", "-q") == "base\n"
