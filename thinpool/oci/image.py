"""An image that can be taken in: what it says of itself, and its layers, wherever they lie."""

from collections.abc import Sequence

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.oci.digests import chain_ids
from thinpool.oci.places import Blob, Place
from thinpool.oci.values import ImageConfig


@attrs.frozen
class LayerBlob:
    """One layer of an image.

    Attributes:
        path: where its archive is.
        diff_id: the digest that the archive must have, uncompressed.
        digest: the digest that it must have as it is; None where only the other is known.
        size: the bytes that it must have; None likewise.
    """

    path: str
    diff_id: str
    digest: str | None = None
    size: int | None = None

    def open(self, place: Place) -> Blob:
        """The archive.

        Raises:
            ArchiveError: it is missing, or of another size.
        """
        blob = place.open(self.path)
        if blob is None:
            raise ArchiveError(f"the layer {shown(self.path)} is missing")
        if self.size is not None and blob.size != self.size:
            blob.close()
            raise ArchiveError(f"the layer {shown(self.path)} has {blob.size} bytes; the manifest says {self.size}")
        return blob

    def verify(self, digest: str, diff_id: str) -> None:
        """Compare what was read with what it had to be.

        Raises:
            ArchiveError: it is something else.
        """
        if self.digest is not None and digest != self.digest:
            raise ArchiveError(f"the layer {shown(self.path)} is damaged: its digest is {digest}")
        if diff_id != self.diff_id:
            raise ArchiveError(
                f"the layer {shown(self.path)} is not what the image says: its diff id is {diff_id}, not {self.diff_id}"
            )


@attrs.frozen
class Image:
    """One image.

    Attributes:
        place: where its layers are.
        config: what it says of itself.
        layers: from the lowest to the highest; at least one.
    """

    place: Place
    config: ImageConfig
    layers: Sequence[LayerBlob]

    @property
    def chain_ids(self) -> Sequence[str]:
        """What each layer is together with those below it."""
        return chain_ids([layer.diff_id for layer in self.layers])


def pair(what: str, count: int, config: ImageConfig) -> Sequence[str]:
    """The diff ids of so many layers.

    Raises:
        ArchiveError: the configuration has more or fewer, or there are none.
    """
    if count != len(config.diff_ids):
        raise ArchiveError(f"{what} has {count} layers, and its configuration {len(config.diff_ids)} diff ids")
    if not count:
        raise ArchiveError(f"{what} has no layers")
    return config.diff_ids
