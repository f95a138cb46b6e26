"""What other programs write, we read; what we write, they read."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given

from tests.kernel.layer.images import Images, run
from tests.kernel.layer.trees import Mutator, Step, content, examples, makings, opened, survey
from thinpool.layer.archive import write_layer
from thinpool.layer.changes import walk
from thinpool.layer.unpack import UnpackResult, unpack_layer

pytestmark = pytest.mark.kernel

Write = Callable[[Path, Path], None]


def gnu(*options: str) -> Write:
    return lambda root, file: _run("tar", "-cf", str(file), "-C", str(root), *options, ".")


def bsd(*options: str) -> Write:
    return lambda root, file: _run("bsdtar", "-cf", str(file), "-C", str(root), *options, ".")


def python(form: int) -> Write:
    def write(root: Path, file: Path) -> None:
        with tarfile.open(file, "w", format=form) as tar:
            tar.add(root, ".")

    return write


def _run(*command: str) -> None:
    run(*command)


def import_(file: Path, root: Path) -> UnpackResult:
    with opened(root) as fd, file.open("rb") as archive:
        return unpack_layer(archive, fd)


def no_sockets(steps: list[Step]) -> Iterator[Step]:
    return (step for step in steps if step.operation != "socket")


@examples(20)
@given(before=makings)
def test_random_trees_from_gnu_tar(images: Images, before: list[Step]) -> None:
    write = gnu("--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner")
    compare(images, list(no_sockets(before)), write)


@examples(20)
@given(before=makings)
def test_random_trees_from_bsdtar(images: Images, before: list[Step]) -> None:
    """But for what bsdtar does otherwise: fractions of times before 1970, and access lists with names."""
    steps = [step for step in no_sockets(before) if step.operation != "utime"]
    compare(images, steps, bsd("--format=pax", "--xattrs", "--acls", "--numeric-owner"))


def compare(images: Images, steps: list[Step], write: Write) -> None:
    images.make("older")
    images.make("copy")
    file = images.folder / "archive.tar"
    with images.mounted("older") as original, images.mounted("copy") as copy:
        Mutator(original).run(steps)
        write(original, file)
        import_(file, copy)
        # neither of the two keeps hard links of devices and FIFOs
        assert content(survey(copy), special_links=False) == content(survey(original), special_links=False)


WRITERS = {
    **{f"gnu tar {form}": gnu(f"--format={form}") for form in ("v7", "oldgnu", "gnu", "ustar", "pax")},
    **{f"gnu tar {form} sparse": gnu(f"--format={form}", "--sparse") for form in ("oldgnu", "gnu", "pax")},
    **{
        f"gnu tar sparse {version}": gnu("--format=pax", "--sparse", f"--sparse-version={version}")
        for version in ("0.0", "0.1", "1.0")
    },
    **{f"bsdtar {form}": bsd(f"--format={form}") for form in ("pax", "gnutar", "ustar", "v7tar")},
    "tarfile pax": python(tarfile.PAX_FORMAT),
    "tarfile gnu": python(tarfile.GNU_FORMAT),
    "tarfile ustar": python(tarfile.USTAR_FORMAT),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_plain_tree_in_every_format(images: Images, writer: str) -> None:
    old = "v7" in writer
    images.make("older")
    images.make("copy")
    file = images.folder / "archive.tar"
    with images.mounted("older") as original, images.mounted("copy") as copy:
        plant(original, devices=not old, long=90 if old else 180 if "ustar" in writer else 1000)
        WRITERS[writer](original, file)
        result = import_(file, copy)
        assert result.warnings == ()
        assert content(survey(copy)) == content(survey(original))
        assert (copy / "holes").stat().st_blocks * 512 < 1 << 20


def plant(root: Path, *, devices: bool, long: int) -> None:
    """A tree that even old formats can describe, if need be without devices and with a shorter path."""
    (root / "folder").mkdir(mode=0o2750)
    (root / "folder" / "file").write_bytes(b"content" * 1000)
    os.link(root / "folder" / "file", root / "linked")
    (root / "link").symlink_to("folder/file")
    (root / "empty").touch(mode=0o4711)
    with (root / "holes").open("wb") as file:
        for offset in (70_000, 1 << 20, 5 << 20):
            file.seek(offset)
            file.write(b"data")
        file.truncate(8 << 20)
    deep = root / "deep"
    while len(str(deep.relative_to(root))) < long - 60:
        deep = deep / ("d" * 49)
    deep.mkdir(parents=True)
    (deep / "f").write_text("deep")
    if devices:
        os.mknod(root / "device", stat.S_IFBLK | 0o660, os.makedev(8, 300))
        os.mkfifo(root / "fifo")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(0, 1_600_000_000_000_000_000), follow_symlinks=False)


READERS = {
    "gnu tar": ["tar", "-xpf"],
    "bsdtar": ["bsdtar", "-xpf"],
    "tarfile": ["python3", "-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[3])"],
}


@pytest.mark.parametrize("reader", [*READERS, "ours"])
@pytest.mark.parametrize(
    "extents",
    [
        [(0, b"start"), (40 << 20, b"middle"), ((60 << 20) - 3, b"end")],
        [(30 << 20, b"middle"), ((40 << 20) + 5, b"more")],
        [],
        [((1 << 20) - 1, b"across"), (25 << 20, b"x" * (3 << 20))],
    ],
)
def test_large_holes(images: Images, reader: str, extents: list[tuple[int, bytes]]) -> None:
    images.make("older")
    images.make("copy")
    file = images.folder / "archive.tar"
    with images.mounted("older") as original, images.mounted("copy") as copy:
        path = original / ("n" * 200) / "file with holes"
        path.parent.mkdir()
        with path.open("wb") as sparse:
            for offset, data in extents:
                sparse.seek(offset)
                sparse.write(data)
            sparse.truncate(60 << 20)
        os.utime(path, (0, 1_600_000_000))  # tarfile takes seconds for a float
        with opened(original) as fd, file.open("wb") as archive:
            result = write_layer(archive, None, fd, walk(None, fd))
        assert result.size < 6 << 20
        if reader == "ours":
            import_(file, copy)
        else:
            run(*READERS[reader], str(file), "-C", str(copy))
        assert content(survey(copy)) == content(survey(original))


def test_zeros_are_left_out_whether_they_are_stored_or_not(images: Images) -> None:
    images.make("older")
    with images.mounted("older") as original:
        (original / "stored").write_bytes(bytes(20 << 20) + b"x")
        with (original / "hole").open("wb") as file:
            file.seek(20 << 20)
            file.write(b"x")
        archives = []
        for name in ("stored", "hole"):
            os.rename(original / name, original / "same")
            os.utime(original / "same", (0, 0))
            os.utime(original, (0, 0))
            (original / "other").unlink(missing_ok=True)
            archive = io.BytesIO()
            with opened(original) as fd:
                write_layer(archive, None, fd, [change for change in walk(None, fd) if change.path == "/same"])
            archives.append(archive.getvalue())
            (original / "same").unlink()
            os.utime(original, (0, 0))
        assert archives[0] == archives[1]
        assert len(archives[0]) < 2 << 20


def test_access_lists_with_names_are_left_out_with_a_warning(images: Images) -> None:
    """GNU tar writes names where this machine has them, which are not those of the layer."""
    images.make("older")
    images.make("copy")
    file = images.folder / "archive.tar"
    with images.mounted("older") as original, images.mounted("copy") as copy:
        (original / "f").touch()
        run("setfacl", "-m", "u:bin:rwx", str(original / "f"))
        run("tar", "--acls", "--format=pax", "-cf", str(file), "-C", str(original), "f")
        result = import_(file, copy)
        assert result.warnings == ("left out access control lists with names: only numeric ids count",)
        assert os.listxattr(copy / "f") == []


def test_a_pipe_from_another_program(images: Images) -> None:
    images.make("older")
    images.make("copy")
    with images.mounted("older") as original, images.mounted("copy") as copy:
        plant(original, devices=True, long=1000)
        command = ["tar", "-C", str(original), "-cz", "."]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child, opened(copy) as fd:
            assert child.stdout is not None
            unpack_layer(child.stdout, fd)
        assert content(survey(copy)) == content(survey(original))
