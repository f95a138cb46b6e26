"""The walk against the simple account, on random trees."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given

from tests.kernel.layer.images import Images, run
from tests.kernel.layer.trees import Mutator, Step, Tree, examples, expected_changes, makings, opened, steps, survey
from thinpool.layer.changes import walk
from thinpool.model import Change

pytestmark = pytest.mark.kernel


def walked(older: Path, newer: Path, settled_ns: int | None = None) -> list[Change]:
    with opened(older) as old, opened(newer) as new:
        return list(walk(old, new, settled_ns=settled_ns))


@examples(50)
@given(before=makings, after=steps)
def test_on_copies_in_memory(scratch: Path, before: list[Step], after: list[Step]) -> None:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    older, newer = folder / "older", folder / "newer"
    older.mkdir()
    Mutator(older).run(before)
    run("cp", "-a", str(older), str(newer))
    Mutator(newer).run(after)
    assert walked(older, newer) == expected_changes(survey(older), survey(newer))
    assert walked(newer, older) == expected_changes(survey(newer), survey(older))
    shutil.rmtree(folder)


@examples(150)
@given(before=makings, after=steps)
def test_on_snapshots_of_ext4(images: Images, before: list[Step], after: list[Step]) -> None:
    images.make("older")
    with images.mounted("older") as root:
        Mutator(root).run(before)
    images.copy("older", "newer")
    settled_ns = time.time_ns()
    with images.mounted("newer") as root:
        Mutator(root).run(after)
    with images.mounted("older") as older, images.mounted("newer") as newer:
        expected = expected_changes(survey(older), survey(newer))
        assert walked(older, newer, settled_ns) == expected
        assert walked(older, newer) == expected
        assert walked(newer, older, settled_ns) == expected_changes(survey(newer), survey(older))


def against_nothing(tree: Tree) -> list[Change]:
    return [Change("A", os.fsdecode(path)) for path in sorted(tree) if path != b"/"]


@examples(20)
@given(before=makings)
def test_against_no_parent(scratch: Path, before: list[Step]) -> None:
    root = Path(tempfile.mkdtemp(dir=scratch))
    root.chmod(0o755)
    Mutator(root).run(before)
    with opened(root) as fd:
        changes = list(walk(None, fd))
    tree = survey(root)
    bare = os.lstat(root).st_mode & 0o7777 == 0o755 and tree[b"/"].what[1:] == (0, 0, {})
    assert changes == ([] if bare else [Change("C", "/")]) + against_nothing(tree)
