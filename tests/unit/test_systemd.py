import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool import systemd

PARTS = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"x").replace(b"\0", b"x"))
PATHS = st.lists(PARTS.filter(lambda part: part not in {b".", b".."}), max_size=5).map(
    lambda parts: b"/" + b"/".join(parts)
)


def unescaped(name: str) -> bytes:
    """The way back, as systemd-escape --unescape --path has it."""
    words = name.replace("-", "/").split("\\x")
    return b"/" + words[0].encode() + b"".join(bytes([int(word[:2], 16)]) + word[2:].encode() for word in words[1:])


@given(PATHS)
def test_an_escaped_path_is_read_back(path: bytes) -> None:
    escaped = systemd.escape_path(os.fsdecode(path))
    assert unescaped(escaped) == path or (path, escaped) == (b"/", "-")
    assert not escaped.startswith(".")


@pytest.mark.parametrize(
    "path", ["/", "/var/lib/thinpool", "/srv/a-b/.c", "/.hidden", "/a b/%i/ü", "/dev/disk/by-id/x:y"]
)
def test_a_path_is_escaped_as_systemd_does(path: str) -> None:
    said = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True).stdout
    assert systemd.escape_path(path) == said.rstrip("\n")


def test_no_word_of_the_command_is_expanded() -> None:
    text = systemd.template(["/opt/$1/thinpool", "-c", "100% $HOME"])
    assert 'ExecStart="/opt/$1/thinpool" -c "100%% $$HOME" --root %f up\n' in text


@pytest.mark.parametrize("options", [{}, {"dm.datadev": "/dev/vg-1/data", "dm.metadatadev": "/dev/vg-1/meta"}])
def test_systemd_takes_the_units(tmp_path: Path, options: dict[str, str]) -> None:
    command = tmp_path / "with 100% $pace" / "thinpool"
    command.parent.mkdir()
    command.symlink_to("/bin/true")
    service = tmp_path / systemd.instance(Path("/srv/my layers"))
    service.write_text(systemd.template([str(command)]))
    own = systemd.drop_in(options)
    assert (own is None) is not bool(options)
    if own is not None:
        (tmp_path / f"{service.name}.d").mkdir()
        (tmp_path / f"{service.name}.d" / systemd.DROP_IN).write_text(own)
        assert "Requires=dev-vg\\x2d1-data.device dev-vg\\x2d1-meta.device\n" in own
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", service],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
