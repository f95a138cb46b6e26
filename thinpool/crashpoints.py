"""Points at which a process can be made to die, to see what it leaves there.

Between any two steps that outlive the process stands `point("name")`. Each name stands in one place of the code, and
nowhere else: `declared` finds them all there. `THINPOOL_CRASH_AT=NAME[:N]` in the environment makes a process die
there by SIGKILL, at the N-th passage, counted from its first `Store.open` on. Where it is not set, a passage costs one
comparison, some 50 ns.

What is left at each point, and how it is mended, is told in docs/crash-safety.md.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import attrs

from thinpool.errors import ConfigError

VARIABLE = "THINPOOL_CRASH_AT"
_DECLARATION = re.compile(r'\bpoint\("([a-z-]+)"\)')
_GIVEN = re.compile(r"([a-z-]+)(?::([1-9][0-9]{0,8}))?", re.ASCII)
_PACKAGES = ("thinpool", "thinpool.drivers")


class Points:
    """Who is told of the points that are passed; nobody, as a rule.

    There is one value, `point`, as a process has one environment.
    """

    def __init__(self) -> None:
        self._watcher: Callable[[str], object] | None = None
        self._is_begun = False

    def __call__(self, name: str) -> None:
        """Say that a point is passed."""
        if self._watcher is not None:
            self._watcher(name)

    def begin(self, environ: Mapping[str, str]) -> None:
        """Look into the environment, the first time that this is called.

        Raises:
            ConfigError: the variable names no point, or no count.
        """
        if not self._is_begun:
            text = environ.get(VARIABLE)
            if text is not None:
                self.watch(Death.parse(text))
            self._is_begun = True

    def watch(self, watcher: Callable[[str], object] | None) -> None:
        """Call a function at every point from now on, with its name; None ends that."""
        self._watcher = watcher


point = Points()


@attrs.define
class Death:
    """A watcher that kills the process.

    Attributes:
        name: at which point.
        passages: at which passage, 1 for the next.
    """

    name: str
    passages: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """What the variable says.

        Raises:
            ConfigError: no point has that name, or the count is none.
        """
        given = _GIVEN.fullmatch(text)
        if given is None:
            raise ConfigError(
                f"{VARIABLE}={text!r}: accepted is NAME or NAME:N, the name of a crash point and a count from 1 on",
                hint="docs/crash-safety.md lists the names",
            )
        name, count = given.groups()
        names = sorted(declared())
        if name not in names:
            raise ConfigError(f"{VARIABLE}={text}: no crash point is named {name}; accepted are {', '.join(names)}")
        return cls(name, int(count or 1))

    def __call__(self, name: str) -> None:
        """Die, if it is time."""
        if name == self.name:
            self.passages -= 1
            if not self.passages:
                os.kill(os.getpid(), signal.SIGKILL)


def declared() -> Mapping[str, str]:
    """All points, as the code has them: the module, as a path, by the name of the point.

    Raises:
        ValueError: two have one name.
    """
    found: dict[str, str] = {}
    for file, text in _sources():
        for name in _DECLARATION.findall(text):
            if name in found:
                raise ValueError(f"two crash points are named {name}: in {found[name]} and {file}")
            found[name] = file
    return found


def _sources() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path, directories, files in os.walk(folder):
                directories[:] = sorted(set(directories) - {"__pycache__"})
                for file in sorted(files):
                    if file.endswith(".py") and (where := Path(path) / file) != Path(__file__):
                        yield os.path.relpath(where, Path(folder).parent), where.read_text(encoding="utf-8")
