import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.oci.layouts import CONFIG, INDEX, LAYER, MANIFEST, REF, Json, Made, layer_tar, sha256, simple
from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.oci.image import Image
from thinpool.oci.layout import is_layout, read_layout
from thinpool.oci.places import DirectoryPlace
from thinpool.oci.platform import Platform

AMD64 = Platform("amd64")


def read(made: Made, folder: Path, tag: str | None = None, platform: Platform = AMD64) -> Image:
    with DirectoryPlace(made.write(folder)) as place:
        return read_layout(place, tag, platform)


def fails(made: Made, folder: Path, tag: str | None = None) -> str:
    with pytest.raises(ArchiveError) as caught:
        read(made, folder, tag)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_one_image(tmp_path: Path) -> None:
    config = {"config": {"Labels": {"k": "v"}, "Env": ["A=b"], "Cmd": None, "Volumes": {"/data": {}}}, "variant": "v3"}
    made = simple("a", "b", config=config)
    with DirectoryPlace(made.write(tmp_path)) as place:
        assert is_layout(place)
        image = read_layout(place, None, AMD64)
        assert [layer.diff_id for layer in image.layers] == [sha256(layer_tar({n: n.encode()})) for n in ("a", "b")]
        for layer in image.layers:
            with layer.open(place) as blob:
                assert sha256(blob.readall()) == layer.digest
    assert image.config.labels == {"k": "v"}
    assert image.config.run == {"Env": ["A=b"], "Volumes": {"/data": {}}}
    assert image.config.platform == Platform("amd64", "linux", "v3")


def test_an_image_by_its_tag(tmp_path: Path) -> None:
    made = Made()
    layers = {name: layer_tar({name: b""}) for name in ("one", "two")}
    made.index([made.image([layer], tag=name) for name, layer in layers.items()])
    for name, layer in layers.items():
        assert read(made, tmp_path, name).layers[0].diff_id == sha256(layer)
    assert fails(made, tmp_path) == "there is more than one image; tags are 'one', 'two'"
    assert fails(made, tmp_path, "three") == "no image is tagged 'three'; tags are 'one', 'two'"


def test_one_image_with_two_tags_needs_none(tmp_path: Path) -> None:
    made = Made()
    layer = layer_tar({"a": b""})
    made.index([made.image([layer], tag="one"), made.image([layer], tag="two")])
    assert read(made, tmp_path).layers[0].diff_id == sha256(layer)


def test_the_name_that_docker_gives(tmp_path: Path) -> None:
    made = Made()
    names = {"io.containerd.image.name": "docker.io/library/web:1", REF: "1"}
    made.index([{**made.image([layer_tar({"a": b""})]), "annotations": names}])
    for tag in ("1", "docker.io/library/web:1", None):
        assert len(read(made, tmp_path, tag).layers) == 1


def test_no_image(tmp_path: Path) -> None:
    assert fails(Made().index([]), tmp_path).startswith("there is no image for linux/amd64")
    assert fails(Made().index([]), tmp_path, "x") == "no image is tagged 'x'; none has a tag"


def platforms(made: Made, *names: str, nested: int = 0) -> tuple[Made, dict[str, str]]:
    """An index of images for several platforms, and the diff ids by platform."""
    entries, diff_ids = [], {}
    for name in names:
        system, architecture, *variant = name.split("/")
        layer = layer_tar({name.replace("/", "-"): b""})
        platform = {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        entries.append(made.image([layer], platform=platform))
        diff_ids[name] = sha256(layer)
    for _ in range(nested):
        entries = [made.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)]
    return made.index(entries), diff_ids


@pytest.mark.parametrize("nested", [0, 1, 4])
@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v8", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/s390x", None),
        ("windows/amd64", "windows/amd64"),
        ("linux/arm/v5", None),
    ],
)
def test_the_platform_chooses(tmp_path: Path, wanted: str, chosen: str | None, nested: int) -> None:
    names = ("windows/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64", "unknown/unknown")
    made, diff_ids = platforms(Made(), *names, nested=nested)
    if chosen is None:
        with pytest.raises(ArchiveError, match=f"there is no image for {wanted}; there are: linux/amd64, linux/arm/v6"):
            read(made, tmp_path, None, Platform.parse(wanted))
    else:
        assert read(made, tmp_path, None, Platform.parse(wanted)).layers[0].diff_id == diff_ids[chosen]


def test_the_only_image_suits_always(tmp_path: Path) -> None:
    made, diff_ids = platforms(Made(), "linux/s390x", "unknown/unknown")
    assert read(made, tmp_path).layers[0].diff_id == diff_ids["linux/s390x"]


def test_indexes_do_not_nest_for_ever(tmp_path: Path) -> None:
    made, _ = platforms(Made(), "linux/amd64", nested=5)
    assert "more than 4 deep" in fails(made, tmp_path)


def test_artifacts_are_no_images(tmp_path: Path) -> None:
    made = Made()
    layer = layer_tar({"a": b""})
    other = made.document({"schemaVersion": 2}, "application/vnd.example+json")
    signature = made.document({"schemaVersion": 2, "x": 1}, MANIFEST, artifactType="application/vnd.example")
    made.index([other, signature, made.image([layer])])
    assert read(made, tmp_path).layers[0].diff_id == sha256(layer)


def manifest_of(made: Made, change: Callable[[Json], None]) -> Made:
    """The layout with one document more: its manifest, changed."""
    index = json.loads(made.files["index.json"])
    data = made.files["blobs/sha256/" + index["manifests"][0]["digest"][7:]]
    manifest = json.loads(data)
    change(manifest)
    return made.index([made.document(manifest, MANIFEST)])


BAD_MANIFESTS: dict[str, tuple[Callable[[Json], None], str]] = {
    "version": (lambda m: m.update(schemaVersion=1), "schemaVersion 1; accepted is 2"),
    "no version": (lambda m: m.pop("schemaVersion"), "'schemaVersion' is missing"),
    "two things": (lambda m: m.update(manifests=[]), "both a manifest and an index"),
    "type": (lambda m: m.update(mediaType=INDEX), "calls itself"),
    "config type": (lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"), "is no image"),
    "layer type": (lambda m: m["layers"][0].update(mediaType=LAYER + "+encrypted"), "not understood"),
    "digest": (lambda m: m["layers"][0].update(digest="sha256:../../etc/passwd"), "accepted is sha256:"),
    "size": (lambda m: m["layers"][0].update(size=-1), "a whole number, at least 0"),
    "size true": (lambda m: m["layers"][0].update(size=True), "a whole number, at least 0"),
    "no layers": (lambda m: m.update(layers=[]), "has 0 layers, and its configuration 1 diff ids"),
    "more layers": (lambda m: m["layers"].append(m["layers"][0]), "has 2 layers, and its configuration 1 diff ids"),
    "layers": (lambda m: m.update(layers={}), "is not a list"),
    "annotations": (lambda m: m["layers"][0].update(annotations={"k": 1}), "is not a string"),
    "config": (lambda m: m.update(config=None), "'mediaType' is missing"),
    "config no JSON": (lambda m: m.update(config=m["layers"][0] | {"mediaType": CONFIG}), "JSON"),
    "config long": (lambda m: m["config"].update(size=1 << 40), "at most 1.00 MiB are read"),
    "config size": (lambda m: m["config"].update(size=m["config"]["size"] + 1), "its descriptor says"),
    "config gone": (lambda m: m["config"].update(digest=sha256(b"?")), "the configuration of the image is missing"),
}


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_bad_manifest(tmp_path: Path, what: str) -> None:
    change, message = BAD_MANIFESTS[what]
    assert message in fails(manifest_of(simple(), change), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rootfs": {"type": "other", "diff_ids": []}}, "accepted is layers"),
        ({"rootfs": {"type": "layers", "diff_ids": []}}, "its configuration 0 diff ids"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "accepted is sha256:"),
        ({"rootfs": []}, "not an object"),
        ({"config": {"Env": "A=b"}}, "not a list"),
        ({"config": {"Env": [1]}}, "not a list of strings"),
        ({"config": {"Labels": {"a": {}}}}, "not a string"),
        ({"os": 1}, "not a string"),
    ],
)
def test_a_bad_configuration(tmp_path: Path, config: Json, message: str) -> None:
    assert message in fails(simple(config=config), tmp_path)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize(
    ("data", "message"),
    [(b"[]", "not a JSON object"), (b"", "is not JSON"), (b"{}", "is missing"), (b" " * (1 << 22), "at most 1.00 MiB")],
)
def test_a_bad_file(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    made = simple()
    made.files[name] = data
    assert message in fails(made, tmp_path)


def test_a_layout_of_the_future(tmp_path: Path) -> None:
    made = simple()
    made.files["oci-layout"] = b'{"imageLayoutVersion":"2.0.0"}'
    assert fails(made, tmp_path) == "the OCI layout has version '2.0.0'; accepted is 1"


def test_documents_are_verified(tmp_path: Path) -> None:
    made = simple()
    for name, data in made.files.items():
        if name.startswith("blobs/") and data.startswith(b"{"):
            changed = Made(dict(made.files))
            changed.files[name] = data.replace(b'"', b" ", 1)
            folder = tmp_path / name[-64:]
            folder.mkdir()
            assert "is damaged: its digest is sha256:" in fails(changed, folder)


def test_a_layer_of_another_size_or_gone(tmp_path: Path) -> None:
    made = simple()
    with DirectoryPlace(made.write(tmp_path)) as place:
        layer = read_layout(place, None, AMD64).layers[0]
        with (tmp_path / layer.path).open("ab") as file:
            file.write(b"x")
        with pytest.raises(ArchiveError, match="the manifest says"):
            layer.open(place)
        (tmp_path / layer.path).unlink()
        with pytest.raises(ArchiveError, match="is missing"):
            layer.open(place)


@pytest.mark.parametrize("name", ["index.json", "oci-layout", "blobs", "layer"])
@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    """A link leads nowhere out of the layout, and nothing but a file is opened, which could block or act."""
    made = simple()
    folder = tmp_path / "layout"
    folder.mkdir()
    made.write(folder)
    layer = next(name for name, data in made.files.items() if data.startswith(b"\x1f\x8b"))
    path = folder / (layer if name == "layer" else name)
    path.rename(tmp_path / "outside")
    match kind:
        case "link":
            path.symlink_to(tmp_path / "outside")
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero") if os.geteuid() else os.mknod(path, 0o20600, os.makedev(1, 5))
        case _:
            path.mkdir()
    with DirectoryPlace(folder) as place, pytest.raises(ArchiveError, match=r"missing|no regular file"):
        read_layout(place, None, AMD64).layers[0].open(place)


def test_links_within_a_layout_are_followed(tmp_path: Path) -> None:
    made = simple()
    made.write(tmp_path)
    blobs = tmp_path / "blobs/sha256"
    blobs.rename(tmp_path / "store")
    blobs.mkdir()
    for blob in (tmp_path / "store").iterdir():
        (blobs / blob.name).symlink_to(f"../../store/{blob.name}")
    with DirectoryPlace(tmp_path) as place:
        read_layout(place, None, AMD64).layers[0].open(place).close()


JUNK: tuple[object, ...] = (
    None, True, -1, 2**70, 1.5, "", "x", "\0", [], {}, ["x"], {"x": {}}, sha256(b""), INDEX, CONFIG,
)  # fmt: skip


@given(data=st.data())
def test_any_change_of_a_document_is_an_image_or_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One value of the index, the manifest or the configuration is another, and all digests are right."""
    junk = st.sampled_from(JUNK)

    def changed(value: Any) -> Any:
        if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
            key = data.draw(st.sampled_from(sorted(value)))
            return {**value, key: changed(value[key])}
        if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
            return [changed(value[0]), *value[1:]]
        return data.draw(junk)

    made = Made()
    layer = layer_tar({"a": b""})
    which = data.draw(st.sampled_from(["index", "manifest", "config"]))
    config: Json = {"architecture": "amd64", "os": "linux", "config": {"Labels": {"a": "b"}, "Env": ["A=b"]}}
    config["rootfs"] = {"type": "layers", "diff_ids": [sha256(layer)]}
    config = changed(config) if which == "config" else config
    manifest = {"schemaVersion": 2, "config": made.document(config, CONFIG), "layers": [made.blob(layer, LAYER)]}
    manifest = changed(manifest) if which == "manifest" else manifest
    entry = made.document(manifest, MANIFEST, annotations={REF: "x"}, platform={"os": "linux", "architecture": "amd64"})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    made.files["index.json"] = json.dumps(changed(index) if which == "index" else index).encode()
    try:
        image = read(made, tmp_path_factory.mktemp("layout"))
    except ArchiveError:
        return
    assert len(image.layers) == 1


def test_a_long_document_is_not_read(tmp_path: Path) -> None:
    made = simple()
    made.write(tmp_path)
    with (tmp_path / "index.json").open("r+b") as file:
        file.truncate(1 << 40)
    with DirectoryPlace(tmp_path) as place, pytest.raises(UnsafeArchive, match=r"1\.00 TiB"):
        read_layout(place, None, AMD64)
