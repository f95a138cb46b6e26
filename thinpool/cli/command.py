"""The classes behind every command: shared options in any position, examples in the help, groups that import late."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from thinpool.cli.params import PATH
from thinpool.cli.settings import DEFAULT_ROOT, Settings

PROGRAM = "thinpool"
COMPLETE_VARIABLE = "_THINPOOL_COMPLETE"

P = ParamSpec("P")

Example = tuple[str, str]
"""A command line, and what it does."""

Body = Callable[Concatenate[Settings, P], int | None]
"""A command's function: the settings first; its result is the exit status, None for 0."""


class SharedOption(click.Option):
    """An option that every command takes, before or after the command's name; its value goes to the settings."""


class Command(click.Command):
    """A command with the shared options and examples.

    Attributes:
        examples: command lines and what they do.
    """

    def __init__(self, *args: Any, examples: Sequence[Example] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options(top=False))
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, the shared ones, the examples."""
        _format_options(self, ctx, formatter)
        _format_examples(self.examples, formatter)


class Group(click.Group):
    """A group whose commands are imported when they are used.

    Attributes:
        sections: heading to the group's commands, each with the module and the attribute it lives in.
        examples: command lines and what they do.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, str]],
        examples: Sequence[Example] = (),
        top: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options(top=top))
        self.sections = sections
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, in the order of the sections."""
        return [name for section in self.sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        for section in self.sections.values():
            if cmd_name in section:
                module, attribute = section[cmd_name].split(":")
                command: click.Command = getattr(import_module(module), attribute)
                return command
        return None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a word, show the help, as a usage error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name those that it may have meant."""
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib  # noqa: PLC0415 - needed for mistakes only

            alike = difflib.get_close_matches(name, self.list_commands(ctx), n=2, cutoff=0.5)
            meant = f"; did you mean {' or '.join(alike)}?" if alike else ""
            raise click.UsageError(f"no such command: {name!r}{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, the shared options, the examples."""
        width = max(len(name) for name in self.list_commands(ctx))
        for heading, section in self.sections.items():
            with formatter.section(heading):
                rows = [(name.ljust(width), self._summary(ctx, name)) for name in section]
                formatter.write_dl(rows)
        _format_options(self, ctx, formatter)
        _format_examples(self.examples, formatter)

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        assert command is not None
        return command.get_short_help_str(limit=200)


def command(name: str, *, examples: Sequence[Example], **attributes: Any) -> Callable[[Body[P]], Command]:
    """Make a function a command: it gets the settings first, its docstring is the help."""

    def decorate(body: Body[P]) -> Command:
        return click.command(name, cls=Command, examples=examples, **attributes)(click.pass_obj(body))

    return decorate


def shared_options(*, top: bool) -> list[click.Parameter]:
    """The shared options; at the top level the environment may stand in for them."""
    return [
        SharedOption(
            ["--root"],
            type=PATH,
            envvar="THINPOOL_ROOT" if top else None,
            metavar="DIR",
            help=f"Directory of the store; else $THINPOOL_ROOT, else {DEFAULT_ROOT}.",
            expose_value=False,
            callback=_set_root,
        ),
        SharedOption(
            ["-s", "--storage-driver"],
            envvar="THINPOOL_DRIVER" if top else None,
            metavar="DRIVER",
            help="devicemapper, btrfs, overlay or aufs; else $THINPOOL_DRIVER, else what is there or works.",
            expose_value=False,
            callback=_set_driver,
        ),
        SharedOption(
            ["--storage-opt"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Option of the driver, as in dm.basesize=10G; may be repeated.",
            expose_value=False,
            callback=_add_options,
        ),
        SharedOption(
            ["--json"],
            is_flag=True,
            help="Print one JSON document, and errors as JSON too.",
            expose_value=False,
            callback=_set_json,
        ),
        SharedOption(
            ["-v", "--verbose"],
            is_flag=True,
            help="Show log messages, and the traceback of an error.",
            expose_value=False,
            callback=_set_verbose,
        ),
    ]


def _settings(ctx: click.Context) -> Settings:
    return ctx.ensure_object(Settings)


def _set_root(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        _settings(ctx).root = value


def _set_driver(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        _settings(ctx).driver = value


def _add_options(ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> None:
    _settings(ctx).add_options(value)


def _set_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _settings(ctx).json = True


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        _settings(ctx).verbose = True


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    own: list[tuple[str, str]] = []
    shared: list[tuple[str, str]] = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and not isinstance(param, click.Argument):
            (shared if isinstance(param, SharedOption) else own).append(record)
    for heading, records in (("Options", own), ("Shared options, before or after the command", shared)):
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)


def _format_examples(examples: Sequence[Example], formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            for line, meaning in examples:
                formatter.write(f"{'':{formatter.current_indent}}# {meaning}\n")
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
