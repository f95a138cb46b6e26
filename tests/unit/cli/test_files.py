import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from thinpool.cli import files


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "layer.tar"
    target.write_bytes(b"old")
    with files.sink(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert target.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 2
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["layer.tar"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with files.sink(tmp_path / "layer.tar") as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_of_a_signal(tmp_path: Path, signum: signal.Signals) -> None:
    script = """
import pathlib, signal, sys
from thinpool.cli import files, signals
signals.install()
try:
    with files.sink(pathlib.Path(sys.argv[1])) as stream:
        stream.write(b"half")
        print("begun", flush=True)
        signal.pause()
except KeyboardInterrupt as interrupt:
    sys.exit(signals.exit_status(interrupt))
"""
    target = tmp_path / "layer.tar"
    with subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signum)
        assert process.wait() == 128 + signum
    assert os.listdir(tmp_path) == []


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "link.tar"
    link.symlink_to("deep/real.tar")
    with files.sink(link) as stream:
        stream.write(b"data")
    assert link.is_symlink()
    assert (tmp_path / "deep/real.tar").read_bytes() == b"data"


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    with files.sink(fifo) as stream:
        stream.write(b"data")
    reader.join()
    assert read == [b"data"]
    assert os.listdir(tmp_path) == ["fifo"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with files.sink(tmp_path / "layer.tar"):
            pass
    finally:
        os.umask(previous)
    assert (tmp_path / "layer.tar").stat().st_mode & 0o777 == 0o640


def test_a_long_name_has_room_for_the_partial_one(tmp_path: Path) -> None:
    for name in ("n" * 255, "\u00e9" * 127):
        with files.sink(tmp_path / name) as stream:
            stream.write(b"data")
        assert (tmp_path / name).read_bytes() == b"data"


def test_a_terminal_is_neither_source_nor_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    try:
        with open(theirs, closefd=False) as keyboard, open(theirs, "w", closefd=False) as screen:
            monkeypatch.setattr(sys, "stdin", keyboard)
            monkeypatch.setattr(sys, "stdout", screen)
            with pytest.raises(click.UsageError, match="terminal"), files.sink(files.STANDARD):
                pass
            with pytest.raises(click.UsageError, match="no archive"), files.source(files.STANDARD):
                pass
    finally:
        os.close(theirs)
        os.close(ours)


def test_a_source_knows_its_size(tmp_path: Path) -> None:
    archive = tmp_path / "layer.tar"
    archive.write_bytes(b"12345")
    with files.source(archive) as (stream, size):
        assert size == 5
        assert stream.read() == b"12345"
