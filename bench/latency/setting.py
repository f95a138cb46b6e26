"""What the parts of the benchmark work with: the disk, the contenders that were asked for, the results file."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import attrs

from bench.latency.byhand import ByHand
from bench.latency.containerd import Containerd
from bench.latency.contender import Contender
from bench.latency.disk import SlowDisk
from bench.latency.docker import Docker
from bench.latency.load import LOAD_BYTES, Load, writing
from bench.latency.ours import Thinpool
from bench.latency.records import Cell, Journal, Record
from bench.latency.trees import LOAD_FILE, write_archive

CONTENDERS = ("thinpool", "docker-devicemapper", "containerd", "byhand", "docker-overlay2", "docker-btrfs")
_LEAST_CUT_SECONDS = 60.0


@attrs.frozen
class Setting:
    """One run.

    Attributes:
        disk: the slow disk.
        ours: thinpool, which all parts measure.
        contenders: those that were asked for, thinpool among them.
        journal: where the results go.
        scratch: a directory in memory.
        rounds: how often each thing is measured, as a rule.
        limit: seconds that the rounds of one thing may take together; at least one round is measured.
        load_device: the part of the disk that the load `disk` writes to.
    """

    disk: SlowDisk
    ours: Thinpool
    contenders: Mapping[str, Contender]
    journal: Journal
    scratch: Path
    rounds: int
    limit: float
    load_device: Path
    _built: set[tuple[str, int]] = attrs.field(factory=set, init=False)

    def build(self, files: int, *, everywhere: bool) -> None:
        """Make a tree where it is missing, on the fast disk."""
        chosen = list(self.contenders.values()) if everywhere else [self.ours]
        missing = [contender for contender in chosen if (contender.name, files) not in self._built]
        if not missing:
            return
        self.disk.set_delay(0)
        archive = self.scratch / f"tree-{files}.tar"
        write_archive(archive, files)
        for contender in missing:
            contender.build(files, archive)
            self._built.add((contender.name, files))
            print(f"built: {files:,} files: {contender.name}", flush=True)
        archive.unlink()

    def set_delay(self, milliseconds: int) -> None:
        """Make the disk as slow as asked, and keep what a read takes then."""
        self.disk.set_delay(milliseconds)
        found = self.disk.read_latency()
        self.journal.add(Record("disk", "disk", "read 4 KiB", Cell(0, 0, milliseconds), 0, found))

    def loaded(self, load: str, contender: Contender) -> AbstractContextManager[Load | None]:
        """With a load, where it is told to be: `none` gives None."""
        if load == "disk":
            return writing(self.disk, self.load_device)
        if load == "pool":
            return writing(self.disk, contender.other())
        if load == "layer":
            return writing(self.disk, contender.root / LOAD_FILE, contender.adopt)
        return nullcontext()


@contextmanager
def prepared(
    device: Path, scratch: Path, names: tuple[str, ...], journal: Journal, *, rounds: int, limit: float
) -> Iterator[Setting]:
    """Set up the disk and the contenders, and take all down at the end."""
    mounts, run = scratch / "mounts", scratch / "run"
    mounts.mkdir()
    run.mkdir()
    with SlowDisk(device, mounts) as disk, ExitStack() as undo:
        load_device = disk.slice("load", LOAD_BYTES)
        ours = Thinpool(disk)
        undo.callback(ours.close)
        contenders: dict[str, Contender] = {}
        for name in names:
            contender = ours if name == "thinpool" else _contender(name, disk, run, limit)
            if contender is not ours:
                undo.callback(contender.close)
            contenders[name] = contender
            print(f"set up: {contender.name}", flush=True)
        undo.callback(disk.set_delay, 0)
        yield Setting(disk, ours, contenders, journal, scratch, rounds, limit, load_device)


def _contender(name: str, disk: SlowDisk, run: Path, limit: float) -> Contender:
    if name == "containerd":
        return Containerd(disk, run)
    if name == "byhand":
        return ByHand(disk, max(limit, _LEAST_CUT_SECONDS))
    return Docker(disk, name.removeprefix("docker-"), run)
