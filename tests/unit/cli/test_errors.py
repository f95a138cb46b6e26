import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from thinpool import __version__
from thinpool.cli import failure
from thinpool.errors import DeviceMapperError, LayerNotFound, PoolFull

RunHere = Callable[..., tuple[int, str, str]]
RunProcess = Callable[..., "subprocess.CompletedProcess[bytes]"]


def error_document(errors: str) -> Mapping[str, str | None]:
    document = json.loads(errors.splitlines()[-1])
    assert document.keys() == {"error"}
    details: Mapping[str, str | None] = document["error"]
    assert details.keys() == {"type", "message", "hint"}
    return details


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ls", "--nonsense"),
        ("prepare",),
        ("prepare", "a", "b", "c"),
        ("prepare", "a", "--size", "much"),
        ("prepare", "a", "--size", "0"),
        ("prepare", "a", "--label", "novalue"),
        ("export", "a", "--compress", "lzma"),
        ("grow",),
        ("run", "a"),
        ("export", "a", "--json"),
        ("--root", "", "ls"),
        ("--storage-opt", "nopair", "ls"),
        ("--storage-opt", "dm.fs=xfs", "ls", "--storage-opt", "dm.fs=ext4"),
        ("prepare", "../escape"),
        ("prepare", "a", "--", "-b"),
        ("completion", "tcsh"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], here: RunHere) -> None:
    status, output, errors = here(*arguments)
    assert (status, output) == (2, "")
    lines = [line for line in errors.splitlines() if not line.startswith("{")]
    assert lines[0].startswith("thinpool: error: ")
    assert not lines[0].endswith(".")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2


def test_wrong_usage_in_json_is_told_wherever_the_option_stands(here: RunHere) -> None:
    for arguments in (("--json", "ls", "--nonsense"), ("ls", "--nonsense", "--json"), ("nonsense", "--json")):
        status, _, errors = here(*arguments)
        assert status == 2
        assert error_document(errors)["type"] in {"NoSuchOption", "UsageError"}
    status, _, errors = here("prepare", "a//b", "--json")
    assert status == 2
    assert error_document(errors)["type"] == "InvalidName"
    assert "{" not in here("nonsense", "--", "--json")[2]


def test_a_word_that_is_nearly_a_command(here: RunHere) -> None:
    assert "did you mean commit" in here("comit")[2]
    assert "--recursive" in here("rm", "a", "--recursiv")[2]


@pytest.mark.parametrize(
    "command", [("ls",), ("tree",), ("info",), ("up",), ("prepare", "a"), ("stat", "a"), ("rm", "a")]
)
def test_a_root_without_a_store(command: tuple[str, ...], here: RunHere, tmp_path: Path) -> None:
    status, output, errors = here(*command, "--json")
    assert (status, output) == (3, "")
    details = error_document(errors)
    assert details["type"] == "StoreNotFound"
    assert "thinpool init" in str(details["hint"])
    assert not (tmp_path / "root").exists()


def test_shared_options_before_and_after_the_command(here: RunHere, tmp_path: Path) -> None:
    for arguments in (("--root", str(tmp_path / "x"), "ls"), ("ls", "--root", str(tmp_path / "x"))):
        status, _, errors = here(*arguments)
        assert status == 3
        assert str(tmp_path / "x") in errors


def test_not_root(here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    status, _, errors = here("ls")
    assert status == 1
    assert errors.splitlines() == [
        "thinpool: error: a store can be used by root only, not by user id 1000",
        "hint: run it with sudo",
    ]


def test_an_unexpected_error_is_one_line_short_of_verbose(here: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise LookupError("what\nnow")

    monkeypatch.setattr("os.geteuid", broken)
    status, _, errors = here("ls")
    assert status == 1
    assert errors.splitlines() == [
        r"thinpool: error: internal: LookupError: what\nnow",
        "hint: run it with -v to see where",
    ]
    status, _, errors = here("ls", "-v")
    assert errors.startswith("Traceback (most recent call last):\n")
    assert "in broken" in errors


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (LayerNotFound("no layer is named 'a'"), 3, "no layer is named 'a'"),
        (PoolFull("the pool is full"), 5, "the pool is full"),
        (DeviceMapperError("DM_DEV_CREATE", "x", 16, "device x is busy"), 1, "device x is busy"),
        (FileNotFoundError(2, "No such file or directory", "/a\nb"), 1, r"/a\nb: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_report(error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure.report(error, as_json=False, verbose=False) == status
    assert capsys.readouterr().err == f"thinpool: error: {line}\n"


def test_a_missing_archive(here: RunHere, tmp_path: Path) -> None:
    status, _, errors = here("import", "a", str(tmp_path / "missing.tar"))
    assert status == 1
    assert "missing.tar: No such file or directory" in errors


def test_a_full_device_as_output() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "thinpool", "completion", "bash"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == b"thinpool: error: No space left on device"
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "thinpool", "completion", "bash"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version(thinpool: RunProcess) -> None:
    for arguments in (["--version"], ["--json", "--version"]):
        done = thinpool(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"thinpool {__version__}\n".encode(), b"")


def test_completion(thinpool: RunProcess) -> None:
    done = thinpool(env={"_THINPOOL_COMPLETE": "bash_complete", "COMP_WORDS": "thinpool co", "COMP_CWORD": "1"})
    assert done.stdout.splitlines() == [b"plain,commit", b"plain,completion"]
    assert b"_THINPOOL_COMPLETE" in thinpool("completion", "zsh").stdout
