"""Images of several layers: OCI image layouts, read and written, and the archives of `docker save`, read.

The formats are those of the OCI image specification, version 1.1 (image-layout.md, image-index.md, manifest.md,
config.md, layer.md); what `docker save` writes is described in moby's image/spec/v1.2.md.
"""
