"""skopeo and umoci read our images, and we read theirs, and what docker saved."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.layer.images import Images, run
from tests.kernel.layer.trees import XATTRS, Mutator, Step, content, examples, makings, steps, survey
from tests.kernel.oci.stacks import Content, lineage, mutated, names, plain, remove_all, tree
from thinpool import Store

pytestmark = pytest.mark.kernel

SAMPLE = Path(__file__).parents[2] / "data" / "docker-save.tar"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """A file system for what umoci unpacks, with extended attributes."""
    images = Images.open(tmp_path_factory.mktemp("images"))
    yield images
    images.close()


def skopeo(*arguments: str | Path) -> str:
    return run("skopeo", "--insecure-policy", *map(str, arguments))


def umoci(*arguments: str | Path) -> str:
    return run("umoci", *map(str, arguments))


def known_to_go(steps: Iterable[Step]) -> list[Step]:
    """Steps without what Go's tar lacks: GNU's way to write a `%` or `=` in the name of an extended attribute."""
    odd = {number for number, name in enumerate(XATTRS) if "%" in name or "=" in name}
    return [step for step in steps if step.operation != "set_xattr" or step.y % len(XATTRS) not in odd]


# -- what we write


@pytest.mark.parametrize("compress", ["gzip", "zstd", "none"])
def test_skopeo_reads_it(store: Store, scratch: Path, compress: Any) -> None:
    stack = plain(store, "a", "b", "c")
    store.update_labels(stack[-1], {"k": "v"})
    result = store.export_image(stack[-1], scratch / "layout", tag="web/app:1.0", compress=compress)
    shown = json.loads(skopeo("inspect", f"oci:{scratch}/layout:web/app:1.0"))
    assert shown["Digest"] == result.digest
    assert shown["Layers"] == [layer.digest for layer in result.layers]
    assert shown["Labels"] == {"k": "v"}
    assert (shown["Os"], shown["Architecture"]) == ("linux", "amd64")
    skopeo("copy", f"oci:{scratch}/layout:web/app:1.0", f"dir:{scratch}/copy")
    copied = {f"sha256:{name}" for name in os.listdir(scratch / "copy")}
    assert {layer.digest for layer in result.layers} <= copied


@examples(5)
@given(first=makings, others=st.lists(steps, min_size=1, max_size=3))
def test_umoci_unpacks_it_to_the_same_tree(
    store: Store, scratch: Path, images: Images, first: list[Step], others: list[list[Step]]
) -> None:
    remove_all(store)
    stack = mutated(store, map(known_to_go, [first, *others]), "layer-")
    store.export_image(stack[-1], scratch / "layout")
    assert umoci("ls", "--layout", scratch / "layout").split() == ["latest"]
    images.make("copy")
    with images.mounted("copy") as place:
        umoci("unpack", "--image", f"{scratch}/layout:latest", place / "bundle")
        assert content(survey(place / "bundle" / "rootfs")) == tree(store, stack[-1])


# -- what they write


@examples(5)
@given(first=makings, others=st.lists(steps, min_size=1, max_size=3))
def test_what_umoci_packs(
    store: Store, scratch: Path, images: Images, first: list[Step], others: list[list[Step]]
) -> None:
    """An image with a layer for each change of a tree, whiteouts and all."""
    remove_all(store)
    layout = scratch / "umoci"
    run("rm", "-rf", str(layout))
    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:image")
    images.make("copy")
    with images.mounted("copy") as place:
        for number, changes in enumerate([first, *others]):
            bundle = place / f"bundle{number}"
            umoci("unpack", "--image", f"{layout}:image", bundle)
            Mutator(bundle / "rootfs").run(step for step in known_to_go(changes) if step.operation != "socket")
            umoci("repack", "--image", f"{layout}:image", bundle)
        bundle = place / "bundle"
        umoci("unpack", "--image", f"{layout}:image", bundle)
        unpacked = content(survey(bundle / "rootfs"))
    store.import_image("image", layout)
    layers = json.loads(skopeo("inspect", f"oci:{layout}:image"))["Layers"]  # none for steps that change nothing
    assert len(lineage(store, "image")) == len(layers)
    assert tree(store, "image") == unpacked


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_what_skopeo_copies(store: Store, scratch: Path, form: str) -> None:
    stack = plain(store, "a", "b", "c")
    store.prepare("work", stack[-1])
    with store.mount("work") as root:
        (root / "a").unlink()
        (root / "d").mkdir()
    store.commit("top", "work", labels={"k": "v"})
    store.export_image("top", scratch / "layout")
    skopeo("copy", f"oci:{scratch}/layout", f"{form}:{scratch}/copy:{'some/name:' if 'docker' in form else ''}tag")
    for tag in ("tag", None):
        layer = store.import_image("image", scratch / "copy", tag=tag)
        assert layer.labels["k"] == "v"
        assert len(lineage(store, "image")) == 4
        assert tree(store, "image") == tree(store, "top")
        store.remove("image")
    with subprocess.Popen(["tar", "-cf-", "-C", scratch / "layout", "."], stdout=subprocess.PIPE) as pipe:
        assert pipe.stdout is not None
        store.import_image("image", pipe.stdout)
    assert tree(store, "image") == tree(store, "top")


def test_layers_that_two_tools_wrote_are_known_by_their_content(store: Store, scratch: Path) -> None:
    """Compressed by one and plain by the other, they are the same layers."""
    stack = plain(store, "a", "b")
    store.export_image(stack[-1], scratch / "layout")
    store.import_image("one", scratch / "layout")
    skopeo("copy", f"oci:{scratch}/layout", f"docker-archive:{scratch}/archive:some/name:tag")
    before = names(store)
    store.import_image("two", scratch / "archive")
    assert names(store) - before == {"two"}
    assert store.stat("two").parent == store.stat("one").parent


def test_our_image_beside_theirs(store: Store, scratch: Path) -> None:
    layout = scratch / "layout"
    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:theirs")
    theirs = blobs(layout)
    stack = plain(store, "a")
    store.export_image(stack[-1], layout, tag="ours")
    assert sorted(umoci("ls", "--layout", layout).split()) == ["ours", "theirs"]
    assert theirs < blobs(layout)
    umoci("config", "--config.label", "added=label", "--image", f"{layout}:ours")
    umoci("gc", "--layout", layout)
    assert store.import_image("back", layout, tag="ours").labels["added"] == "label"
    umoci("rm", "--image", f"{layout}:ours")
    umoci("gc", "--layout", layout)
    assert blobs(layout) == theirs


def blobs(layout: Path) -> set[str]:
    return set(os.listdir(layout / "blobs/sha256"))


# -- what docker saved


def files_of(found: Content) -> set[str]:
    return {os.fsdecode(path) for path in found}


def test_what_docker_saved(store: Store) -> None:
    base = store.import_image("base", SAMPLE, tag="sample:base")
    assert files_of(tree(store, "base")) == {
        "/", "/dir", "/dir/one", "/dir/sub", "/dir/sub/two", "/etc", "/etc/linked", "/etc/motd", "/etc/symlink", "/old",
        "/old/gone",
    }  # fmt: skip
    assert base.labels["made"] == "here"
    assert json.loads(base.labels["thinpool.oci/config"])["Cmd"] == ["/bin/app"]
    with store.mount("base") as root:
        assert (root / "etc/linked").stat().st_ino == (root / "etc/motd").stat().st_ino
        assert (root / "dir/one").read_text() == "one\n"
        assert (root / "dir/one").stat().st_uid == 1000

    top = store.import_image("top", SAMPLE, tag="sample:top")
    assert (lineage(store, "top")[0], len(lineage(store, "top"))) == ("base", 3)
    assert (top.labels["made"], top.labels["more"]) == ("here", "labels")
    changed = store.stat("top").parent
    assert changed is not None
    assert files_of(tree(store, changed)) == {
        "/", "/bin", "/bin/busybox", "/dir", "/dir/one", "/dir/sub", "/dir/sub/three", "/etc", "/etc/motd",
        "/etc/symlink", "/new", "/new/fifo", "/new/null",
    }  # fmt: skip
    assert files_of(tree(store, "top")) == {
        "/", "/bin", "/bin/busybox", "/dir", "/etc", "/etc/motd", "/etc/symlink", "/new", "/new/fifo", "/new/null",
        "/old", "/old/again",
    }  # fmt: skip
    with store.mount("top") as root:
        assert (root / "dir").read_text() == "file\n"
        assert (root / "new").stat().st_mode & 0o7777 == 0o1777
        assert (root / "new/null").stat().st_rdev == os.makedev(1, 3)


def test_skopeo_takes_the_saved_for_the_same(store: Store, scratch: Path) -> None:
    skopeo("copy", f"docker-archive:{SAMPLE}:sample:top", f"oci:{scratch}/layout:top")
    store.import_image("one", scratch / "layout")
    store.import_image("two", SAMPLE, tag="top")
    assert lineage(store, "one")[:-1] == lineage(store, "two")[:-1]
    assert tree(store, "one") == tree(store, "two")
