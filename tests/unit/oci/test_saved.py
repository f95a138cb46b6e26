import json
import os
from pathlib import Path

import pytest

from tests.unit.oci.layouts import Json, layer_tar, sha256
from thinpool.errors import ArchiveError
from thinpool.oci.image import Image
from thinpool.oci.places import ArchivePlace
from thinpool.oci.platform import Platform
from thinpool.oci.saved import is_saved, read_saved

SAMPLE = Path(__file__).parents[2] / "data" / "docker-save.tar"


def place_of(data: bytes, folder: Path) -> ArchivePlace:
    (folder / "archive").write_bytes(data)
    return ArchivePlace(os.open(folder / "archive", os.O_RDONLY))


def verified(image: Image) -> int:
    """How many layers there are, all of which have their diff ids."""
    for layer in image.layers:
        with layer.open(image.place) as blob:
            assert sha256(blob.readall()) == layer.diff_id
    return len(image.layers)


@pytest.mark.parametrize(("tag", "layers"), [("sample:base", 1), ("sample:top", 3), ("base", 1), ("top", 3)])
def test_what_docker_saved(tag: str, layers: int) -> None:
    place = ArchivePlace(os.open(SAMPLE, os.O_RDONLY))
    assert is_saved(place)
    image = read_saved(place, tag)
    assert verified(image) == layers
    assert image.config.platform == Platform("amd64")
    assert image.config.labels["made"] == "here"
    assert image.config.run["Env"] == ["PATH=/bin", "A=b"]


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (None, "there is more than one image; there are 'sample:base', 'sample:top'"),
        ("other", "no image is called 'other'; there are 'sample:base', 'sample:top'"),
        ("sample", "no image is called 'sample'; there are 'sample:base', 'sample:top'"),
    ],
)
def test_which_one(tag: str | None, message: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        read_saved(ArchivePlace(os.open(SAMPLE, os.O_RDONLY)), tag)
    assert caught.value.message == message


def saved(folder: Path, change: Json, *, config: Json | None = None) -> Image:
    """An archive with one image of two layers, one member of its list changed."""
    layers = {name: layer_tar({name: b""}) for name in ("a.tar", "b.tar")}
    whole = {"rootfs": {"type": "layers", "diff_ids": [*map(sha256, layers.values())]}, **(config or {})}
    data = json.dumps(whole).encode()
    name = sha256(data)[7:] + ".json"
    listed = [{"Config": name, "RepoTags": None, "Layers": [*layers]} | change]
    files = {**layers, name: data, "plain.json": data, "f" * 64 + ".json": data}
    image = read_saved(place_of(layer_tar({**files, "manifest.json": json.dumps(listed).encode()}), folder), None)
    verified(image)
    return image


def test_an_image_without_a_name(tmp_path: Path) -> None:
    assert len(saved(tmp_path, {}).layers) == 2
    assert len(saved(tmp_path, {"Config": "plain.json"}).layers) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Config": "missing.json"}, "the image 'missing.json' is missing"),
        ({"Config": "f" * 64 + ".json"}, "is damaged: its digest is sha256:"),
        ({"Config": None}, "'Config' is missing"),
        ({"Config": "../x"}, "the image '../x' is missing"),
        ({"Layers": ["a.tar"]}, "has 1 layers, and its configuration 2 diff ids"),
        ({"Layers": "a.tar"}, "is not a list"),
        ({"Layers": ["a.tar", "c.tar"]}, "the layer 'c.tar' is missing"),
        ({"Layers": ["a.tar", "\0"]}, "has a NUL in it"),
        ({"RepoTags": [1]}, "is not a list of strings"),
    ],
)
def test_a_bad_list(tmp_path: Path, change: Json, message: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        saved(tmp_path, change)
    assert message in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[1]", b'["x"]', b"[null]"])
def test_a_bad_manifest(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArchiveError):
        read_saved(place_of(layer_tar({"manifest.json": data}), tmp_path), None)
