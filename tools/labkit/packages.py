"""Install what the lab needs, once: packages by apt, and a Debian kernel for QEMU unpacked below the checkout."""

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from labkit.errors import LabError

_LIST = Path(__file__).resolve().parent.parent / "packages"
_APT_OPTIONS = ("-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3")


def missing_packages(groups: Sequence[str]) -> list[str]:
    """Names of the packages of these groups (`tools/packages`) whose telling file is not there."""
    missing: list[str] = []
    known: set[str] = set()
    for line in _LIST.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        owners, package, proof = line.split()
        known.update(owners.split(","))
        if not set(groups).isdisjoint(owners.split(",")) and not os.path.exists(proof):
            missing.append(package)
    if unknown := set(groups) - known:
        raise LabError(f"no such package group: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return missing


def install(groups: Sequence[str], cache: Path) -> None:
    """Install the missing packages of these groups by apt; nothing is called where none is missing.

    Raises:
        LabError: not root, no apt, or apt failed (with the end of what it said).
    """
    if not missing_packages(groups):
        return
    with setup_lock(cache):
        if packages := missing_packages(groups):
            _say(f"installing {' '.join(packages)}")
            apt_update()
            _run(["apt-get", "install", "--yes", "--no-install-recommends", *_APT_OPTIONS, *packages])
    if left := missing_packages(groups):
        raise LabError(f"apt installed them, but still missing are the files of: {', '.join(left)}")


def apt_update() -> None:
    """Fetch the package lists; a failure is left to the installation that follows, which may not need them."""
    with contextlib.suppress(LabError):
        _run(["apt-get", "update", *_APT_OPTIONS])


@contextlib.contextmanager
def setup_lock(cache: Path) -> Iterator[None]:
    """Hold the lock that keeps two setups of one checkout apart; it ends with its holder."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def debian_kernel(cache: Path) -> Path:
    """The folder of an unpacked stock Debian kernel: `boot/` with its image and `lib/modules/*` with their indexes.

    Beside `boot/vmlinuz-*` lies `boot/vmlinux-*`, the same without compression, where this could undo it.

    It is fetched by apt the first time; a fetch that dies half-way leaves no folder of that name.
    """
    home = cache / "kernel"
    if not (home / "boot").is_dir():
        with setup_lock(cache):
            if not (home / "boot").is_dir():
                _unpack_kernel(home)
    return home


def _unpack_kernel(home: Path) -> None:
    apt_update()
    package = _newest_kernel_package()
    _say(f"fetching {package} for QEMU")
    with tempfile.TemporaryDirectory(prefix="kernel-", dir=home.parent) as work:
        # apt drops to a user of its own for downloads, which may not enter a private folder
        os.chmod(work, 0o755)
        _run(["apt-get", "download", *_APT_OPTIONS, package], cwd=work)
        archives = list(Path(work).glob("*.deb"))
        if len(archives) != 1:
            raise LabError(f"apt-get download {package} left {len(archives)} archives, not one")
        tree = Path(work, "tree")
        _run(["dpkg", "-x", str(archives[0]), str(tree)])
        modules = tree / "lib" / "modules"
        if not modules.is_dir():
            modules = tree / "usr" / "lib" / "modules"
        release = next(iter(modules.iterdir())).name
        (tree / "depmod" / "lib").mkdir(parents=True)
        modules.rename(tree / "depmod" / "lib" / "modules")
        _run(["depmod", "-b", str(tree / "depmod"), release])
        _decompress(tree / "boot" / f"vmlinuz-{release}", tree / "boot" / f"vmlinux-{release}")
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(tree / "lib", ignore_errors=True)
        (tree / "depmod" / "lib").rename(tree / "lib")
        (tree / "depmod").rmdir()
        tree.rename(home)


def _decompress(image: Path, plain: Path) -> None:
    """Undo the image's compression, which costs an emulator seconds at each boot; leave it where it is no xz."""
    content = image.read_bytes()
    start = content.find(b"\xfd7zXZ\0")
    if start >= 0:
        with contextlib.suppress(lzma.LZMAError):
            plain.write_bytes(lzma.LZMADecompressor().decompress(content[start:]))


def _newest_kernel_package() -> str:
    for name in ("linux-image-amd64", "linux-image-generic"):
        answer = subprocess.run(
            ["apt-cache", "depends", name], check=False, capture_output=True, text=True, env=_environment()
        )
        if found := re.search(r"Depends: (linux-image-\d\S+)", answer.stdout):
            return found[1]
    raise LabError("apt knows no linux-image-amd64 or linux-image-generic to take a kernel from")


def _run(command: Sequence[str], cwd: str | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise LabError(f"cannot install: no {command[0]} here; the lab sets itself up on Debian and Ubuntu only")
    if os.geteuid() != 0 and command[0].startswith("apt-get"):
        raise LabError("cannot install packages: not root")
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise LabError(f"{' '.join(command)} ended with status {done.returncode}:\n{tail}")


def _environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": _path_with_sbin()}


def _path_with_sbin() -> str:
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def _say(message: str) -> None:
    print(f"lab: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Install the packages of the groups given as arguments (`python -m labkit.packages GROUP...`)."""
    groups = sys.argv[1:]
    cache = Path(__file__).resolve().parent.parent.parent / ".cache" / "lab"
    try:
        install(groups, cache)
        if "qemu" in groups:
            debian_kernel(cache)
    except LabError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
