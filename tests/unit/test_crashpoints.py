"""The names of the crash points, as the code has them, and the variable that arms one."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import thinpool
from thinpool.crashpoints import VARIABLE, Death, Points, declared
from thinpool.errors import ConfigError

ROOT = Path(thinpool.__file__).parents[1]


def calls() -> list[tuple[str, str]]:
    """Every call of `point` in the code, with its file."""
    found = []
    for folder in (ROOT / "thinpool", ROOT / "drivers"):
        for path in sorted(folder.rglob("*.py")):
            if "drivers" in path.relative_to(folder).parts[:-1]:
                continue  # the link to the other folder
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "point":
                    [argument] = node.args
                    assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: a point without a plain name"
                    found.append((str(argument.value), path.name))
    return found


def test_each_name_stands_in_one_place_and_all_are_found() -> None:
    names = [name for name, _ in calls()]
    assert sorted(names) == sorted(declared())
    assert len(names) > 100


def test_the_page_names_all_of_them_and_no_other() -> None:
    text = (ROOT / "docs/crash-safety.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", text)) == set(declared())


def test_nobody_is_told_of_points_as_a_rule() -> None:
    points = Points()
    points.begin({})
    points("mark-begin")
    passed: list[str] = []
    points.watch(passed.append)
    points("mark-begin")
    points.watch(None)
    points("mark-begun")
    assert passed == ["mark-begin"]


@pytest.mark.parametrize("text", ["", "mark-begin:", "mark-begin:0", "mark-begin:-1", "mark begin", "mark-begin:1:2"])
def test_a_count_that_is_none_is_told(text: str) -> None:
    points = Points()
    for _ in range(2):  # also the next time
        with pytest.raises(ConfigError, match=r"accepted is NAME or NAME:N"):
            points.begin({VARIABLE: text})


def test_an_unknown_name_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no crash point is named mark-made; accepted are .*mark-begin, mark-begun"):
        Death.parse("mark-made:2")


def test_the_variable_is_read_once() -> None:
    points = Points()
    points.begin({VARIABLE: "mark-begun:7"})
    points.begin({VARIABLE: "nonsense"})
    for _ in range(6):
        points("mark-begun")


@pytest.mark.parametrize("count", [1, 3])
def test_the_process_dies_at_the_passage_that_was_asked_for(count: int) -> None:
    script = (
        "import os; from thinpool.crashpoints import point; point.begin(os.environ)\n"
        "for number in range(5): print(number, flush=True); point('mark-end'); point('mark-ended')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, VARIABLE: f"mark-ended:{count}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == [str(number) for number in range(count)]
