"""Commands that show layers: ls, tree, stat, du."""

import click

from thinpool.cli import output, render
from thinpool.cli.command import command
from thinpool.cli.params import LAYER
from thinpool.cli.settings import Settings


@command(
    "ls",
    examples=[
        ("thinpool ls", "all layers"),
        ("thinpool ls -q", "their names only"),
        ("thinpool ls --json | jq -r '.[] | select(.kind == \"active\") | .name'", "the active ones"),
    ],
)
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option(
    "-z", "--null", is_flag=True, help="End each row with a NUL; fields are separated by tabs, sizes in bytes."
)
def ls(settings: Settings, *, quiet: bool, null: bool) -> None:
    """List the layers.

    SIZE is that of the layer's file system, if the driver sets one; USAGE is what the layer holds and its parent does
    not.
    """
    with settings.open_store() as store:
        layers = list(store.walk())
        if quiet and not settings.json:
            (output.write_nul if null else output.write_lines)(layer.name for layer in layers)
            return
        usages = store.usages()
        mounted = store.mounted()
    layers = [layer for layer in layers if layer.name in usages]
    if settings.json:
        output.write_json_list(
            render.row_json(layer, usages[layer.name], mounted=layer.name in mounted) for layer in layers
        )
    elif null:
        output.write_nul(
            "\t".join(render.layer_cells(layer, usages[layer.name], mounted=layer.name in mounted)) for layer in layers
        )
    else:
        output.write_lines(render.layer_table(layers, usages, mounted))


@command("tree", examples=[("thinpool tree", "who descends from whom")])
def tree(settings: Settings) -> None:
    """Draw the layers as a tree, with the space of each.

    EXCLUSIVE is what removing the layer would free; SHARED is what it has in common with others. With --json it is a
    list in the same order, each layer with its depth.
    """
    with settings.open_store() as store:
        layers = list(store.walk())
        usages = store.usages()
        mounted = store.mounted()
    layers = [layer for layer in layers if layer.name in usages]
    if settings.json:
        output.write_json_list(render.tree_json(layers, usages, mounted))
        return
    unicode = output.can_draw("".join(render.UNICODE_BRANCHES))
    drawing = render.UNICODE_BRANCHES if unicode else render.ASCII_BRANCHES
    output.write_lines(render.tree_lines(layers, usages, mounted, drawing))


@command(
    "stat",
    examples=[
        ("thinpool stat job", "all about job"),
        ("thinpool stat job --json | jq -r '.mounts[]'", "where it is mounted"),
    ],
)
@click.argument("name", type=LAYER)
def stat(settings: Settings, name: str) -> None:
    """Show all that is known of the layer NAME: kind, times, space, labels, mounts.

    Of the space, `own` is what the layer holds and its parent does not, `exclusive` what removing it would free,
    `referenced` all that it maps, shared or not.
    """
    with settings.open_store() as store:
        layer = store.stat(name)
        usage = store.usage(name)
        mounts = [str(path) for path in store.mounts(name)]
    if settings.json:
        output.write_json(render.stat_json(layer, usage, mounts))
    else:
        output.write_lines(render.stat_lines(layer, usage, mounts))


@command(
    "du",
    examples=[
        ("thinpool du", "all layers"),
        ("thinpool du job --json | jq '.[0].exclusive'", "what removing job frees, in bytes"),
    ],
)
@click.argument("name", type=LAYER, required=False)
def du(settings: Settings, name: str | None) -> None:
    """Show what layers, or the layer NAME, occupy.

    SIZE is what a layer holds and its parent does not, EXCLUSIVE what removing it would free, REFERENCED all that it
    maps, shared or not. With --json it is a list, also for one layer.
    """
    with settings.open_store() as store:
        usages = store.usages() if name is None else {name: store.usage(name)}
    if settings.json:
        output.write_json_list(render.usage_json(each, usage) for each, usage in sorted(usages.items()))
    else:
        output.write_lines(render.usage_table(usages))
