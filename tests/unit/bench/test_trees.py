import tarfile
from pathlib import Path

import pytest

from bench.latency.holding import Taken, held
from bench.latency.trees import change, path_of, write_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "tree.tar"
    write_archive(path, 300)
    return path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changes", [1, 9, 10, 122, 300])
def test_as_many_files_change_as_were_asked_for(archive: Path, tmp_path: Path, changes: int) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    before = contents(tmp_path)
    change(tmp_path, 300, changes)
    after = contents(tmp_path)
    assert sum(before.get(name) != after.get(name) for name in before.keys() | after.keys()) == changes


def test_an_archive_is_the_same_every_time(archive: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "again.tar", 300)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names)
    assert sum(name.startswith("usr/part-") and "/file-" in name for name in names) == 300
    assert path_of(299) in names


@pytest.mark.parametrize(
    ("writes", "hold"),
    [
        ([], 0),
        ([(0.0, 0.9)], 0),
        ([(2.1, 3.0)], 0),
        ([(0.5, 1.25)], 0.75),
        ([(1.5, 2.5), (1.0, 1.25)], 1.0),
        ([(0.0, 4.0)], 4.0),
    ],
)
def test_a_hold_is_the_longest_write_in_its_time(writes: list[tuple[float, float]], hold: float) -> None:
    assert held(writes, Taken("thinpool", 1.0, 2.0)) == hold
