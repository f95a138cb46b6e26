"""The documents of an image as values: descriptor, index, manifest, configuration."""

from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.oci import media
from thinpool.oci.digests import check_digest
from thinpool.oci.documents import Node
from thinpool.oci.platform import Platform

_RUN_TEXTS = ("User", "WorkingDir", "StopSignal")
_RUN_LISTS = ("Env", "Entrypoint", "Cmd")
_RUN_SETS = ("ExposedPorts", "Volumes")
Shape = Literal["index", "manifest"]


@attrs.frozen
class Descriptor:
    """What a document says of a blob (descriptor.md).

    Attributes:
        media_type: what the blob is.
        digest: its digest, of a form that is checked.
        size: its bytes.
        annotations: free-form.
        platform: what it runs on, where that is said.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    platform: Platform | None = None

    @classmethod
    def read(cls, node: Node) -> "Descriptor":
        """Read one; raises ArchiveError."""
        return cls(
            node.text("mediaType"),
            check_digest(node.text("digest"), node.what),
            node.number("size"),
            node.pairs("annotations"),
            Platform.read(node.node("platform")) if node.has("platform") else None,
        )

    def members(self) -> dict[str, object]:
        """The members of the object that says it."""
        said: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            said["annotations"] = dict(self.annotations)
        if self.platform is not None:
            said["platform"] = self.platform.members()
        return said

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called by, in an index."""
        return tuple(self.annotations[key] for key in (media.REF_NAME, media.IMAGE_NAME) if key in self.annotations)


def check_shape(node: Node, shape: Shape, media_type: str) -> None:
    """Refuse a document that another reader could take for something else than we do.

    Raises:
        ArchiveError: a version, a media type or members that contradict what the document is to be.
    """
    said = node.text("mediaType", media_type)
    if said != media_type:
        raise ArchiveError(f"{node.what} calls itself {shown(said)}, and is referred to as {shown(media_type)}")
    if node.number("schemaVersion") != 2:
        raise ArchiveError(f"{node.what}: schemaVersion {node.number('schemaVersion')}; accepted is 2")
    strange = ("manifests",) if shape == "manifest" else ("config", "layers")
    if any(node.has(key) for key in strange):
        raise ArchiveError(f"{node.what} is both a manifest and an index")


@attrs.frozen
class Manifest:
    """One image (manifest.md).

    Attributes:
        config: its configuration.
        layers: from the lowest to the highest.
    """

    config: Descriptor
    layers: Sequence[Descriptor]

    @classmethod
    def read(cls, node: Node) -> "Manifest":
        """Read one whose shape is checked.

        Raises:
            ArchiveError: malformed, or what it holds is no image of file systems.
        """
        config = Descriptor.read(node.node("config"))
        if config.media_type not in media.CONFIGS:
            raise ArchiveError(f"{node.what} is no image: its configuration is {shown(config.media_type)}")
        layers = tuple(Descriptor.read(inner) for inner in node.nodes("layers"))
        for layer in layers:
            if layer.media_type not in media.LAYERS:
                raise ArchiveError(f"{node.what}: a layer of type {shown(layer.media_type)}, which is not understood")
        return cls(config, layers)

    def members(self) -> dict[str, object]:
        """The document."""
        return {
            "schemaVersion": 2,
            "mediaType": media.MANIFEST,
            "config": self.config.members(),
            "layers": [layer.members() for layer in self.layers],
        }


@attrs.frozen
class ImageConfig:
    """What an image says of itself (config.md).

    Attributes:
        diff_ids: digests of the uncompressed layers, from the lowest to the highest.
        platform: what it runs on.
        run: how a container of it is run: `Env`, `Cmd`, `Entrypoint`, `User`, `WorkingDir` and the like.
        labels: free-form.
    """

    diff_ids: Sequence[str]
    platform: Platform
    run: Mapping[str, object] = attrs.field(factory=dict)
    labels: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def read(cls, node: Node) -> "ImageConfig":
        """Read one; raises ArchiveError."""
        rootfs = node.node("rootfs")
        if rootfs.text("type", "layers") != "layers":
            raise ArchiveError(f"{rootfs.what} is of type {shown(rootfs.text('type'))}; accepted is layers")
        diff_ids = tuple(check_digest(text, rootfs.what) for text in rootfs.texts("diff_ids"))
        config = node.node("config")
        return cls(diff_ids, Platform.read(node), read_run(config), config.pairs("Labels"))


def read_run(node: Node) -> dict[str, object]:
    """How a container is run, of the members that the specification has; null counts as missing."""
    run: dict[str, object] = {key: node.text(key) for key in _RUN_TEXTS if node.has(key)}
    run |= {key: list(node.texts(key)) for key in _RUN_LISTS if node.has(key)}
    run |= {key: {name: {} for name in node.node(key).names()} for key in _RUN_SETS if node.has(key)}
    return {key: value for key, value in run.items() if value}
