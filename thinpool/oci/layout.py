"""Reading an OCI image layout: from its index to one image, with every document verified by its digest."""

from collections.abc import Sequence
from contextlib import closing

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.oci import media
from thinpool.oci.digests import blob_path, digest_of
from thinpool.oci.documents import Node, parse_object, refuse_long
from thinpool.oci.image import Image, LayerBlob, pair
from thinpool.oci.places import Place
from thinpool.oci.platform import Platform
from thinpool.oci.values import Descriptor, ImageConfig, Manifest, check_shape

MARKER = "oci-layout"
INDEX = "index.json"
VERSION_KEY = "imageLayoutVersion"
_DEEPEST = 4
_MOST_NAMED = 10


def is_layout(place: Place) -> bool:
    """Whether there is an OCI image layout."""
    marker = place.open(MARKER)
    if marker is None:
        return False
    marker.close()
    return True


def read_layout(place: Place, tag: str | None, platform: Platform) -> Image:
    """Read one image of a layout.

    Args:
        place: where the layout is.
        tag: which image: a name that its index has for it; may be None where there is but one.
        platform: of an image for several platforms, which.

    Raises:
        ArchiveError: there is no such image, or more than one, or it is malformed, or not what its digest says.
        UnsafeArchive: a document is too long, or nested too deeply.
    """
    version = parse_object(_read_file(place, MARKER), MARKER).text(VERSION_KEY)
    if not version.startswith("1."):
        raise ArchiveError(f"the OCI layout has version {shown(version)}; accepted is 1")
    index = parse_object(_read_file(place, INDEX), INDEX)
    check_shape(index, "index", media.INDEX)
    found = _tagged(_images(index), tag)
    manifest_of = _choose(place, found, platform, 0)
    what = f"the manifest {manifest_of.digest}"
    node = _read_document(place, manifest_of, what)
    check_shape(node, "manifest", manifest_of.media_type)
    manifest = Manifest.read(node)
    config = ImageConfig.read(_read_document(place, manifest.config, "the configuration of the image"))
    diff_ids = pair(what, len(manifest.layers), config)
    layers = [
        LayerBlob(blob_path(layer.digest), diff_id, layer.digest, layer.size)
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
    ]
    return Image(place, config, layers)


def _images(index: Node) -> Sequence[Descriptor]:
    """What an index has that can be an image; attestations and other artifacts are passed over."""
    wanted = media.MANIFESTS | media.INDEXES
    nodes = [node for node in index.nodes("manifests") if node.text("mediaType") in wanted]
    found = [Descriptor.read(node) for node in nodes if not node.has("artifactType")]
    return [one for one in found if one.platform is None or one.platform.os != "unknown"]


def _tagged(found: Sequence[Descriptor], tag: str | None) -> Sequence[Descriptor]:
    """The descriptors of one name."""
    if tag is not None:
        chosen = [one for one in found if tag in one.names]
        if not chosen:
            raise ArchiveError(f"no image is tagged {shown(tag)}; {_named(found)}", hint=_hint(found))
        return chosen
    if len({one.names[:1] for one in found}) > 1 and len({one.digest for one in found}) > 1:
        raise ArchiveError(f"there is more than one image; {_named(found)}", hint=_hint(found))
    return found


def _named(found: Sequence[Descriptor]) -> str:
    names = sorted({name for one in found for name in one.names[:1]})
    if not names:
        return "none has a tag"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"tags are {', '.join(map(shown, names[:_MOST_NAMED]))}{more}"


def _hint(found: Sequence[Descriptor]) -> str | None:
    return "name one with --tag" if any(one.names for one in found) else None


def _choose(place: Place, found: Sequence[Descriptor], platform: Platform, depth: int) -> Descriptor:
    """The descriptor of a manifest, through an index of platforms where there is one."""
    chosen = _best(found, platform)
    if chosen.media_type in media.MANIFESTS:
        return chosen
    if depth == _DEEPEST:
        raise ArchiveError(f"indexes lie in each other more than {_DEEPEST} deep")
    node = _read_document(place, chosen, f"the index {chosen.digest}")
    check_shape(node, "index", chosen.media_type)
    return _choose(place, _images(node), platform, depth + 1)


def _best(found: Sequence[Descriptor], platform: Platform) -> Descriptor:
    """The one that suits a platform; the only one suits always."""
    if len({one.digest for one in found}) == 1:
        return found[0]
    ranked = [(_rank(one, platform), number) for number, one in enumerate(found)]
    suiting = sorted((rank, number) for rank, number in ranked if rank is not None)
    if not suiting:
        there = ", ".join(sorted({str(one.platform) for one in found})) or "none at all"
        raise ArchiveError(f"there is no image for {platform}; there are: {there}")
    best = [found[number] for rank, number in suiting if rank == suiting[0][0]]
    if len({one.digest for one in best}) > 1:
        raise ArchiveError(f"there is more than one image for {platform}; {_named(best)}", hint=_hint(best))
    return best[0]


def _rank(one: Descriptor, platform: Platform) -> int | None:
    return 0 if one.platform is None else one.platform.rank(platform)


def _read_document(place: Place, descriptor: Descriptor, what: str) -> Node:
    refuse_long(descriptor.size, what)
    data = _read_file(place, blob_path(descriptor.digest), what)
    if len(data) != descriptor.size:
        raise ArchiveError(f"{what} has {len(data)} bytes; its descriptor says {descriptor.size}")
    if digest_of(data) != descriptor.digest:
        raise ArchiveError(f"{what} is damaged: its digest is {digest_of(data)}, not {descriptor.digest}")
    return parse_object(data, what)


def _read_file(place: Place, path: str, what: str | None = None) -> bytes:
    data = read_file(place, path, what or path)
    if data is None:
        raise ArchiveError(f"{what or path} is missing")
    return data


def read_file(place: Place, path: str, what: str) -> bytes | None:
    """All of a document, or None where there is none.

    Raises:
        UnsafeArchive: it is too long.
    """
    blob = place.open(path)
    if blob is None:
        return None
    with closing(blob):
        refuse_long(blob.size, what)
        return blob.readall()
