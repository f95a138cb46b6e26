"""What tools/lab promises about a command: how it is run, what it finds, what comes back."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from .conftest import CHECKOUT, Lab

PROBE = """
import json, os, pathlib, subprocess, sys

def runs(*command):
    return subprocess.run(command, capture_output=True).returncode == 0

pathlib.Path("/etc/lab-probe").write_text("x")
print(json.dumps({
    "arguments": [os.fsencode(each).hex() for each in sys.argv[1:]],
    "cwd": os.getcwd(), "uid": os.getuid(), "host": os.uname().nodename, "executable": sys.executable,
    "environment": dict(os.environ), "stdin": sys.stdin.read(),
    "modules": [runs("modprobe", "dm-crypt"), runs("/sbin/modprobe", "dm-log-writes"), runs("modprobe", "no-such")],
    "misc": "device-mapper" in open("/proc/misc").read(), "loopback": open("/sys/class/net/lo/flags").read().strip(),
    "fd": os.path.exists("/dev/fd/0"), "cgroup": os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
    "udev": runs("udevadm", "settle"), "control": os.path.exists("/dev/mapper/control"),
    "scratch": os.stat(os.environ["LAB_SCRATCH"]).st_dev != os.stat("/").st_dev,
    "sigint": __import__("signal").getsignal(2) is not None,
}))
"""


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 1", 1), ("exit 7", 7), ("kill -9 $$", 137), ("no-such-command", 127)],
)
def test_the_exit_status_is_the_commands(lab: Lab, command: str, status: int) -> None:
    assert lab.run("--", "sh", "-c", command).returncode == status


def test_the_command_finds_a_whole_machine(lab: Lab) -> None:
    arguments = ["", "two words", "$HOME 'quoted' \"twice\"", "line\nbreak", os.fsdecode(b"\xff\xfe")]
    here = CHECKOUT / "tests"
    done = lab.run("--", "python", "-c", PROBE, *arguments, cwd=here, THINPOOL_PROBE="seen", OTHER="not seen")
    assert done.returncode == 0, done.stderr
    assert not Path("/etc/lab-probe").exists()
    found = json.loads(done.stdout)
    environment = found.pop("environment")
    assert environment["THINPOOL_PROBE"] == "seen"
    assert "OTHER" not in environment
    assert environment["LAB_KERNEL"] == "uml"
    assert environment["LAB_DISKS"] == ""
    assert found == {
        "arguments": [os.fsencode(each).hex() for each in arguments],
        "cwd": str(here),
        "uid": 0,
        "host": "lab",
        "executable": str(CHECKOUT / ".venv" / "bin" / "python"),
        "stdin": "",
        "modules": [True, True, False],
        "misc": True,
        "loopback": "0x9",
        "fd": True,
        "cgroup": True,
        "udev": True,
        "control": True,
        "scratch": True,
        "sigint": True,
    }


def test_a_line_arrives_while_the_command_still_runs(lab: Lab, tmp_path: Path) -> None:
    script = 'echo first; until [ -e "$LAB_OUT/go" ]; do sleep 0.05; done; echo second'
    running = lab.start("--out", tmp_path, "--", "sh", "-c", script)
    running.wait_for("first")
    (tmp_path / "go").touch()
    running.wait_for("second")
    assert running.process.wait() == 0


def test_output_and_errors_come_apart_and_every_byte_of_them(lab: Lab) -> None:
    script = "import os; os.write(2, b'error\\n')\nfor _ in range(1000): os.write(1, bytes(range(128)) * 100)"
    done = lab.run("--", "python", "-c", script)
    assert done.stderr == "error\n"
    wanted = bytes(range(128)) * 100_000
    # text mode turns a carriage return into a line feed
    assert hashlib.sha256(done.stdout.encode()).digest() == hashlib.sha256(wanted.replace(b"\r", b"\n")).digest()


def test_what_shares_one_file_keeps_its_order(lab: Lab) -> None:
    script = "for i in 1 2 3; do echo out $i; echo error $i >&2; done"
    assert lab.output_of("--", "sh", "-c", script) == "".join(f"out {i}\nerror {i}\n" for i in (1, 2, 3))


def test_what_is_written_to_the_named_folder_stays(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "with space, and comma" / "deep"
    done = lab.run("--out", out, "--", "sh", "-c", 'echo result >"$LAB_OUT/file"; mkdir "$LAB_OUT/folder"')
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "file").read_text(encoding="ascii") == "result\n"
    assert (out / "folder").is_dir()


def test_what_is_written_to_a_folder_without_name_is_kept_and_told(lab: Lab) -> None:
    done = lab.run("--", "sh", "-c", 'echo result >"$LAB_OUT/file"')
    assert done.returncode == 0
    told = done.stderr.partition(" is in ")[2].partition(";")[0]
    assert (Path(told) / "file").read_text(encoding="ascii") == "result\n"
    (Path(told) / "file").unlink()
    Path(told).rmdir()


def test_disks_come_in_order_and_one_of_them_stays(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 32 << 20)
    options = ("--disk", "16M", "--keep-disk", image, "--disk", "8M")
    sizes = "for disk in $LAB_DISKS; do blockdev --getsize64 $disk; done"
    first = lab.run(*options, "--", "sh", "-c", sizes + "; set -- $LAB_DISKS; printf written >$2")
    assert first.stdout.split() == [str(16 << 20), str(32 << 20), str(8 << 20)]
    assert image.stat().st_size == 32 << 20
    second = lab.run("--keep-disk", image, "--", "sh", "-c", "head -c 7 $LAB_DISKS")
    assert second.stdout == "written"


def test_two_labs_at_once_do_not_meet(lab: Lab, tmp_path: Path) -> None:
    script = 'echo $1 >/etc/mine; dmsetup create $1 --notable; echo up; until [ -e "$LAB_OUT/go" ]; do sleep 0.05; done'
    script += "; cat /etc/mine; dmsetup info -c --noheadings -o name"
    names = ("one", "two")
    running = [lab.start("--out", tmp_path / name, "--", "sh", "-c", script, "sh", name) for name in names]
    for each in running:
        each.wait_for("up")
    for name, each in zip(names, running, strict=True):
        (tmp_path / name / "go").touch()
        assert each.output.read() == f"{name}\n{name}\n"
        assert each.process.wait() == 0


def test_qemu_has_as_many_processors_as_wanted(lab: Lab, tmp_path: Path) -> None:
    options = ("--kernel", "qemu", "--cpus", 2, "--disk", "16M", "--out", tmp_path)
    script = 'nproc; blockdev --getsize64 $LAB_DISKS; modprobe dm-crypt && echo $LAB_KERNEL >"$LAB_OUT/file"; exit 3'
    done = lab.run(*options, "--", "sh", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == (f"2\n{16 << 20}\n", "", 3)
    assert (tmp_path / "file").read_text(encoding="ascii") == "qemu\n"
