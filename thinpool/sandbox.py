"""Run a command in a mounted layer, in mount and process namespaces of its own.

`run_in` starts this module anew as a child (a process with threads must not fork and go on in Python). The child makes
its namespaces, mounts the layer where only it can see it, changes root into it, and starts the command under a small
init of its own. Everything mounted here is gone with the last process in the namespaces, and nobody else ever saw it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from thinpool.errors import ConfigError, MountError
from thinpool.filesystem import syscalls
from thinpool.filesystem.syscalls import MS_PRIVATE, MS_REC

_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS = {"fd": "/proc/self/fd", "ptmx": "pts/ptmx", "stderr": "fd/2", "stdin": "fd/0", "stdout": "fd/1"}
_DEFAULT_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_BIND = 4096
_FAILED = 125
_GRACE_SECONDS = 10.0
_PACKAGES = str(Path(__file__).parents[1])
_NOT_RUNNABLE = 126
_NOT_FOUND = 127


def run_in(
    mount_fd: int, place: Path, argv: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: str = "/"
) -> int:
    """Run a command in a detached mount.

    Args:
        mount_fd: the mount, as of fsmount(2).
        place: a directory of ours that the child may mount over, in its own namespace.
        argv: the command and its arguments.
        environ: its environment; by default PATH and HOME as a login would have them, and TERM.
        cwd: its working directory in the layer.

    Returns:
        Its exit status; 128 + n after signal n, 127 where it is missing, 126 where it cannot be run.
    """
    if not argv:
        raise ConfigError("no command was given")
    environment = dict(_DEFAULT_ENVIRONMENT if environ is None else environ)
    if environ is None and "TERM" in os.environ:
        environment["TERM"] = os.environ["TERM"]
    entered, entering = os.pipe()
    start = f"import sys; sys.path.insert(0, {_PACKAGES!r}); from thinpool.sandbox import main; main(sys.argv[1:])"
    command = [sys.executable, "-I", "-c", start, str(mount_fd), str(entering), str(place), cwd, *argv]
    try:
        with subprocess.Popen(command, env=environment, pass_fds=(mount_fd, entering)) as child:  # noqa: S603
            os.close(entering)
            try:
                status = child.wait()
            except BaseException:
                _end(child)
                raise
        if not os.read(entered, 1):
            raise MountError("the layer could not be entered (the reason stands above)")
    finally:
        os.close(entered)
    return status if status >= 0 else 128 - status


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the command to end, and end it, with all that it started, if it does not."""
    child.terminate()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()  # the first process of its namespace dies with it, and takes the others along
        child.wait()


def main(arguments: Sequence[str]) -> None:
    """The child: enter the layer and run the command; the exit status is the command's."""
    mount_fd, entering, place, cwd, *argv = arguments
    try:
        syscalls.die_with_parent()
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
        child = os.fork()  # the first process of the new process namespace
        if child == 0:
            syscalls.die_with_parent()
            os._exit(_init(int(mount_fd), int(entering), place, cwd, argv))
    except OSError as error:
        sys.exit(_complain(f"cannot make namespaces: {error.strerror}"))
    os.close(int(entering))
    _leave_signals_to(child)
    sys.exit(_reap(child))


def _leave_signals_to(child: int) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to the command too
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(child, number))


def _init(mount_fd: int, entering: int, place: str, cwd: str, argv: Sequence[str]) -> int:
    try:
        _enter(mount_fd, place)
        os.chdir(cwd)
    except OSError as error:
        return _complain(f"{error.filename or 'chdir'}: {error.strerror}")
    os.write(entering, b"1")
    os.close(entering)
    command = os.fork()
    if command == 0:
        _execute(argv)
    _leave_signals_to(command)
    return _reap(command)


def _reap(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _execute(argv: Sequence[str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a command would inherit that
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - that is our purpose
    except FileNotFoundError:
        _complain(f"{argv[0]}: not found in the layer")
        os._exit(_NOT_FOUND)
    except OSError as error:
        _complain(f"{argv[0]}: {error.strerror}")
        os._exit(_NOT_RUNNABLE)


def _enter(mount_fd: int, place: str) -> None:
    """Mount the layer at `place`, make it the root, and give it the usual kernel file systems."""
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    target = os.open(place, os.O_PATH | os.O_DIRECTORY)
    syscalls.move_mount(mount_fd, target)
    os.close(target)
    os.close(mount_fd)
    os.chdir(place)
    devices = {name: syscalls.open_tree(syscalls.AT_FDCWD, f"/dev/{name}", clone=True) for name in _present_devices()}
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chroot(".")
    os.chdir("/")
    _mount_on("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount_on("sysfs", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)
    if _mount_on("tmpfs", "/dev", "tmpfs", _MS_NOSUID, "mode=755,size=64k"):
        _fill_dev(devices)
    for fd in devices.values():
        os.close(fd)


def _present_devices() -> list[str]:
    return [name for name in _DEVICES if os.path.exists(f"/dev/{name}")]


def _mount_on(source: str, target: str, fs_type: str, flags: int, data: str | None = None) -> bool:
    """Mount where the layer has a directory for it, and a directory it is, no symbolic link."""
    if os.path.islink(target) or not os.path.isdir(target):
        return False
    syscalls.mount(source, target, fs_type, flags, data)
    return True


def _fill_dev(devices: Mapping[str, int]) -> None:
    for name, fd in devices.items():
        path = f"/dev/{name}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
        place = os.open(path, os.O_PATH)
        syscalls.move_mount(fd, place)
        os.close(place)
    for name, target in _LINKS.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm", 0o1777)  # noqa: S108 - the layer's own
    os.mkdir("/dev/pts", 0o755)
    with suppress(OSError):  # a kernel without it lacks terminals in layers, nothing else
        syscalls.mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")


def _complain(text: str) -> int:
    sys.stderr.write(f"thinpool: error: {text}\n")
    sys.stderr.flush()
    return _FAILED
