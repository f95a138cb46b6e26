"""One lab from start to end: set up, boot, carry the output over, give back the exit status."""

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from labkit import initramfs
from labkit.errors import Interrupted, LabError, UsageError
from labkit.guard import Guard, start_guard
from labkit.kernels import CONTROL, HOST_ROOT, OUT, Kernel, Machine, find_kernel

CHECKOUT = Path(__file__).resolve().parent.parent.parent
"""The folder that holds tools/."""

CACHE = CHECKOUT / ".cache" / "lab"
"""What setting up leaves: the kernel for QEMU, a lock, and the out folders of labs that were given none."""

TIMED_OUT = 124

_POLL_SECONDS = 0.02
_SHUTDOWN_SECONDS = 30.0
_NEW_DISK_BYTES = 4 << 30
_GUEST_FILES = Path(__file__).resolve().parent / "guest"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Disk:
    """A disk of the guest.

    Attributes:
        size: bytes of a disk that vanishes with the lab, or None.
        file: the file of a disk that stays, or None.
    """

    size: int | None = None
    file: Path | None = None


@dataclass(frozen=True)
class Request:
    """What a caller asks for.

    Attributes:
        command: the argument list to run in the guest.
        kernel: `uml` or `qemu`.
        cpus: number of processors.
        memory: bytes.
        disks: the disks, in the order of `$LAB_DISKS`.
        out: the folder behind `$LAB_OUT`; None keeps one below the cache if something is written to it.
        timeout: seconds from boot to end, or None.
    """

    command: Sequence[str]
    kernel: str = "uml"
    cpus: int = 1
    memory: int = 3 << 30
    disks: Sequence[Disk] = ()
    out: Path | None = None
    timeout: float | None = None


def run(request: Request) -> int:
    """Run a command in the guest; its output goes to ours as it comes.

    Returns:
        The command's exit status (128 and the signal's number if one killed it), or 124 at the time limit.

    Raises:
        LabError: the guest did not come up, or stopped before the command ended.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; the guest is gone.
    """
    with _signals_raise():
        if os.geteuid() != 0:
            raise LabError("the lab runs as root only: the guest reads the host's files with the caller's rights")
        kernel = find_kernel(request.kernel, request.cpus, CACHE)
        modules = initramfs.module_files(kernel.modules, kernel.boot_modules)
        with contextlib.ExitStack() as stack:
            disks = [stack.enter_context(_opened(disk)) for disk in request.disks]
            guard = start_guard()
            stack.callback(guard.close)
            return _Lab(request, kernel, guard, disks).run(modules)


class _Lab:
    def __init__(self, request: Request, kernel: Kernel, guard: Guard, disks: Sequence[int]) -> None:
        self.request = request
        self.kernel = kernel
        self.guard = guard
        self.disks = disks
        self.streams: list[_Stream] = []
        # one file where the caller has one, so that the order of lines stays
        self.error_file = "stdout" if _same_file(1, 2) else "stderr"

    def run(self, modules: Sequence[Path]) -> int:
        out = self._prepare(modules)
        try:
            machine = self._machine()
            self.guard.boot(self.kernel.command(machine), self.kernel.environment(machine), self.disks)
            try:
                limit = self._follow()
            finally:
                self.guard.end_guest()
                self._carry_over()
            status = self._status()
            if limit is not None and status is None:
                self._explain()
                return limit
            if status is None:
                raise LabError(self._reason())
            return status
        finally:
            if self.request.out is None:
                _keep_if_filled(out)

    def _prepare(self, modules: Sequence[Path]) -> Path:
        folder = self.guard.folder
        out = folder / "out"
        if self.request.out is None:
            out.mkdir()
        else:
            self.request.out.mkdir(parents=True, exist_ok=True)
            out.symlink_to(self.request.out.resolve())
        disks = " ".join(self.kernel.disk_paths(len(self.disks)))
        settings = {
            "LAB_SHARE_TYPE": self.kernel.share_type(),
            "LAB_ROOT_OPTIONS": ",cache=loose" if self.kernel.share_type() == "9p" else "",
            "LAB_CONTROL": str(folder),
            "LAB_DISKS": disks,
            "LAB_MODULES": str(self.kernel.modules),
            "LAB_RELEASE": self.kernel.release,
            "LAB_STDERR": self.error_file,
        }
        (folder / "command").write_bytes(os.fsencode(_script(self.request.command, self._environment(disks))))
        shutil.copyfile(_GUEST_FILES / "start", folder / "start")
        first = initramfs.build(Path("/bin/busybox"), modules, (_GUEST_FILES / "init").read_bytes(), settings)
        (folder / "initramfs").write_bytes(first)
        (folder / "console").touch()
        self.streams = [_Stream(folder / "stdout", 1), _Stream(folder / "stderr", 2)]
        return out

    def _machine(self) -> Machine:
        folder = self.guard.folder
        return Machine(
            cpus=self.request.cpus,
            memory=self.request.memory,
            disks=[f"/proc/self/fd/{disk}" for disk in self.disks],
            folders={HOST_ROOT: Path("/"), CONTROL: folder, OUT: (folder / "out").resolve()},
            run_dir=folder,
            initramfs=folder / "initramfs",
        )

    def _environment(self, disks: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if _is_passed(name)},
            "PATH": f"{CHECKOUT}/.venv/bin:{_SYSTEM_PATH}",
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TMPDIR": "/run/lab/scratch",
            "LAB_KERNEL": self.kernel.name,
            "LAB_OUT": "/run/lab/out",
            "LAB_SCRATCH": "/run/lab/scratch",
            "LAB_DISKS": disks,
        }

    def _follow(self) -> int | None:
        """Carry output over until the guest is gone (None) or must be ended (an exit status)."""
        started = time.monotonic()
        ended: float | None = None
        booted = False
        while not self.guard.wait(_POLL_SECONDS):
            self._carry_over()
            now = time.monotonic()
            booted = booted or (self.guard.folder / "ready").exists()
            if not booted and now - started > self.kernel.boot_limit:
                raise LabError(f"the guest did not come up within {self.kernel.boot_limit:.0f} s{self._console_tail()}")
            if ended is None and self._status() is not None:
                ended = now
            if ended is None and self.request.timeout is not None and now - started > self.request.timeout:
                return TIMED_OUT
            if ended is not None and now - ended > _SHUTDOWN_SECONDS:
                print(f"lab: the guest did not shut down within {_SHUTDOWN_SECONDS:.0f} s; ended it", file=sys.stderr)
                return None
        return None

    def _carry_over(self) -> None:
        for stream in self.streams:
            stream.carry_over()

    def _status(self) -> int | None:
        try:
            return int((self.guard.folder / "status").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _explain(self) -> None:
        where = "" if (self.guard.folder / "ready").exists() else ", before the command started"
        print(f"lab: time limit of {self.request.timeout:g} s reached{where}", file=sys.stderr)

    def _reason(self) -> str:
        console = self._console()
        reasons = [line[5:] for line in console.splitlines() if line.startswith("lab: ")]
        if reasons:
            first = f"the guest did not come up: {reasons[0]}"
        elif (self.guard.folder / "ready").exists():
            first = "the guest stopped before the command ended"
        else:
            first = "the guest did not come up"
        return first + self._console_tail()

    def _console(self) -> str:
        try:
            return (self.guard.folder / "console").read_text(encoding="utf-8", errors="replace")
        except OSError:  # the guard is gone, and the folder with it
            return ""

    def _console_tail(self) -> str:
        lines = self._console().splitlines()[-25:]
        return "".join(f"\n  console: {line}" for line in lines) or "\n  (nothing on its console)"


class _Stream:
    """The output of the command: a file that the guest writes, and a descriptor of ours."""

    def __init__(self, path: Path, target: int) -> None:
        self.source = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.target = target

    def carry_over(self) -> None:
        if os.fstat(self.source).st_size < os.lseek(self.source, 0, os.SEEK_CUR):
            os.lseek(self.source, 0, os.SEEK_SET)  # the command truncated it, as `>/dev/stdout` does
        while data := os.read(self.source, 1 << 16):
            while data:
                data = data[os.write(self.target, data) :]


def _script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    here = Path.cwd()
    folder = here if here.is_relative_to(CHECKOUT) else CHECKOUT
    setting = [f"{name}={value}" for name, value in environment.items()]
    argv = shlex.join(["/usr/bin/env", "-i", *setting, *command])
    return f"cd {shlex.quote(str(folder))} || exit 125\nexec {argv}\n"


def _is_passed(name: str) -> bool:
    return name in {"CI", "TERM", "TZ"} or (name.startswith("THINPOOL_") and not name.startswith("THINPOOL_LAB_"))


@contextlib.contextmanager
def _opened(disk: Disk) -> Iterator[int]:
    """A descriptor of the disk's file; a disk that vanishes has no name, so nothing can leave it behind."""
    if disk.file is None:
        with tempfile.TemporaryFile(prefix="thinpool-lab-", dir=os.environ.get("TMPDIR", "/var/tmp")) as file:
            file.truncate(disk.size)
            yield file.fileno()
        return
    try:
        descriptor = os.open(disk.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"--keep-disk {disk.file}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_size == 0:
            os.truncate(descriptor, _NEW_DISK_BYTES)
        yield descriptor
    except BlockingIOError as error:
        raise UsageError(f"--keep-disk {disk.file}: another lab uses it") from error
    finally:
        os.close(descriptor)


def _keep_if_filled(out: Path) -> None:
    if not any(out.iterdir()):
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = Path(tempfile.mkdtemp(prefix="out-", dir=CACHE))
    shutil.copytree(out, kept, symlinks=True, dirs_exist_ok=True)
    print(f"lab: what was written to $LAB_OUT is in {kept}; --out DIR names the folder", file=sys.stderr)


def _same_file(first: int, second: int) -> bool:
    try:
        return os.path.sameopenfile(first, second)
    except OSError:
        return False


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`, and ignore further ones while cleaning up."""
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        for each in signums:
            signal.signal(each, _nothing)  # not SIG_IGN: Python complains of one that is on its way
        raise Interrupted(signum)

    before = [(signum, signal.signal(signum, interrupt)) for signum in signums]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)
