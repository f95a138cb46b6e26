import os
from pathlib import Path

import pytest

from thinpool.errors import ConfigError
from thinpool.root import Root, resolve

DRIVERS = frozenset({"devicemapper", "overlay"})


def test_two_spellings_are_one_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    assert resolve(tmp_path / "link") == resolve(tmp_path / "root/../root") == Root(tmp_path / "root")


def test_claiming_makes_what_is_missing_and_abandoning_takes_it_away(tmp_path: Path) -> None:
    root = Root(tmp_path / "a/root")
    root.claim(DRIVERS)
    assert os.listdir(root.path) == ["lock"]
    root.claim(DRIVERS)
    root.abandon()
    assert not root.path.exists()


def test_a_fresh_file_system_can_be_a_root(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    Root(tmp_path).claim(DRIVERS)
    Root(tmp_path).abandon()
    assert os.listdir(tmp_path) == ["lost+found"]


@pytest.mark.parametrize("name", ["file", ".hidden", "btrfs"])
def test_what_holds_something_else_is_not_claimed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=name):
        Root(tmp_path).claim(DRIVERS)
    assert os.listdir(tmp_path) == [name]


def test_a_root_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="directory"):
        resolve(tmp_path / "file")
    with pytest.raises(ConfigError, match="directory"):
        resolve(tmp_path / "file/below")
