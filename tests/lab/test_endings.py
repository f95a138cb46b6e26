"""How a lab ends when its command does not, and how it fails when there is nothing to run it on."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import CHECKOUT, Lab, RunningLab

MODULES = Path("/usr/lib/uml/modules")
BUSY = ("--", "sh", "-c", "sleep 1000 & echo up; sleep 1000")


def test_a_hang_ends_at_the_time_limit(lab: Lab) -> None:
    done = lab.run("--timeout", "6", *BUSY)
    assert (done.returncode, done.stdout) == (124, "up\n")
    assert "time limit of 6 s" in done.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_lab_at_once(lab: Lab, signum: signal.Signals, status: int) -> None:
    running = lab.start("--timeout", "120", *BUSY)
    running.wait_for("up")
    assert running.end(signum) == status
    assert lab.left() == []


def test_a_signal_during_boot_ends_the_lab(lab: Lab) -> None:
    running = lab.start(*BUSY)
    while not any("/usr/bin/linux.uml" in line for line in lab.processes().values()):
        assert running.process.poll() is None
    assert running.end(signal.SIGTERM) == 143


def test_the_guest_dies_with_a_launcher_that_is_killed(lab: Lab) -> None:
    running = lab.start("--disk", "16M", *BUSY)
    running.wait_for("up")
    running.end(signal.SIGKILL)
    lab.wait_until_gone()


def test_the_guest_dies_with_a_guard_that_is_killed(lab: Lab) -> None:
    running = lab.start(*BUSY)
    running.wait_for("up")
    os.kill(_guard_of(running), signal.SIGKILL)
    assert running.process.wait() == 125
    lab.wait_until_gone()


def test_a_reader_that_goes_away_ends_the_lab(lab: Lab) -> None:
    running = lab.start("--", "yes")
    running.wait_for("y")
    running.output.close()
    assert running.process.wait() == 141


def test_a_guest_that_stops_by_itself_is_a_failure(lab: Lab) -> None:
    done = lab.run("--", "busybox", "poweroff", "-n", "-f")
    assert done.returncode == 125
    assert "stopped before the command ended" in done.stderr


def test_a_power_cut_keeps_what_was_synced(lab: Lab, tmp_path: Path) -> None:
    image = tmp_path / "image"
    script = "mkfs.ext4 -q -E nodiscard $LAB_DISKS && mount $LAB_DISKS /mnt && echo synced >/mnt/file && sync /mnt/file"
    running = lab.start("--keep-disk", image, "--", "sh", "-c", f"{script} && echo cut && sleep 1000")
    running.wait_for("cut")
    second = lab.run("--keep-disk", image, "--", "true")
    assert second.returncode == 2
    assert "another lab uses it" in second.stderr
    running.end(signal.SIGKILL)
    lab.wait_until_gone()
    done = lab.run("--keep-disk", image, "--", "sh", "-c", "mount $LAB_DISKS /mnt && cat /mnt/file")
    assert (done.returncode, done.stdout) == (0, "synced\n")


def test_a_kernel_without_device_mapper_fails(lab: Lab, tmp_path: Path) -> None:
    tree = _copy_of_modules(tmp_path)
    index = tree / "modules.dep"
    kept = [line for line in index.read_text(encoding="ascii").splitlines() if "dm-thin-pool.ko" not in line]
    index.write_text("\n".join(kept), encoding="ascii")
    done = lab.run("--", "true", THINPOOL_LAB_MODULES=str(tmp_path))
    assert done.returncode == 125
    assert "has no module dm_thin_pool" in done.stderr


def test_an_empty_module_tree_fails(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("--", "true", THINPOOL_LAB_MODULES=str(tmp_path))
    assert done.returncode == 125
    assert "no kernel modules in" in done.stderr


def test_a_kernel_of_ones_own(lab: Lab, tmp_path: Path) -> None:
    _copy_of_modules(tmp_path)
    image, modules = "/usr/bin/linux.uml", str(tmp_path)
    done = lab.run("--", "true", THINPOOL_LAB_UML=image, THINPOOL_LAB_MODULES=modules)
    assert (done.returncode, done.stderr) == (0, "")
    for done in (
        lab.run("--", "true", THINPOOL_LAB_UML=f"{modules}/none", THINPOOL_LAB_MODULES=modules),
        lab.run("--", "true", THINPOOL_LAB_UML=image),
    ):
        assert (done.returncode, "THINPOOL_LAB_UML" in done.stderr) == (2, True)


def test_a_module_that_cannot_be_inserted_fails_the_boot_and_shows_the_console(lab: Lab, tmp_path: Path) -> None:
    tree = _copy_of_modules(tmp_path)
    (tree / "kernel/drivers/md/dm-mod.ko").write_bytes(b"no module")
    done = lab.run("--", "true", THINPOOL_LAB_MODULES=str(tmp_path))
    assert done.returncode == 125
    assert "the guest did not come up: cannot insert module dm-mod.ko" in done.stderr
    assert "console: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "a command to run is missing"),
        (("--",), "a command to run is missing"),
        (("--kernel", "hurd", "--", "true"), "invalid choice: 'hurd'"),
        (("--cpus", "2", "--", "true"), "--kernel qemu"),
        (("--cpus", "0", "--", "true"), "not a number of processors: '0'"),
        (("--memory", "much", "--", "true"), "not a size: 'much'"),
        (("--disk", "0", "--", "true"), "not a size: '0'"),
        (("--timeout", "0", "--", "true"), "not a number of seconds: '0'"),
        (("--keep-disk", "/no/such/folder/image", "--", "true"), "No such file or directory"),
        (("--unknown", "--", "true"), "--unknown"),
    ],
)
def test_wrong_usage_says_what_is_wrong(lab: Lab, arguments: tuple[str, ...], said: str) -> None:
    done = lab.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_help_teaches(lab: Lab) -> None:
    done = lab.run("--help")
    assert done.returncode == 0
    for word in ("$LAB_OUT", "$LAB_SCRATCH", "$LAB_DISKS", "--keep-disk", "exit status", "tools/lab --kernel qemu"):
        assert word in done.stdout


def _copy_of_modules(home: Path) -> Path:
    """The kernel's module tree, by links where nothing is changed."""
    release = next(MODULES.iterdir())
    tree = home / release.name
    shutil.copytree(release, tree, copy_function=os.symlink)
    for name in ("modules.dep", "kernel/drivers/md/dm-mod.ko"):
        (tree / name).unlink()
        shutil.copy(release / name, tree / name)
    return tree


def _guard_of(running: RunningLab) -> int:
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text(encoding="ascii")
    (guard,) = map(int, children.split())
    return guard


def test_an_ending_leaves_the_terminal_alone() -> None:
    """The launcher needs no terminal and takes none: it works where there is none at all."""
    done = subprocess.run(
        [CHECKOUT / "tools" / "lab", "--", "true"], check=False, stdin=subprocess.DEVNULL, start_new_session=True
    )
    assert done.returncode == 0
