"""Commands that turn archives into layers and layers into archives: import, export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import attrs
import click

from thinpool.cli import failure, files, output
from thinpool.cli.command import command
from thinpool.cli.giving_way import gives_way
from thinpool.cli.layers import show
from thinpool.cli.params import LABEL, LAYER, PATH
from thinpool.cli.progress import progress_bar
from thinpool.cli.settings import Settings
from thinpool.layer.limits import Limits

Compression = Literal["none", "gzip", "zstd", "xz"]
ImageCompression = Literal["none", "gzip", "zstd"]


@command(
    "import",
    examples=[
        ("thinpool import debian debian.tar.zst", "a root file system"),
        ("thinpool import app layer.tar.gz --parent debian", "an OCI layer on top of it"),
        ("mmdebstrap stable - | thinpool import debian", "from another program"),
        ("thinpool import web --oci images --tag web", "all layers of an image in an OCI layout"),
        ("docker save web:1 | thinpool import web --oci -", "all layers of an image, from Docker"),
        ("thinpool import big big.tar --ioprio idle", "while the disk has nothing else to do"),
        ("thinpool import guest guest.tar --no-devices --limit size=2G", "what somebody else made, within bounds"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("file", type=PATH, required=False, metavar="[FILE|-]")
@click.option("--parent", type=LAYER, metavar="LAYER", help="The committed layer that the archive is a change to.")
@click.option(
    "--oci", type=PATH, metavar="PATH|-", help="Take in an image: an OCI layout, its tar, or what docker save writes."
)
@click.option("--tag", metavar="REF", help="Which image of PATH, where there is more than one.")
@click.option(
    "--limit", "limits", type=LABEL, multiple=True, metavar="KEY=VALUE",
    help="What it may ask for, as in size=20G; may be repeated.",
)  # fmt: skip
@click.option("--devices/--no-devices", default=True, help="Make device nodes, or leave them out; else make them.")
@gives_way
def import_(
    settings: Settings, name: str, file: Path | None, parent: str | None, oci: Path | None, tag: str | None,
    limits: Sequence[tuple[str, str]], *, devices: bool,
) -> None:  # fmt: skip
    """Make the committed layer NAME from a layer tar: FILE, or standard input.

    The archive may be plain or compressed with gzip, zstd or xz; OCI and Docker whiteouts are understood. The layer
    appears when all of it is there, or not at all.

    With --oci, or where FILE is a directory, all layers of an image are taken in, each verified against its digest and
    diff id: NAME is the topmost, and those below are named by their chain ids (sha256:...). Layers that the store has
    from another image are used again.

    Limits are entries (files and directories), size (of all files together), ratio (uncompressed to compressed) and
    ratio_from (bytes from which on it counts), path_length, header_size (extended headers of one entry) and
    window_size (memory of a decompressor). Sizes are binary.
    """
    bounds = Limits.parse(dict(limits))
    if file is not None and oci is None and file.is_dir():
        file, oci = None, file
    if oci is None:
        if tag is not None:
            raise click.UsageError("--tag is for an image: name it with --oci")
        archive = files.STANDARD if file is None else file
        with (
            files.source(archive) as (stream, total),
            settings.open_store() as store,
            progress_bar(f"importing {name}", total) as progress,
        ):
            layer = store.import_layer(name, stream, parent=parent, limits=bounds, devices=devices, progress=progress)
    else:
        if file is not None or parent is not None:
            raise click.UsageError(f"{'FILE' if file else '--parent'} is for a layer tar, and --oci for an image")
        with (
            files.image(oci) as source,
            settings.open_store() as store,
            progress_bar(f"importing {name}", None) as progress,
        ):
            layer = store.import_image(name, source, tag=tag, limits=bounds, devices=devices, progress=progress)
    show(settings, layer)


@command(
    "export",
    examples=[
        ("thinpool export debian-hello -o hello.tar.zst --compress zstd", "the difference to its parent"),
        ("thinpool export job debian | tar -tv", "the difference to another layer, to look at"),
        ("thinpool export web --oci images --tag web:1", "it and its ancestors, as an image"),
        ("thinpool export web -o web.tar --cgroup /sys/fs/cgroup/slow", "within the io.max of a control group"),
        ("thinpool export web --oci images --compress zstd", "with smaller layers, as the image latest"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("base", type=LAYER, required=False)
@click.option("-o", "--output", "target", type=PATH, metavar="FILE", help="Where to; else standard output.")
@click.option("--oci", type=PATH, metavar="DIR", help="Write an OCI image layout, of NAME and all its ancestors.")
@click.option("--tag", metavar="REF", help="Name of the image in the layout; else latest.")
@click.option("--compress", type=click.Choice(get_args(Compression)), help="Compression; else none, in an image gzip.")
@gives_way
def export(
    settings: Settings, name: str, base: str | None, target: Path | None, oci: Path | None, tag: str | None,
    compress: Compression | None,
) -> None:  # fmt: skip
    """Write the layer NAME as an OCI layer tar: its difference to its parent, or to the layer BASE.

    FILE appears when it is complete. Two exports of one layer are the same bytes.

    With --oci, NAME and all its ancestors become an image in the OCI image layout DIR, which is made, or gets one
    image more; an image that has the tag already is replaced. The image appears when all of it is written. Other tools
    know it as oci:DIR:REF.
    """
    if oci is not None:
        if base is not None or target is not None:
            raise click.UsageError(f"{'BASE' if base else '-o'} is for a layer tar, and --oci for an image")
        if compress == "xz":
            raise click.UsageError("the layers of an image are compressed with gzip, zstd or none, not with xz")
        _export_image(settings, name, oci, tag or "latest", compress or "gzip")
        return
    if tag is not None:
        raise click.UsageError("--tag is for an image: name its directory with --oci")
    _export_layer(settings, name, base, target or files.STANDARD, compress or "none")


def _export_layer(settings: Settings, name: str, base: str | None, target: Path, compress: Compression) -> None:
    if settings.json and target == files.STANDARD:
        raise click.UsageError("--json needs -o FILE: standard output is the archive's")
    with (
        settings.open_store() as store,
        files.sink(target) as stream,
        progress_bar(f"exporting {name}", None) as progress,
    ):
        result = store.export_layer(name, stream, base, compress=compress, progress=progress)
    for warning in result.warnings:
        failure.warn(warning)
    if settings.json:
        output.write_json({"name": name, "file": str(target), "compress": compress, **attrs.asdict(result)})


def _export_image(settings: Settings, name: str, oci: Path, tag: str, compress: ImageCompression) -> None:
    with settings.open_store() as store, progress_bar(f"exporting {name}", None) as progress:
        result = store.export_image(name, oci, tag=tag, compress=compress, progress=progress)
    for warning in result.warnings:
        failure.warn(warning)
    if settings.json:
        output.write_json({"name": name, "directory": str(oci), "compress": compress, **attrs.asdict(result)})
