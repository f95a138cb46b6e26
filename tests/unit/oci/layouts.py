"""Images made byte by byte, without the code under test."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """A layer with these files; a name that ends with a slash is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@attrs.define
class Made:
    """A layout as files by path."""

    files: dict[str, bytes] = attrs.field(factory=lambda: {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})

    def blob(self, data: bytes, media_type: str, **more: Any) -> Json:
        """Add a blob: its descriptor."""
        digest = sha256(data)
        self.files["blobs/sha256/" + digest[7:]] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def document(self, value: Any, media_type: str, **more: Any) -> Json:
        return self.blob(json.dumps(value).encode(), media_type, **more)

    def image(
        self, layers: Sequence[bytes], *, tag: str | None = None, config: Json | None = None, **more: Any
    ) -> Json:
        """Add an image of uncompressed layers: its descriptor, with a tag and other members."""
        whole = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
            **(config or {}),
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.document(whole, CONFIG),
            "layers": [self.blob(gzip.compress(layer, mtime=0), LAYER) for layer in layers],
        }
        if tag is not None:
            more["annotations"] = {REF: tag}
        return self.document(manifest, MANIFEST, **more)

    def index(self, manifests: Iterable[Json], **more: Any) -> "Made":
        """Write the index."""
        self.files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [*manifests], **more}).encode()
        return self

    def write(self, folder: Path) -> Path:
        """As a directory."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def tar(self) -> bytes:
        """As an archive."""
        return layer_tar(self.files)


def simple(*contents: str, **more: Any) -> Made:
    """A layout with one image, a layer for each name of a file."""
    made = Made()
    layers = [layer_tar({name: name.encode()}) for name in contents or ("a",)]
    return made.index([made.image(layers, **more)])
