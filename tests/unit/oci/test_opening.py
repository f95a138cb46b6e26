import gzip
import io
import lzma
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.unit.oci.layouts import Made, layer_tar, sha256, simple
from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.limits import Limits
from thinpool.oci.opening import open_image
from thinpool.oci.platform import Platform

AMD64 = Platform("amd64")
SAMPLE = Path(__file__).parents[2] / "data" / "docker-save.tar"
DIFF_ID = sha256(layer_tar({"a": b"a"}))

Compress = Callable[[bytes], bytes]
COMPRESSIONS: dict[str, Compress] = {
    "none": bytes,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def test_a_directory(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for source in (str(simple().write(tmp_path)), tmp_path):
        with open_image(source, None, AMD64, Limits(), tmp_path) as image:
            assert [layer.diff_id for layer in image.layers] == [DIFF_ID]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("way", ["path", "file", "memory", "pipe"])
def test_an_archive_from_everywhere(tmp_path: Path, compress: str, way: str) -> None:
    file = tmp_path / "archive"
    file.write_bytes(COMPRESSIONS[compress](simple().tar()))
    spool = tmp_path / "spool"
    spool.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with subprocess.Popen(["cat", file], stdout=subprocess.PIPE) as cat, file.open("rb") as opened:
        assert cat.stdout is not None
        source: Any = {"path": file, "file": opened, "memory": io.BytesIO(file.read_bytes()), "pipe": cat.stdout}[way]
        with open_image(source, None, AMD64, Limits(), spool) as image:
            assert os.listdir(spool) == []
            with image.layers[0].open(image.place) as blob:
                assert sha256(blob.readall()) == image.layers[0].digest
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_read_from_goes_on_there(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(b"lead" + simple().tar())
    with file.open("rb") as opened:
        opened.read(4)
        with open_image(opened, None, AMD64, Limits(), tmp_path) as image:
            assert [layer.diff_id for layer in image.layers] == [DIFF_ID]


def test_a_layout_is_preferred_to_the_list_beside_it(tmp_path: Path) -> None:
    """Newer versions of docker save write both."""
    made = simple()
    made.files["manifest.json"] = b"no JSON"
    (tmp_path / "archive").write_bytes(made.tar())
    with open_image(tmp_path / "archive", None, AMD64, Limits(), tmp_path) as image:
        assert image.layers[0].diff_id == DIFF_ID


def test_a_saved_archive_that_was_unpacked(tmp_path: Path) -> None:
    subprocess.run(["tar", "-xf", SAMPLE, "-C", tmp_path], check=True)
    with open_image(tmp_path, "top", AMD64, Limits(), tmp_path) as image:
        for layer in image.layers:
            with layer.open(image.place) as blob:
                assert sha256(blob.readall()) == layer.diff_id


@pytest.mark.parametrize("made", [Made({"x": b""}), Made({"blobs/x": b""})])
def test_no_image(tmp_path: Path, made: Made) -> None:
    with (
        pytest.raises(ArchiveError, match=r"neither an oci-layout nor a manifest\.json"),
        open_image(made.write(tmp_path), None, AMD64, Limits(), tmp_path),
    ):
        pass


def test_a_spooled_archive_has_limits(tmp_path: Path) -> None:
    for limits in (Limits(size=100_000), Limits(ratio=10, ratio_from=1000)):
        packed = io.BytesIO(gzip.compress(layer_tar({"x": bytes(200_000)})))
        with pytest.raises(UnsafeArchive), open_image(packed, None, AMD64, limits, tmp_path):
            pass


def test_a_cut_stream(tmp_path: Path) -> None:
    whole = gzip.compress(simple().tar())
    for cut in (0, 10, len(whole) // 2, len(whole) - 9):
        with pytest.raises(ArchiveError), open_image(io.BytesIO(whole[:cut]), None, AMD64, Limits(), tmp_path):
            pass
