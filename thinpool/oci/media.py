"""Media types and annotation keys (OCI media-types.md and annotations.md; moby's and distribution's for Docker)."""

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

MANIFESTS = frozenset({MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({INDEX, DOCKER_LIST})
CONFIGS = frozenset({CONFIG, DOCKER_CONFIG})
LAYERS = frozenset(
    {
        *(f"{LAYER}{suffix}" for suffix in ("", "+gzip", "+zstd")),
        *(f"application/vnd.oci.image.layer.nondistributable.v1.tar{suffix}" for suffix in ("", "+gzip", "+zstd")),
        *(f"application/vnd.docker.image.rootfs.diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")),
        *(f"application/vnd.docker.image.rootfs.foreign.diff.tar{suffix}" for suffix in ("", ".gzip")),
    }
)

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
