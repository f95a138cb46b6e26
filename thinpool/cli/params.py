"""Types of command-line arguments."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from thinpool.cli.settings import Settings
from thinpool.errors import ConfigError, ThinPoolError
from thinpool.model import Volume, check_name
from thinpool.units import parse_size

if TYPE_CHECKING:
    from click import Context, Parameter

_LABEL = re.compile(r"(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)


class LayerName(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A layer's name; completes to the names in the store."""

    name = "layer"

    def convert(self, value: str, param: "Parameter | None", ctx: "Context | None") -> str:  # noqa: ARG002
        """Check the form of the name."""
        return check_name(value)

    def shell_complete(self, ctx: "Context", param: "Parameter", incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """The layers whose names begin so; none where the store cannot be read."""
        try:
            with ctx.ensure_object(Settings).open_store() as store:
                return [CompletionItem(layer.name) for layer in store.walk() if layer.name.startswith(incomplete)]
        except (ThinPoolError, OSError):
            return []


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A size in bytes, with an optional binary unit."""

    name = "size"

    def convert(self, value: str | int, param: "Parameter | None", ctx: "Context | None") -> int:
        """Read the size; it must be more than nothing."""
        if isinstance(value, int):
            return value
        try:
            size = parse_size(value)
        except ConfigError as error:
            self.fail(error.message, param, ctx)
        if size == 0:
            self.fail("a size of 0 bytes; it must be more", param, ctx)
        return size


class Label(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A label, `KEY=VALUE`."""

    name = "key=value"

    def convert(
        self, value: str | tuple[str, str], param: "Parameter | None", ctx: "Context | None"
    ) -> tuple[str, str]:
        """Split at the first `=`."""
        if isinstance(value, tuple):
            return value
        match = _LABEL.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return match["key"], match["value"]


class VolumeParam(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A volume, `SOURCE:TARGET[:ro]`."""

    name = "volume"

    def convert(self, value: str | Volume, param: "Parameter | None", ctx: "Context | None") -> Volume:
        """Read it."""
        if isinstance(value, Volume):
            return value
        try:
            return Volume.parse(value)
        except ConfigError as error:
            self.fail(error.message, param, ctx)


class FilePath(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A path, not looked at before it is used; the shell completes it."""

    name = "path"

    def convert(self, value: str | Path, param: "Parameter | None", ctx: "Context | None") -> Path:
        """Refuse what names nothing."""
        if isinstance(value, Path):
            return value
        if not value or "\0" in value:
            self.fail("a path must not be empty", param, ctx)
        return Path(value)

    def shell_complete(self, ctx: "Context", param: "Parameter", incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Leave it to the shell."""
        return [CompletionItem(incomplete, type="file")]


LAYER = LayerName()
SIZE = Size()
LABEL = Label()
VOLUME = VolumeParam()
PATH = FilePath()
