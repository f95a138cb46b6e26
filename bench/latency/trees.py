"""The trees that all contenders get: the same archive, and the same changes to what is unpacked from it."""

import io
import random
import tarfile
from pathlib import Path

from bench.latency.load import LOAD_BYTES

PER_DIRECTORY = 8
"""Files in a directory: Debian's /usr has 7.6, and the walks look into every directory."""

_PER_PART = 1_000
LOAD_FILE = "load"
"""In every tree: the file that fio writes to where the load is inside a layer."""
_BUSYBOX = Path("/bin/busybox")
_TIME = 1_700_000_000
_LARGEST = 5_000


def path_of(number: int) -> str:
    """Where a file of that number is."""
    return f"usr/part-{number // _PER_PART:03}/sub-{number // PER_DIRECTORY:05}/file-{number:06}"


def write_archive(path: Path, files: int) -> None:
    """Write a tree of small files as a tar: eight a directory, up to 5 kB each, one large file, and a busybox."""
    dice = random.Random(files)
    data = dice.randbytes(1 << 20)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bin", "usr", "proc", "sys", "dev", "etc"):
            _add_directory(tar, name)
        _add_file(tar, "bin/busybox", _BUSYBOX.read_bytes(), 0o755)
        _add_file(tar, LOAD_FILE, dice.randbytes(LOAD_BYTES), 0o644)
        for number in range(files):
            if number % _PER_PART == 0:
                _add_directory(tar, str(Path(path_of(number)).parent.parent))
            if number % PER_DIRECTORY == 0:
                _add_directory(tar, str(Path(path_of(number)).parent))
            start = dice.randrange(len(data) - _LARGEST)
            _add_file(tar, path_of(number), data[start : start + dice.randint(1, _LARGEST)], 0o644)


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, _TIME
    tar.addfile(member)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), mode, _TIME
    tar.addfile(member, io.BytesIO(content))


def planned(files: int, changes: int) -> tuple[list[int], list[int], int]:
    """Which files are appended to and which are removed, by number, and how many are new: 8 to 1 to 1."""
    few = changes // 10
    chosen = random.Random(changes).sample(range(files), changes - few)
    return chosen[few:], chosen[:few], few


def change(root: Path, files: int, changes: int) -> None:
    """Change so many files of a tree, spread over it."""
    appended, removed, new = planned(files, changes)
    for number in appended:
        with (root / path_of(number)).open("ab") as file:
            file.write(b"more\n")
    for number in removed:
        (root / path_of(number)).unlink()
    for number in range(new):
        (root / f"{path_of(number * files // max(new, 1))}-new").write_bytes(b"new\n" * 100)
