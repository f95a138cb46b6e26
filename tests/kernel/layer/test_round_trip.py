"""What was exported is what comes back: by our import, by GNU tar and by bsdtar."""

import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given

from tests.kernel.layer.images import Images, run
from tests.kernel.layer.trees import Mutator, Step, content, examples, makings, opened, steps, survey
from thinpool.layer.archive import ArchiveResult, write_layer
from thinpool.layer.changes import walk
from thinpool.layer.unpack import UnpackResult, unpack_layer

pytestmark = pytest.mark.kernel


def exported(older: Path | None, newer: Path) -> tuple[bytes, ArchiveResult]:
    archive = io.BytesIO()
    with opened(newer) as new:
        if older is None:
            result = write_layer(archive, None, new, walk(None, new))
        else:
            with opened(older) as old:
                result = write_layer(archive, old, new, walk(old, new))
    return archive.getvalue(), result


def imported(archive: bytes, root: Path) -> UnpackResult:
    with opened(root) as fd:
        return unpack_layer(io.BytesIO(archive), fd)


def extract(command: list[str], archive: bytes, root: Path) -> None:
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(archive)
        file.flush()
        run(*command, file.name, "-C", str(root))


def assert_directory_times(archive: bytes, original: Path, copy: Path) -> None:
    """The times of the directories in an archive, which the contract lets a comparison ignore, are kept too."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isdir():
                assert (copy / member.name).stat().st_mtime_ns == (original / member.name).stat().st_mtime_ns


@examples(80)
@given(before=makings, after=steps)
def test_a_layer_on_its_base(images: Images, before: list[Step], after: list[Step]) -> None:
    images.make("older")
    images.make("copy")
    with images.mounted("copy") as copy:
        with images.mounted("older") as older:
            Mutator(older).run(before)
            archive, written = exported(None, older)
            result = imported(archive, copy)
            assert (result.diff_id, result.entries) == (written.diff_id, written.entries)
            assert content(survey(copy)) == content(survey(older))
            assert_directory_times(archive, older, copy)
        images.copy("older", "newer")
        with images.mounted("newer") as newer:
            Mutator(newer).run(after)
        with images.mounted("older") as older, images.mounted("newer") as newer:
            archive, written = exported(older, newer)
            assert exported(older, newer) == (archive, written)
            imported(archive, copy)
            assert content(survey(copy)) == content(survey(newer))
            assert_directory_times(archive, newer, copy)


@examples(30)
@given(before=makings)
def test_gnu_tar_extracts_the_same(images: Images, before: list[Step]) -> None:
    images.make("older")
    images.make("copy")
    with images.mounted("older") as older, images.mounted("copy") as copy:
        Mutator(older).run(before)
        archive, _ = exported(None, older)
        extract(["tar", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"], archive, copy)
        assert content(survey(copy)) == content(survey(older))


@examples(30)
@given(before=makings)
def test_bsdtar_extracts_the_same(images: Images, before: list[Step]) -> None:
    """The same but for what bsdtar 3.6 does otherwise, whoever made the archive.

    It takes `%25` in the names of attributes as it stands, rounds fractions of times before 1970 up, and gives no
    attributes to the directory it extracts into.
    """
    images.make("older")
    images.make("copy")
    with images.mounted("older") as older, images.mounted("copy") as copy:
        Mutator(older).run(step for step in before if step.operation not in {"utime", "set_xattr"})
        archive, _ = exported(None, older)
        extract(["bsdtar", "--xattrs", "--acls", "-xpf"], archive, copy)
        ours, theirs = content(survey(older)), content(survey(copy))
        assert {path: theirs[path] for path in theirs if path != b"/"} == {
            path: ours[path] for path in ours if path != b"/"
        }


def test_two_names_in_different_places_stay_one_file(images: Images) -> None:
    """A file with one changed name has all its names in the archive, so that no link crosses layers."""
    images.make("older")
    with images.mounted("older") as older:
        (older / "z").write_bytes(b"content")
    images.copy("older", "newer")
    with images.mounted("newer") as newer:
        (newer / "folder").mkdir()
        os.link(newer / "z", newer / "folder" / "added")
    with images.mounted("older") as older, images.mounted("newer") as newer:
        archive, _ = exported(older, newer)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [(member.name, member.type, member.linkname) for member in tar]
    assert members == [
        (".", tarfile.DIRTYPE, ""),
        ("folder", tarfile.DIRTYPE, ""),
        ("folder/added", tarfile.REGTYPE, ""),
        (".", tarfile.DIRTYPE, ""),
        ("z", tarfile.LNKTYPE, "folder/added"),
    ]


def test_sockets_and_names_of_whiteouts_are_left_out_with_a_warning(images: Images) -> None:
    images.make("older")
    images.make("copy")
    with images.mounted("older") as older, images.mounted("copy") as copy:
        for name in ("becomes a socket", "removed"):
            (older / name).write_text("file")
        archive, _ = exported(None, older)
        imported(archive, copy)
    images.copy("older", "newer")
    with images.mounted("older") as older, images.mounted("newer") as newer, images.mounted("copy") as copy:
        for path in newer.iterdir():
            path.unlink()
        for name in ("becomes a socket", "new"):
            os.mknod(newer / name, stat.S_IFSOCK | 0o755)
        (newer / ".wh.file").write_text("no whiteout")
        (newer / ".wh.folder").mkdir()
        (newer / ".wh.folder" / "below").write_text("no whiteout")
        archive, result = exported(older, newer)
        imported(archive, copy)
        assert os.listdir(copy) == []
    assert result.warnings == (
        "left out '.wh.file': its name would be read as a whiteout",
        "left out '.wh.folder': its name would be read as a whiteout",
        "left out '.wh.folder/below': its name would be read as a whiteout",
        "left out 'becomes a socket': a socket",
        "left out 'new': a socket",
    )


def test_one_layers_archive_has_what_changed_and_its_parents(images: Images) -> None:
    images.make("older")
    with images.mounted("older") as older:
        (older / "a" / "b").mkdir(parents=True)
        for name in ("a/b/c", "a/b/gone", "same"):
            (older / name).write_text(name)
    images.copy("older", "newer")
    with images.mounted("older") as older, images.mounted("newer") as newer:
        (newer / "a" / "b" / "c").write_text("changed")
        (newer / "a" / "b" / "gone").unlink()
        archive, result = exported(older, newer)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [".", "a", "a/b", "a/b/c", "a/b/.wh.gone"]
    assert result.entries == 5
    gone = members[4]
    assert (gone.size, gone.mode, gone.mtime, gone.uid, gone.isreg()) == (0, 0, 0, 0, True)


def test_nothing_changed_is_an_archive_of_nothing(images: Images) -> None:
    images.make("older")
    with images.mounted("older") as older:
        archive, result = exported(older, older)
        assert archive == bytes(1024)
        assert result.entries == 0
        assert imported(archive, older).entries == 0
