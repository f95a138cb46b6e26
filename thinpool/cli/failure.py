"""How a failed command ends: one line, a hint, an exit status, and no traceback short of -v."""

import json
import os
import sys
import traceback

import click

from thinpool.cli import signals
from thinpool.cli.output import visible
from thinpool.errors import ThinPoolError

USAGE_STATUS = 2
BROKEN_PIPE_STATUS = 141


def report(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Say on standard error what failed, and give the exit status."""
    message, hint, status = _describe(error)
    if verbose and not isinstance(error, KeyboardInterrupt | click.ClickException):
        _say("".join(traceback.format_exception(error)).rstrip("\n"))
    _say(f"thinpool: error: {visible(message)}")
    if hint is not None:
        _say(f"hint: {visible(hint)}")
    if as_json:
        details = {"type": type(error).__name__, "message": message, "hint": hint}
        _say(json.dumps({"error": details}))
    return status


def warn(message: str) -> None:
    """Print a warning on standard error."""
    _say(f"thinpool: warning: {visible(message)}")


def settle_stdout() -> None:
    """Write what is pending on standard output; what cannot be written goes nowhere, so that the exit is quiet."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _describe(error: BaseException) -> tuple[str, str | None, int]:
    """Message, hint and exit status of an error."""
    if isinstance(error, ThinPoolError):
        return error.message, error.hint, error.exit_status
    if isinstance(error, click.UsageError):
        return _sentence(error.format_message()), _usage_hint(error), USAGE_STATUS
    if isinstance(error, click.ClickException):
        return _sentence(error.format_message()), None, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted", None, signals.exit_status(error)
    if isinstance(error, OSError) and error.strerror is not None:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        hint = "run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else None
        return f"{where}{error.strerror}", hint, 1
    if isinstance(error, MemoryError):
        return "out of memory", None, 1
    text = str(error)
    name = type(error).__name__
    return f"internal: {name}: {text}" if text else f"internal: {name}", "run it with -v to see where", 1


def _sentence(message: str) -> str:
    """Click's sentence in the form of our messages: on one line, without a capital and a full stop."""
    line = " ".join(message.split())
    if line[:2].istitle() or (line[:1].isupper() and line[1:2] == " "):
        line = line[0].lower() + line[1:]
    return line.removesuffix(".")


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "thinpool"
    return f"see {path} --help"


def _say(text: str) -> None:
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        return  # nobody is left to tell; the exit status still says it
