"""`thinpool completion`: the script that lets a shell complete commands, options and layer names."""

import click
from click.shell_completion import get_completion_class

from thinpool.cli.command import COMPLETE_VARIABLE, PROGRAM, command
from thinpool.cli.output import write_lines
from thinpool.cli.settings import Settings


@command(
    "completion",
    examples=[
        ("thinpool completion bash > /etc/bash_completion.d/thinpool", "for bash, for all users"),
        ("thinpool completion zsh > /usr/local/share/zsh/site-functions/_thinpool", "for zsh, for all users"),
        ("thinpool completion fish > /etc/fish/completions/thinpool.fish", "for fish, for all users"),
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(_settings: Settings, shell: str) -> None:
    """Print a completion script for SHELL.

    The script asks `thinpool` itself: commands and options always, layer names where the user may read the store.
    """
    script_class = get_completion_class(shell)
    assert script_class is not None
    top = click.get_current_context().find_root().command
    write_lines([script_class(top, {}, PROGRAM, COMPLETE_VARIABLE).source().rstrip("\n")])
