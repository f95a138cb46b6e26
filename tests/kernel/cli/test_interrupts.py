"""SIGINT at any point of a command: all that was begun is undone, or done, and the next command finds nothing odd."""

import json
import os
import random
import signal
import sys
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest

import thinpool.drivers
from thinpool import Layer, Store
from thinpool.__main__ import main
from thinpool.cli.signals import Interrupted

from .conftest import Cli

pytestmark = pytest.mark.kernel

POINTS = 5
LONG_POINTS = 120
OURS = tuple(str(Path(module.__file__ or "").parent) + os.sep for module in (thinpool, thinpool.drivers))


@attrs.define
class LineCounter:
    """Counts the lines of our own that run, and raises what a signal raises before one of them.

    Attributes:
        at: the line to be interrupted, or None.
        count: lines that were begun.
    """

    at: int | None
    count: int = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise Interrupted(signal.SIGINT)
        return self


def run_in_child(arguments: Sequence[str], report: Path, at: int | None) -> tuple[int, int]:
    """Run a command in a child process of its own: its exit status, and how many lines of ours it ran."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            warnings.resetwarnings()  # pytest makes errors of those that users never see
            warnings.simplefilter("ignore", ResourceWarning)
            sys.argv[1:] = arguments
            sys.settrace(counter := LineCounter(at))
            status = main()
            sys.settrace(None)
            report.write_text(json.dumps(counter.count))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(report.read_text())


@attrs.frozen
class Scene:
    """A command to be interrupted.

    Attributes:
        command: its words.
        prepared: there is an active layer `x` before it.
        mounted: which is mounted.
        layers: what there is, beside `base`, before it and after it.
    """

    command: tuple[str, ...]
    layers: tuple[set[str], set[str]]
    prepared: bool = True
    mounted: bool = False


SCENES = {
    "prepare": Scene(("prepare", "x", "base"), (set(), {"x"}), prepared=False),
    "commit": Scene(("commit", "y", "x"), ({"x"}, {"y"})),
    "commit-mounted": Scene(("commit", "y", "x"), ({"x"}, {"y"}), mounted=True),
    "rm": Scene(("rm", "x"), ({"x"}, set())),
    "mount": Scene(("mount", "x", "PLACE"), ({"x"}, {"x"})),
    "umount": Scene(("umount", "PLACE"), ({"x"}, {"x"}), mounted=True),
    "run": Scene(("run", "x", "--", "sh", "-c", ":"), ({"x"}, {"x"})),
    "import": Scene(("import", "x", "TAR"), (set(), {"x"}), prepared=False),
    "export": Scene(("export", "base", "-o", "OUT"), (set(), set()), prepared=False),
    "diff": Scene(("diff", "x"), ({"x"}, {"x"})),
    "du": Scene(("du",), ({"x"}, {"x"})),
}


@attrs.frozen
class Stage:
    """Where a scene is played, over and over.

    Attributes:
        cli: the command line on the store.
        scene: what is played.
        scratch: a folder.
        words: what the scene's words in capitals stand for.
    """

    cli: Cli
    scene: Scene
    scratch: Path
    words: Mapping[str, str]

    def play(self, at: int | None) -> tuple[int, int]:
        """Run the command, interrupted at a line, and check what it leaves: its exit status and its lines."""
        with Store.open(self.cli.root) as store:
            before = self._set(store)
        words = [self.words.get(word, word) for word in self.scene.command]
        status, lines = run_in_child(["--root", str(self.cli.root), *words], self.scratch / "lines", at)
        errors = self.cli.capture()[1]
        assert status in {0, 130}, errors
        assert errors in ("", "thinpool: error: interrupted\n")
        with Store.open(self.cli.root) as store:
            self._check_layers(store, before, done=status == 0)
            self._clear(store)
        self._check_export(done=status == 0)
        return status, lines

    def _set(self, store: Store) -> list[Layer]:
        if self.scene.prepared:
            store.prepare("x", "base")
        if self.scene.mounted:
            store.mount("x", self.words["PLACE"])
        return list(store.walk())

    def _clear(self, store: Store) -> None:
        if os.path.ismount(self.words["PLACE"]):
            store.unmount(self.words["PLACE"])
        for layer in list(store.walk()):
            if layer.name != "base":
                store.remove(layer.name)

    def _check_layers(self, store: Store, before: list[Layer], *, done: bool) -> None:
        after = list(store.walk())
        names = {layer.name for layer in after} - {"base"}
        assert names == self.scene.layers[1] if done else names in self.scene.layers
        if names == self.scene.layers[0]:
            assert after == before

    def _check_export(self, *, done: bool) -> None:
        out = Path(self.words["OUT"])
        there = os.listdir(out.parent)
        assert there == [out.name] if done and "OUT" in self.scene.command else there in ([], [out.name])
        if there:
            with tarfile.open(out) as tar:
                assert "etc/motd" in {name.removeprefix("./") for name in tar.getnames()}
            out.unlink()


@pytest.mark.parametrize("name", SCENES)
def test_an_interrupt_leaves_all_or_nothing(
    name: str, with_base: Cli, scratch: Path, busybox_tar: Path, request: pytest.FixtureRequest
) -> None:
    words = {"PLACE": str(scratch / "place"), "TAR": str(busybox_tar), "OUT": str(scratch / "out" / "base.tar")}
    (scratch / "place").mkdir()
    (scratch / "out").mkdir()
    stage = Stage(with_base, SCENES[name], scratch, words)
    status, lines = stage.play(None)
    assert status == 0
    wanted = LONG_POINTS if request.config.getoption("--long") else POINTS
    # The first line is the `try` itself: handlers are not even installed there.
    points = random.Random(name).sample(range(2, lines), min(wanted, lines - 2))
    assert 130 in [stage.play(at)[0] for at in points]
