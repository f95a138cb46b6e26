"""The `thinpool` command: its groups of commands, and how a run begins and ends."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

import click

from thinpool import __version__
from thinpool.cli import failure
from thinpool.cli.command import COMPLETE_VARIABLE, PROGRAM, Group
from thinpool.cli.output import visible
from thinpool.cli.settings import Settings

_SECTIONS = {
    "Store": {
        "init": "thinpool.cli.storage:init",
        "drivers": "thinpool.cli.storage:drivers",
        "info": "thinpool.cli.storage:info",
        "up": "thinpool.cli.storage:up",
        "down": "thinpool.cli.storage:down",
        "grow": "thinpool.cli.storage:grow",
        "check": "thinpool.cli.checking:check",
        "recover": "thinpool.cli.checking:recover",
    },
    "Layers": {
        "prepare": "thinpool.cli.layers:prepare",
        "view": "thinpool.cli.layers:view",
        "commit": "thinpool.cli.layers:commit",
        "rm": "thinpool.cli.layers:rm",
        "ls": "thinpool.cli.listing:ls",
        "tree": "thinpool.cli.listing:tree",
        "stat": "thinpool.cli.listing:stat",
        "du": "thinpool.cli.listing:du",
    },
    "Contents": {
        "mount": "thinpool.cli.contents:mount",
        "umount": "thinpool.cli.contents:umount",
        "run": "thinpool.cli.contents:run",
        "diff": "thinpool.cli.contents:diff",
    },
    "Archives": {
        "import": "thinpool.cli.archives:import_",
        "export": "thinpool.cli.archives:export",
    },
    "Tools": {
        "device": "thinpool.cli.device:device",
        "systemd": "thinpool.cli.systemd:systemd",
        "completion": "thinpool.cli.completion:completion",
    },
}

EXAMPLES = [
    ("thinpool init", "make a store in /var/lib/thinpool"),
    ("thinpool import debian debian.tar", "a layer from the tar of a root file system"),
    ("thinpool prepare job debian", "a writable snapshot of it"),
    ("thinpool run job -- sh -c 'echo hello > /greeting'", "change something in it"),
    ("thinpool diff job", "what changed"),
    ("thinpool commit debian-hello job", "keep it as a layer"),
]


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value and not ctx.resilient_parsing:
        click.echo(f"thinpool {__version__}")
        ctx.exit()


@click.group(cls=Group, sections=_SECTIONS, examples=EXAMPLES, top=True, name=PROGRAM)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Copy-on-write root file systems for containers and microVMs.

    A store keeps layers: an active layer can be written, a view read, a committed layer is fixed and can be the
    parent of others. Every command exits with 0 (done), 1 (failed), 2 (wrong usage), 3 (not found), 4 (exists or in
    use), 5 (pool full or failed) or 6 (not supported on this host).
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status. Nothing but a message is left of an error."""
    settings = Settings()
    try:
        with _listening(settings):
            status = _dispatch(list(arguments), settings)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        status = failure.BROKEN_PIPE_STATUS
    except BaseException as error:  # noqa: BLE001 - the outermost frame: no traceback reaches a user unasked
        as_json = settings.json or _asks_for_json(arguments)
        status = failure.report(error, as_json=as_json, verbose=settings.verbose)
    failure.settle_stdout()
    return status


def _dispatch(arguments: list[str], settings: Settings) -> int:
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # noqa: PLC0415 - asked for by a shell only

        return shell_complete(cli, {"obj": settings}, PROGRAM, COMPLETE_VARIABLE, instruction)
    # Not cli.main(): it turns interrupts and closed pipes into exits of its own.
    try:
        with cli.make_context(PROGRAM, arguments, obj=settings) as ctx:
            status: int | None = cli.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    return status or 0


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether --json is among words that could not be read as far as it."""
    words = list(arguments)
    return "--json" in (words[: words.index("--")] if "--" in words else words)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[None]:
    """Show what the library logs on standard error: warnings always, the rest with -v."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogFormatter())
    handler.addFilter(lambda record: settings.verbose or record.levelno >= logging.WARNING)
    logger = logging.getLogger("thinpool")
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _LogFormatter(logging.Formatter):
    """Log records in the form of our other messages."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return f"thinpool: {record.levelname.lower()}: {visible(record.getMessage())}"
