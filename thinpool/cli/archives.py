"""Commands that turn archives into layers and layers into archives: import, export."""

from pathlib import Path
from typing import Literal, get_args

import attrs
import click

from thinpool.cli import failure, files, output
from thinpool.cli.command import command
from thinpool.cli.layers import show
from thinpool.cli.params import LAYER, PATH
from thinpool.cli.progress import progress_bar
from thinpool.cli.settings import Settings

Compression = Literal["none", "gzip", "zstd", "xz"]


@command(
    "import",
    examples=[
        ("thinpool import debian debian.tar.zst", "a root file system"),
        ("thinpool import app layer.tar.gz --parent debian", "an OCI layer on top of it"),
        ("mmdebstrap stable - | thinpool import debian", "from another program"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("file", type=PATH, default="-", metavar="[FILE|-]")
@click.option("--parent", type=LAYER, metavar="LAYER", help="The committed layer that the archive is a change to.")
def import_(settings: Settings, name: str, file: Path, parent: str | None) -> None:
    """Make the committed layer NAME from a layer tar: FILE, or standard input.

    The archive may be plain or compressed with gzip, zstd or xz; OCI and Docker whiteouts are understood. The layer
    appears when all of it is there, or not at all.
    """
    with (
        files.source(file) as (stream, total),
        settings.open_store() as store,
        progress_bar(f"importing {name}", total) as progress,
    ):
        layer = store.import_layer(name, stream, parent=parent, progress=progress)
    show(settings, layer)


@command(
    "export",
    examples=[
        ("thinpool export debian-hello -o hello.tar.zst --compress zstd", "the difference to its parent"),
        ("thinpool export job debian | tar -tv", "the difference to another layer, to look at"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("base", type=LAYER, required=False)
@click.option(
    "-o", "--output", "target", type=PATH, default="-", metavar="FILE", help="Where to; else standard output."
)
@click.option("--compress", type=click.Choice(get_args(Compression)), default="none", help="Compression; else none.")
def export(settings: Settings, name: str, base: str | None, target: Path, compress: Compression) -> None:
    """Write the layer NAME as an OCI layer tar: its difference to its parent, or to the layer BASE.

    FILE appears when it is complete. Two exports of one layer are the same bytes.
    """
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
