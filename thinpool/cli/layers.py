"""Commands that make and remove layers: prepare, view, commit, rm."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from thinpool.cli import failure, output, render
from thinpool.cli.command import command
from thinpool.cli.params import LABEL, LAYER, SIZE
from thinpool.cli.settings import Settings
from thinpool.errors import LayerNotFound, ThinPoolError

if TYPE_CHECKING:
    from thinpool.model import Layer


def show(settings: Settings, layer: "Layer") -> None:
    """Print the layer that a command made, for programs; people see that there was no error."""
    if settings.json:
        output.write_json(render.layer_json(layer))


@command(
    "prepare",
    examples=[
        ("thinpool prepare job debian", "a writable snapshot of debian"),
        ("thinpool prepare scratch --size 20G", "an empty file system of 20 GiB"),
        ("thinpool prepare job-2 debian --label owner=ci", "with a label"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("parent", type=LAYER, required=False)
@click.option("--size", type=SIZE, metavar="SIZE", help="Size of its file system, at least the parent's.")
@click.option("--label", "labels", type=LABEL, multiple=True, metavar="KEY=VALUE", help="May be repeated.")
def prepare(
    settings: Settings, name: str, parent: str | None, size: int | None, labels: tuple[tuple[str, str], ...]
) -> None:
    """Make the active (writable) layer NAME: a snapshot of the committed layer PARENT, or empty.

    It takes milliseconds, and no space until something is written to it.
    """
    with settings.open_store() as store:
        layer = store.prepare(name, parent, size=size, labels=dict(labels) or None)
    show(settings, layer)


@command("view", examples=[("thinpool view look debian", "debian, to read")])
@click.argument("name", type=LAYER)
@click.argument("parent", type=LAYER)
def view(settings: Settings, name: str, parent: str) -> None:
    """Make the read-only layer NAME of the committed layer PARENT.

    A view keeps its parent from being removed, and is meant to be removed itself when it is no longer read.
    """
    with settings.open_store() as store:
        layer = store.view(name, parent)
    show(settings, layer)


@command(
    "commit",
    examples=[
        ("thinpool commit debian-hello job", "keep what was done in job"),
        ("thinpool commit debian-hello job --json", "and print the new layer"),
        ("thinpool commit job-noon job --live", "a checkpoint: job goes on"),
        ("thinpool commit vm-noon vm --live --freeze-hook './agent vm'", "of a microVM, whose guest holds still"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("active", type=LAYER)
@click.option("--live", is_flag=True, help="Let ACTIVE go on: a checkpoint.")
@click.option("--freeze-hook", "hook", metavar="CMD", help="With --live: call CMD freeze before, CMD thaw after.")
@click.option("--freeze-timeout", "seconds", type=float, metavar="SECONDS", help="For CMD, each time; else 30.")
def commit(settings: Settings, name: str, active: str, *, live: bool, hook: str | None, seconds: float | None) -> None:
    """Turn the active layer ACTIVE into the committed layer NAME.

    The commit holds the state of this instant, also where ACTIVE is mounted; what is written there afterwards belongs
    to no layer. The name ACTIVE is free again, or with --live goes on.

    Of a layer that a microVM has open as a block device, it is what a power cut would have left, which a warning says:
    whole, with a journal that is replayed when it is mounted first. CMD can tell the guest's agent to freeze its file
    system; it is split into words, and no shell is used. It is called with `thaw` whatever fails, and must not use this
    store itself.
    """
    if not live and hook is not None:
        raise click.UsageError("--freeze-hook is for a checkpoint: use it with --live")
    if hook is None and seconds is not None:
        raise click.UsageError("--freeze-timeout is for --freeze-hook")
    with settings.open_store() as store:
        if live:
            from thinpool.quiescing import HOOK_SECONDS, parse_command  # noqa: PLC0415 - seldom needed

            command = None if hook is None else parse_command(hook)
            layer = store.checkpoint(
                name, active, freeze=command, freeze_seconds=HOOK_SECONDS if seconds is None else seconds
            )
        else:
            layer = store.commit(name, active)
    if layer.crash_consistent and hook is None:
        failure.warn(f"{active} is in use as a block device: {name} is what a power cut would have left of it")
    if settings.json:
        output.write_json({**render.layer_json(layer), "crash_consistent": layer.crash_consistent})


@command(
    "rm",
    examples=[
        ("thinpool rm job look", "two layers"),
        ("thinpool rm --recursive debian", "a layer and all that descend from it"),
    ],
)
@click.argument("names", type=LAYER, nargs=-1, required=True, metavar="NAME...")
@click.option("-r", "--recursive", is_flag=True, help="Remove the layers that descend from them, too.")
def rm(settings: Settings, names: tuple[str, ...], *, recursive: bool) -> None:
    """Remove layers, children before their parents.

    A layer that others descend from is refused, unless they are removed too; so is one that is mounted. It stops at
    the first that cannot be removed, and says which were removed before.
    """
    removed: list[str] = []
    with settings.open_store() as store:
        try:
            for name in removal_order(store.walk(), names, recursive=recursive):
                store.remove(name)
                removed.append(name)
        except ThinPoolError as error:
            if removed:
                error.message += f"; removed before that: {', '.join(removed)}"
            raise
    if settings.json:
        output.write_json({"removed": removed})


def removal_order(layers: Iterable["Layer"], names: Sequence[str], *, recursive: bool) -> list[str]:
    """The named layers, with `recursive` their descendants too, each once, children before parents.

    Raises:
        LayerNotFound: one of the names is none of the layers'.
    """
    wanted = set(names)
    order: list[str] = []
    found: set[str] = set()
    for branch in render.branches(layers):
        name, parent = branch.layer.name, branch.layer.parent
        found.add(name)
        if recursive and parent in wanted:
            wanted.add(name)
        if name in wanted:
            order.append(name)
    for name in names:
        if name not in found:
            raise LayerNotFound(f"no layer {name!r} in the store; nothing was removed")
    return order[::-1]
