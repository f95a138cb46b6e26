"""Reading what `docker save` wrote before it wrote OCI layouts, and what skopeo calls a docker-archive.

`manifest.json` is a list of images, each with its configuration, its names and its layers, which are uncompressed.
"""

import re
from collections.abc import Sequence

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.oci.digests import digest_of
from thinpool.oci.documents import Node, parse_list, parse_object
from thinpool.oci.image import Image, LayerBlob, pair
from thinpool.oci.layout import read_file
from thinpool.oci.places import Place
from thinpool.oci.values import ImageConfig

MANIFEST = "manifest.json"
_MOST_NAMED = 10
_BY_DIGEST = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)


def is_saved(place: Place) -> bool:
    """Whether there is an archive of `docker save`."""
    marker = place.open(MANIFEST)
    if marker is None:
        return False
    marker.close()
    return True


@attrs.frozen
class _Saved:
    """One image of the list."""

    config: str
    names: Sequence[str]
    layers: Sequence[str]

    @classmethod
    def read(cls, node: Node) -> "_Saved":
        return cls(node.text("Config"), node.texts("RepoTags"), node.texts("Layers"))

    def is_called(self, tag: str) -> bool:
        """Whether a tag is one of its names, `REPOSITORY:TAG`, or the part after the colon."""
        return any(tag in {name, name.rpartition(":")[2]} for name in self.names)


def read_saved(place: Place, tag: str | None) -> Image:
    """Read one image of an archive.

    Args:
        place: where the archive's files are.
        tag: which image, as in `debian:12` or `12`; may be None where there is but one.

    Raises:
        ArchiveError: there is no such image, or more than one, or it is malformed.
        UnsafeArchive: a document is too long.
    """
    data = read_file(place, MANIFEST, MANIFEST)
    images = [_Saved.read(node) for node in parse_list(data or b"", MANIFEST)]
    found = [image for image in images if tag is None or image.is_called(tag)]
    if len(found) != 1:
        raise _no_choice(images, len(found), tag)
    what = f"the image {shown(found[0].config)}"
    config = _read_config(place, found[0].config, what)
    diff_ids = pair(what, len(found[0].layers), config)
    return Image(place, config, [LayerBlob(*both) for both in zip(found[0].layers, diff_ids, strict=True)])


def _read_config(place: Place, path: str, what: str) -> ImageConfig:
    data = read_file(place, path, what)
    if data is None:
        raise ArchiveError(f"{what} is missing")
    named = _BY_DIGEST.fullmatch(path)
    if named is not None and digest_of(data) != f"sha256:{named[1]}":
        raise ArchiveError(f"{what} is damaged: its digest is {digest_of(data)}")
    return ImageConfig.read(parse_object(data, what))


def _no_choice(images: Sequence[_Saved], found: int, tag: str | None) -> ArchiveError:
    names = [name for image in images for name in image.names]
    there = f"there are {', '.join(map(shown, names[:_MOST_NAMED]))}" if names else "none has a name"
    if found:
        return ArchiveError(f"there is more than one image; {there}", hint="name one with --tag" if names else None)
    if tag is None:
        return ArchiveError(f"{MANIFEST} names no image")
    return ArchiveError(f"no image is called {shown(tag)}; {there}")
