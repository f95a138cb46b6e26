"""thinpool itself, by its library, and once by its command."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.latency.contender import Operation, tool
from bench.latency.disk import SlowDisk
from bench.latency.kernel import BARE, BareCheckpoints
from bench.latency.trees import LOAD_FILE, change
from thinpool import Store

GIB = 1 << 30
DATA_BYTES = 12 * GIB
METADATA_BYTES = 128 << 20
BASE_SIZE = "4G"


class Thinpool:
    """A store on slices of the slow disk, its records on a file system there."""

    name = "thinpool"
    context = False

    def __init__(self, disk: SlowDisk) -> None:
        self._home = disk.home("thinpool", 4 * GIB)
        options = {
            "dm.datadev": str(disk.slice("thinpool-data", DATA_BYTES)),
            "dm.metadatadev": str(disk.slice("thinpool-metadata", METADATA_BYTES)),
            "dm.basesize": BASE_SIZE,
        }
        self.store = Store.open(self._home / "store", "devicemapper", options)
        self.root = self._home / "live"
        self._other = self._home / "other"
        self._begun: tuple[int, int] | None = None
        self._taken: list[str] = []
        self._bare: BareCheckpoints | None = None
        for target in (self.root, self._other):
            target.mkdir()

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            Operation("commit", lambda: self.store.commit("done", "live"), self._again),
            Operation("checkpoint", lambda: self.store.checkpoint("done", "live"), self._remove),
            Operation(BARE, lambda: self._floor().take(), self._lift, self._floor),
            Operation("commit + export", self._commit_and_export, self._again),
            Operation("diff", lambda: self.store.changes("live"), context=True),
            Operation("command: commit", self._by_command, self._again, self._warm, context=True),
            Operation(
                "prepare",
                lambda: self.store.prepare("new", self._base()),
                lambda: self.store.remove("new"),
                context=True,
            ),
        )

    def build(self, files: int, archive: Path) -> None:
        with archive.open("rb") as file:
            self.store.import_layer(f"base-{files}", file)

    def begin(self, files: int, changes: int) -> None:
        self._begun = files, changes
        self.store.prepare("live", f"base-{files}")
        self.store.mount("live", self.root)
        change(self.root, files, changes)

    def end(self) -> None:
        self.unmount()
        self.store.remove("live")
        if self._has_other():
            self.store.unmount("other")
            self.store.remove("other")

    def unmount(self) -> None:
        """Unmount the layer, which can be committed by a record alone then."""
        self.store.unmount("live")

    def take(self) -> None:
        """Take the layer's state, as one of many."""
        name = f"taken-{len(self._taken)}"
        self.store.checkpoint(name, "live")
        self._taken.append(name)

    def forget(self) -> None:
        """Remove what `take` has made."""
        while self._taken:
            self.store.remove(self._taken.pop())

    def adopt(self, pid: int) -> None:
        """A writer is anybody here."""

    def other(self) -> Path:
        if not self._has_other():
            self.store.prepare("other", self._base())
            self.store.mount("other", self._other)
        return self._other / LOAD_FILE

    def close(self) -> None:
        self.store.down()
        self.store.close()

    def _has_other(self) -> bool:
        return (self._other / LOAD_FILE).exists()

    def _base(self) -> str:
        assert self._begun is not None, "no layer was begun"
        return f"base-{self._begun[0]}"

    def _floor(self) -> BareCheckpoints:
        """The kernel's own part of a checkpoint, on the layer as it is mounted now."""
        if self._bare is None:
            self._bare = BareCheckpoints(self.store, self.root)
        return self._bare

    def _lift(self) -> None:
        if self._bare is not None:
            self._bare.close()
            self._bare = None

    def _commit_and_export(self) -> None:
        self.store.commit("done", "live")
        with (self._home / "layer.tar").open("wb") as file:
            self.store.export_layer("done", file)

    def _warm(self) -> None:
        self._command("stat", "live")

    def _by_command(self) -> None:
        self._command("commit", "done", "live")

    def _command(self, *words: str) -> None:
        tool(sys.executable, "-m", "thinpool", "--root", str(self.store.root), *words)

    def _remove(self) -> None:
        self.store.remove("done")

    def _again(self) -> None:
        """A layer like the one that was committed, which is mounted and belongs to none now."""
        assert self._begun is not None, "no layer was begun"
        tool("umount", str(self.root))
        self.store.remove("done")
        self.begin(*self._begun)
