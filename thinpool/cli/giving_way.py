"""The options of commands that may take long, to do their work behind that of others."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from thinpool.cli.params import PATH

P = ParamSpec("P")
R = TypeVar("R")


def gives_way(body: Callable[P, R]) -> Callable[..., R]:
    """Give a command `--ioprio` and `--cgroup`, in force for all that it does."""

    @wraps(body)
    def run(*args: Any, ioprio: str | None, cgroup: Path | None, **kwargs: Any) -> R:
        if ioprio is None and cgroup is None:
            return body(*args, **kwargs)
        from thinpool.priority import background  # noqa: PLC0415 - only where it is asked for

        with background(ioprio=ioprio, cgroup=cgroup):
            return body(*args, **kwargs)

    priority = click.option(
        "--ioprio", metavar="CLASS", help="I/O priority: idle, best-effort or best-effort:0 to 7, as of ionice(1)."
    )
    group = click.option("--cgroup", type=PATH, metavar="DIR", help="Work in this control group (v2), as with io.max.")
    return priority(group(run))
