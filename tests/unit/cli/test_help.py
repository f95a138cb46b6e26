import shlex
from collections.abc import Callable, Iterator

import click
import pytest

from thinpool.cli import app
from thinpool.cli.command import Command, Group
from thinpool.cli.settings import Settings

RunHere = Callable[..., tuple[int, str, str]]


def commands() -> Iterator[tuple[str, Command]]:
    def below(group: Group, path: str) -> Iterator[tuple[str, Command]]:
        ctx = click.Context(group, obj=Settings())
        for name in group.list_commands(ctx):
            found = group.get_command(ctx, name)
            if isinstance(found, Group):
                yield from below(found, f"{path}{name} ")
            else:
                assert isinstance(found, Command)
                yield path + name, found

    assert isinstance(app.cli, Group)
    yield from below(app.cli, "")


def example_words(line: str) -> list[str]:
    """The words of the thinpool command in an example's shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    words = list(lexer)
    words = words[words.index("thinpool") + 1 :]
    ends = [words.index(end) for end in ("|", ">") if end in words]
    return words[: min(ends)] if ends else words


PATHS = [path for path, _ in commands()]
EXAMPLES = [line for _, command in commands() for line, _ in command.examples]


@pytest.mark.parametrize("path", PATHS)
def test_help_has_a_summary_an_explanation_and_an_example(path: str, here: RunHere) -> None:
    status, text, errors = here(*path.split(), "--help")
    assert (status, errors) == (0, "")
    command = dict(commands())[path]
    assert command.help is not None
    summary, _, explanation = command.help.partition("\n\n")
    assert summary.endswith(".")
    assert len(explanation.split()) >= 6, "more than the summary says"
    assert "Examples:\n  # " in text
    assert f"  thinpool {path}" in text or any(path in line for line, _ in command.examples)
    assert all(meaning for _, meaning in command.examples)


@pytest.mark.parametrize("line", [line for line, _ in [*app.EXAMPLES]] + EXAMPLES)
def test_examples_can_be_typed(line: str, here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(Command, "invoke", lambda _self, ctx: parsed.append(ctx.command_path))
    status, _, errors = here(*example_words(line))
    assert (status, errors) == (0, "")
    assert parsed


def test_the_top_level_names_every_command(here: RunHere) -> None:
    status, text, _ = here("--help")
    assert status == 0
    for path in PATHS:
        assert f"\n  {path.split()[0]} " in text


def test_without_a_command_the_help_is_an_error(here: RunHere) -> None:
    status, output, errors = here()
    assert status == 2
    assert output == ""
    assert "Usage: thinpool" in errors
