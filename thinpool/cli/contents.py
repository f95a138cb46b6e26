"""Commands about what is in a layer: mount, umount, run, diff."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import click

from thinpool.cli import output, signals
from thinpool.cli.command import command
from thinpool.cli.giving_way import gives_way
from thinpool.cli.params import LAYER, PATH, VOLUME
from thinpool.cli.settings import Settings
from thinpool.model import Changes, Volume
from thinpool.units import human_size

_LOG = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def _with_volumes(body: Callable[P, R]) -> Callable[P, R]:
    """The options of commands that mount volumes."""
    others = click.option(
        "--volumes-from", type=LAYER, multiple=True, metavar="NAME", help="With the volumes of that layer; repeatable."
    )
    own = click.option(
        "--volume",
        "volumes",
        type=VOLUME,
        multiple=True,
        metavar="SRC:DST[:ro]",
        help="Mount SRC of the host on DST in the layer; repeatable.",
    )
    return own(others(body))


@command(
    "mount",
    examples=[
        ("thinpool mount job /mnt", "job, on a directory"),
        ("thinpool mount job /mnt --read-only", "to look at"),
        ("thinpool mount job /mnt --volume /srv/cache:/var/cache", "with a directory of the host inside"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("target", type=PATH, metavar="DIR")
@click.option("--read-only", is_flag=True, help="Let nothing be written through this mount.")
@_with_volumes
def mount(
    settings: Settings,
    name: str,
    target: Path,
    *,
    read_only: bool,
    volumes: tuple[Volume, ...],
    volumes_from: tuple[str, ...],
) -> None:
    """Mount the layer NAME on the directory DIR.

    A committed layer or a view is mounted read-only, always. A layer that is mounted there already stays so. Volumes
    are no part of the layer: no commit, diff or export holds what is in them. Their targets are made if missing.
    """
    with settings.open_store() as store:
        made = store.mount(name, target, read_only=read_only, volumes=volumes, volumes_from=volumes_from)
    if settings.json:
        output.write_json({"name": made.name, "target": str(made.target)})


@command(
    "umount",
    examples=[
        ("thinpool umount /mnt", "what is mounted on /mnt"),
        ("thinpool umount job", "job, wherever it is mounted"),
        ("thinpool umount --lazy job", "also while somebody works in it"),
    ],
)
@click.argument("place", metavar="NAME|DIR")
@click.option("--lazy", is_flag=True, help="Detach what is busy; who has a file of it open keeps that.")
def umount(settings: Settings, place: str, *, lazy: bool) -> None:
    """Unmount the layer NAME everywhere, or the layer that is mounted on the directory DIR.

    A word that is the name of a layer is taken as that; write ./DIR for a directory of the same name. Where it is busy,
    the error names by whom.
    """
    with settings.open_store() as store:
        store.unmount(place, lazy=lazy)


@command(
    "run",
    examples=[
        ("thinpool run job -- apt-get update", "a command in job"),
        ("thinpool run job --workdir /root -- bash", "a shell"),
        ("thinpool run job --volume /srv/src:/src:ro -- make -C /src", "with a directory of the host, read-only"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("-w", "--workdir", default="/", metavar="DIR", help="Directory in the layer to run in; else /.")
@_with_volumes
def run(
    settings: Settings,
    name: str,
    argv: tuple[str, ...],
    workdir: str,
    volumes: tuple[Volume, ...],
    volumes_from: tuple[str, ...],
) -> int:
    """Run COMMAND in the layer NAME: mounted in a private mount namespace, chrooted, unmounted after.

    The environment is that of a login: PATH, HOME and TERM. The exit status is the command's; 127 if it is not found,
    126 if it cannot be executed, 128 and the signal's number if a signal ended it.
    """
    with settings.open_store() as store, signals.left_to_child():
        return store.run(name, argv, cwd=workdir, volumes=volumes, volumes_from=volumes_from)


@command(
    "diff",
    examples=[
        ("thinpool diff job", "what changed against its parent"),
        ("thinpool diff job other", "what differs from another layer"),
        ("thinpool -v diff job --method fast", "say what it took, and fail where only a walk over both trees would do"),
        ("thinpool diff -z job | grep -zv ' /var/cache/' | tr '\\0' '\\n'", "for a script, whatever the names"),
    ],
)
@click.argument("name", type=LAYER)
@click.argument("base", type=LAYER, required=False)
@click.option("-z", "--null", is_flag=True, help="End each row with a NUL, and escape nothing.")
@click.option(
    "--method",
    type=click.Choice(["auto", "fast", "walk"]),
    default="auto",
    help="How to compare: by what the storage knows to have changed (fast), by a walk over both trees, or, by default, "
    "by the first of them that is sure. With -v it is said how, and why by a walk.",
)
@gives_way
def diff(
    settings: Settings, name: str, base: str | None, *, null: bool, method: Literal["auto", "fast", "walk"]
) -> None:
    r"""Show how the layer NAME differs from its parent, or from the layer BASE.

    `A /path` was added, `C /path` changed, `D /path` deleted; sorted by path. Characters that cannot be printed appear
    as \n, \xNN, \uNNNN, and a backslash as two.
    """
    with settings.open_store() as store:
        changes = store.changes(name, base, method=method)
        _LOG.info("%s", _account(changes))
        if settings.json:
            output.write_json_list({"kind": change.kind, "path": change.path} for change in changes)
        elif null:
            output.write_nul(f"{change.kind} {change.path}" for change in changes)
        else:
            output.write_lines(f"{change.kind} {output.escape(change.path)}" for change in changes)


def _account(changes: Changes) -> str:
    """How a comparison was made."""
    text = f"compared by method {changes.method}"
    if changes.reason is not None:
        text += f": {changes.reason}"
    if changes.reads is not None and changes.bytes is not None:
        text += f", {changes.reads} reads of {human_size(changes.bytes)}"
    return text
