"""Small ext4 file systems in files, so that a snapshot is a copy of the file, with inode numbers and times and all."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs

from thinpool.filesystem import syscalls

_NOATIME = 1024
_SIZE = 256 << 20
_TEMPLATE = "template"


@attrs.frozen
class Images:
    """File systems by name.

    Attributes:
        folder: where their files are; in memory.
        loops: the loop device of each.
    """

    folder: Path
    loops: dict[str, str] = attrs.field(factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Images":
        images = cls(folder)
        for name in (_TEMPLATE, "older", "newer", "copy"):
            with open(folder / name, "wb") as file:
                file.truncate(_SIZE)
            images.loops[name] = run("losetup", "--find", "--show", str(folder / name)).strip()
        options = ("-O", "^has_journal", "-I", "512", "-N", "2048", "-E", "lazy_itable_init=0,nodiscard")
        run("mkfs.ext4", "-q", "-F", *options, images.loops[_TEMPLATE])
        with images.mounted(_TEMPLATE) as root:
            (root / "lost+found").rmdir()
        return images

    def make(self, name: str) -> None:
        """An empty ext4 under a name, in place of what is there."""
        self.copy(_TEMPLATE, name)

    def copy(self, source: str, target: str) -> None:
        """A snapshot of a file system, neither of which is mounted."""
        with open(self.folder / source, "rb") as old, open(self.folder / target, "r+b") as new:
            os.truncate(new.fileno(), 0)
            os.truncate(new.fileno(), _SIZE)
            for start, end in _extents(old.fileno()):
                os.lseek(old.fileno(), start, os.SEEK_SET)
                os.pwrite(new.fileno(), os.read(old.fileno(), end - start), start)

    @contextlib.contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """Mount one, below the folder."""
        place = self.folder / f"{name}.mounted"
        place.mkdir(exist_ok=True)
        syscalls.mount(self.loops[name], str(place), "ext4", _NOATIME)
        try:
            yield place
        finally:
            syscalls.umount(str(place))
            place.rmdir()

    def close(self) -> None:
        for loop in self.loops.values():
            run("losetup", "--detach", loop)
        shutil.rmtree(self.folder)


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="surrogateescape")
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
