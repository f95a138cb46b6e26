import os
import pty
import signal
import subprocess
import sys

import pytest

PROLOGUE = """
import signal, sys
from thinpool.cli import signals
signals.install()
def ready():
    print("ready", flush=True)
"""


def start(body: str, *, stdin: int | None = None) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        stdin=stdin,
        bufsize=0,  # what a buffer had read ahead with the first line, `communicate` would not find
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_unwinds_and_later_ones_wait(signum: signal.Signals) -> None:
    body = """
try:
    try:
        ready()
        signal.pause()
    finally:
        print("undoing", flush=True)
        sys.stdin.read()
        print("undone", flush=True)
except KeyboardInterrupt as interrupt:
    sys.exit(signals.exit_status(interrupt))
"""
    with start(body, stdin=subprocess.PIPE) as process:
        process.send_signal(signum)
        assert process.stdout is not None
        assert process.stdout.readline() == b"undoing\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(b"")
    assert output == b"undone\n"
    assert errors == b""
    assert process.returncode == 128 + signum


def test_a_signal_lost_in_a_finalizer_comes_again() -> None:
    body = """
class Slow:
    def __del__(self):
        ready()
        signal.pause()
try:
    Slow()
    while True:
        signal.pause()
except KeyboardInterrupt as interrupt:
    sys.exit(signals.exit_status(interrupt))
"""
    with start(body) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (143, b"")


def test_a_signal_that_was_ignored_stays_so() -> None:
    body = """
ready()
signal.raise_signal(signal.SIGHUP)
signal.raise_signal(signal.SIGTERM)
"""
    script = "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    script += "sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    prologue = PROLOGUE + "sys.excepthook = lambda kind, value, trace: print(value, flush=True)\n"
    done = subprocess.run([sys.executable, "-c", script, prologue + body], capture_output=True, check=False, text=True)
    assert done.stdout.splitlines() == ["ready", "ended by SIGTERM"]


def test_keyboard_signals_are_left_to_a_command_on_our_terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        body = PROLOGUE + (
            "with signals.left_to_child():\n"
            "    ready()\n"
            "    signal.raise_signal(signal.SIGINT)\n"
            "    print('went on', flush=True)\n"
            "try:\n"
            "    signal.raise_signal(signal.SIGINT)\n"
            "except signals.Interrupted as interrupt:\n"
            "    sys.exit(signals.exit_status(interrupt))\n"
        )
        os.execv(sys.executable, [sys.executable, "-c", body])
    seen = b""
    while b"went on" not in seen:
        seen += os.read(terminal, 1024)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(terminal)


def test_a_signal_after_the_work_is_disregarded() -> None:
    body = """
ready()
signals.disregard()
for signum in signals.HANDLED:
    signal.raise_signal(signum)
print("ended", flush=True)
"""
    with start(body) as process:
        assert process.communicate() == (b"ended\n", b"")
    assert process.returncode == 0
