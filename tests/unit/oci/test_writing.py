import fcntl
import json
import os
import threading
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.oci.layouts import REF, layer_tar, sha256, simple
from thinpool.errors import ArchiveError, ConfigError
from thinpool.layer.archive import ArchiveResult
from thinpool.oci import media
from thinpool.oci.layout import read_layout
from thinpool.oci.places import DirectoryPlace
from thinpool.oci.platform import Platform
from thinpool.oci.values import Manifest
from thinpool.oci.writing import LayoutWriter, check_tag


def add(folder: Path, *contents: str, tag: str = "latest", fail: bool = False) -> None:
    """Write an image with a layer for each name of a file."""
    with LayoutWriter(folder) as layout:
        layers = []
        for name in contents:
            data = layer_tar({name: name.encode()})

            def write(file: IO[bytes], data: bytes = data) -> ArchiveResult:
                file.write(data)
                return ArchiveResult(sha256(data), sha256(data), len(data), len(data), 1, ())

            layers.append(layout.add_layer(media.LAYER, write)[0])
        members = {
            **Platform("amd64").members(),
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        config = layout.add_document(media.CONFIG, members)
        manifest = layout.add_document(media.MANIFEST, Manifest(config, layers).members())
        if fail:
            raise InterruptedError
        layout.finish(manifest, tag)


def diff_ids(folder: Path, tag: str | None = None) -> list[str]:
    with DirectoryPlace(folder) as place:
        image = read_layout(place, tag, Platform("amd64"))
        for layer in image.layers:
            with layer.open(place) as blob:
                assert sha256(blob.readall()) == layer.digest
    return [layer.diff_id for layer in image.layers]


def expected(*contents: str) -> list[str]:
    return [sha256(layer_tar({name: name.encode()})) for name in contents]


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_new_layout(tmp_path: Path) -> None:
    add(tmp_path / "layout", "a", "b")
    assert diff_ids(tmp_path / "layout") == expected("a", "b")
    assert sorted(os.listdir(tmp_path / "layout")) == ["blobs", "index.json", "oci-layout"]
    assert json.loads((tmp_path / "layout/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    for blob in (tmp_path / "layout/blobs/sha256").iterdir():
        assert sha256(blob.read_bytes()) == f"sha256:{blob.name}"


def test_two_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add(tmp_path / name, "a", "b")
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    add(tmp_path / "one", "a", "b")
    assert listing(tmp_path / "one") == listing(tmp_path / "two")


def test_one_image_more(tmp_path: Path) -> None:
    made = simple("x", tag="other", annotations={REF: "other"})
    index = json.loads(made.files["index.json"])
    index["annotations"] = {"k": "v"}
    index["manifests"][0]["unknown"] = [1]
    made.files["index.json"] = json.dumps(index).encode()
    made.files["more"] = b"of somebody"
    made.write(tmp_path)
    add(tmp_path, "a", tag="ours")
    assert diff_ids(tmp_path, "other") == expected("x")
    assert diff_ids(tmp_path, "ours") == expected("a")
    now = json.loads((tmp_path / "index.json").read_text())
    assert now["annotations"] == {"k": "v"}
    assert now["manifests"][0] == index["manifests"][0]
    assert (tmp_path / "more").read_bytes() == b"of somebody"


def test_a_tag_moves(tmp_path: Path) -> None:
    add(tmp_path, "a", tag="one")
    add(tmp_path, "b", tag="two")
    add(tmp_path, "c", tag="one")
    assert (diff_ids(tmp_path, "one"), diff_ids(tmp_path, "two")) == (expected("c"), expected("b"))
    assert len(json.loads((tmp_path / "index.json").read_text())["manifests"]) == 2


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        add(tmp_path / "new", "a", fail=True)
    assert os.listdir(tmp_path) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(InterruptedError):
        add(tmp_path / "empty", "a", fail=True)
    assert listing(tmp_path) == {"empty": None}
    add(tmp_path / "empty", "a", "b")
    before = listing(tmp_path)
    with pytest.raises(InterruptedError):
        add(tmp_path / "empty", "b", "c", fail=True)
    assert listing(tmp_path) == before


def test_what_fails_while_a_layer_is_written_leaves_nothing(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> ArchiveResult:
        file.write(b"half")
        file.flush()
        assert len(os.listdir(tmp_path / "new")) == 2
        raise InterruptedError

    with pytest.raises(InterruptedError), LayoutWriter(tmp_path / "new") as layout:
        layout.add_layer(media.LAYER, write)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_taken_up(tmp_path: Path) -> None:
    """It died before the index, or even before the marker; its unfinished file goes."""
    add(tmp_path / "whole", "a", "b")
    for there in (["blobs"], ["blobs", "oci-layout"], []):
        folder = tmp_path / f"killed{len(there)}"
        folder.mkdir()
        for path, data in listing(tmp_path / "whole").items():
            if path.split("/")[0] in there:
                (folder / path).mkdir() if data is None else (folder / path).write_bytes(data)
        (folder / ".thinpool-blob-0123456789abcdef").write_bytes(b"half")
        (folder / ".thinpool-0123456789abcdef.part").write_bytes(
            b"of another export"
        ) if "oci-layout" in there else None
        add(folder, "a", "b")
        left = listing(folder)
        left.pop(".thinpool-0123456789abcdef.part", None)
        assert left == listing(tmp_path / "whole")


@pytest.mark.parametrize("name", ["file", ".hidden", "manifest.json"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match="is neither empty nor an OCI image layout: it holds"):
        add(tmp_path, "a")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schemaVersion":1}', b'{"schemaVersion":2,"layers":[]}'])
def test_a_bad_index_is_left_alone(tmp_path: Path, data: bytes) -> None:
    made = simple()
    made.files["index.json"] = data
    before = listing(made.write(tmp_path))
    with pytest.raises(ArchiveError):
        add(tmp_path, "a")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_links_of_directories_are_not_followed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "layout"
    simple().write(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        add(folder, "a")
    assert listing(tmp_path / "elsewhere") == before


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        add(tmp_path / "file", "a")
    with pytest.raises(FileNotFoundError):
        add(tmp_path / "missing" / "folder", "a")


def test_a_damaged_blob_is_made_whole(tmp_path: Path) -> None:
    add(tmp_path, "a")
    whole = listing(tmp_path)
    for blob in (tmp_path / "blobs/sha256").iterdir():
        blob.write_bytes(b"damaged")
    add(tmp_path, "a")
    assert listing(tmp_path) == whole


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    add(tmp_path, "a", tag="a")
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    threads = [threading.Thread(target=add, args=(tmp_path, name), kwargs={"tag": name}) for name in ("b", "c", "d")]
    for thread in threads:
        thread.start()
    assert diff_ids(tmp_path, "a") == expected("a")
    assert all(thread.is_alive() for thread in threads)
    os.close(held)
    for thread in threads:
        thread.join()
    for name in ("a", "b", "c", "d"):
        assert diff_ids(tmp_path, name) == expected(name)


def test_who_waited_for_a_directory_that_goes_makes_it_anew(tmp_path: Path) -> None:
    folder = tmp_path / "layout"
    first = LayoutWriter(folder)
    second = threading.Thread(target=add, args=(folder, "b"))
    second.start()
    while not _waits_for_lock(folder):
        pass
    first.__exit__(None, None, None)
    second.join()
    assert diff_ids(folder) == expected("b")


def _waits_for_lock(folder: Path) -> bool:
    inode = os.stat(folder).st_ino
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


separators = st.sampled_from(["-", ".", "_", ":", "@", "+", "/", "--"])


@given(st.lists(st.text("abzABZ019", min_size=1, max_size=3), min_size=1, max_size=5), st.data())
def test_tags_are_put_together_as_the_specification_says(parts: list[str], data: st.DataObject) -> None:
    tag = parts[0] + "".join(data.draw(separators) + part for part in parts[1:])
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["a", "latest", "web:1.0", "a/b/c", "docker.io/library/web:1", "a--b", "v1+x@y"])
def test_good_tags(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize(
    "tag", ["", "-a", "a-", "a..b", "a//b", "/a", "a/", "a b", "\u00e9", "a\n", "a---b", 256 * "a"]
)
def test_bad_tags(tag: str) -> None:
    with pytest.raises(ConfigError, match="accepted are at most 255"):
        check_tag(tag)
