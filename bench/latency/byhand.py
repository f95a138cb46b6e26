"""What an administrator has without any of them: dmsetup, mount, rsync and tar."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.latency.contender import Operation, limited, tool
from bench.latency.disk import SlowDisk
from bench.latency.ours import DATA_BYTES, GIB, METADATA_BYTES
from bench.latency.trees import LOAD_FILE, change

_SECTORS = 4 * GIB // 512


class ByHand:
    """A pool, and the commands one would type.

    Args:
        disk: the slow disk.
        limit: seconds after which a walk or an archive is given up.
    """

    name = "by hand"
    context = False

    def __init__(self, disk: SlowDisk, limit: float) -> None:
        self._home = disk.home("byhand", 4 * GIB)
        self._pool = disk.pool("byhand", DATA_BYTES, METADATA_BYTES)
        self._limit = limit
        self._ids = itertools.count(1)
        self._bases: dict[int, int] = {}
        self._live = self._base = self._snapshot = 0
        self._others: int | None = None
        self.root, self._other = self._home / "live", self._home / "other"
        for name in ("live", "other", "older", "newer"):
            (self._home / name).mkdir()

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            Operation("commit", self._commit, self._delete_snapshot, self._warm),
            Operation("diff", self._diff, self._delete_snapshot, self._warm, context=True),
            Operation("commit + export", self._export, self._delete_snapshot, self._warm, context=True),
            Operation("tar of everything", self._tar, self._remove_tar, self._warm, context=True),
        )

    def build(self, files: int, archive: Path) -> None:
        number = next(self._ids)
        self._message(f"create_thin {number}")
        self._activate("live", number)
        tool("mkfs.ext4", "-q", "-E", "nodiscard", "/dev/mapper/bench-byhand-live")
        tool("mount", "/dev/mapper/bench-byhand-live", str(self.root))
        tool("tar", "--numeric-owner", "-xpf", str(archive), "-C", str(self.root))
        self._deactivate("live")
        self._bases[files] = number

    def begin(self, files: int, changes: int) -> None:
        self._base = self._bases[files]
        self._live = self._writable("live", self._base)
        change(self.root, files, changes)

    def end(self) -> None:
        self._deactivate("live")
        self._message(f"delete {self._live}")
        if self._others is not None:
            self._deactivate("other")
            self._message(f"delete {self._others}")
            self._others = None

    def _warm(self) -> None:
        for command in ("dmsetup", "mount", "umount", "rsync", "tar"):
            tool(command, "--version")

    def adopt(self, pid: int) -> None:
        """A writer is anybody here."""

    def other(self) -> Path:
        if self._others is None:
            self._others = self._writable("other", self._base)
        return self._other / LOAD_FILE

    def close(self) -> None:
        """Nothing runs, and the disk takes the pool down."""

    def _commit(self) -> None:
        self._snapshot = next(self._ids)
        tool("dmsetup", "suspend", "bench-byhand-live")
        self._message(f"create_snap {self._snapshot} {self._live}")
        tool("dmsetup", "resume", "bench-byhand-live")

    def _diff(self) -> None:
        self._commit()
        with self._both():
            self._compare()

    def _export(self) -> None:
        self._commit()
        with self._both():
            (self._home / "changed").write_text(self._compare())
            names = f"--files-from={self._home / 'changed'}"
            self._archive(str(self._home / "newer"), "--no-recursion", names)

    def _tar(self) -> None:
        self._archive(str(self.root), ".")

    def _archive(self, root: str, *names: str) -> None:
        limited(self._limit, "tar", "--xattrs", "-cf", str(self._home / "layer.tar"), "-C", root, *names)

    def _compare(self) -> str:
        """The names of what differs, by the double walk that rsync is; what was deleted is named otherwise."""
        command = ("rsync", "--dry-run", "-aHAX", "--delete", "--out-format=%o %n")
        said = limited(self._limit, *command, f"{self._home / 'newer'}/", f"{self._home / 'older'}/")
        return "".join(f"{line[5:]}\n" for line in said.splitlines() if line.startswith("send "))

    @contextmanager
    def _both(self) -> Iterator[None]:
        """The parent and the snapshot, mounted read-only."""
        with ExitStack() as active:
            for name, number in (("older", self._base), ("newer", self._snapshot)):
                self._activate(name, number)
                active.callback(tool, "dmsetup", "remove", "--retry", f"bench-byhand-{name}")
                tool("mount", "-o", "ro", f"/dev/mapper/bench-byhand-{name}", str(self._home / name))
                active.callback(tool, "umount", str(self._home / name))
            yield

    def _delete_snapshot(self) -> None:
        self._message(f"delete {self._snapshot}")

    def _remove_tar(self) -> None:
        (self._home / "layer.tar").unlink()

    def _writable(self, name: str, origin: int) -> int:
        number = next(self._ids)
        self._message(f"create_snap {number} {origin}")
        self._activate(name, number)
        tool("mount", f"/dev/mapper/bench-byhand-{name}", str(self._home / name))
        return number

    def _activate(self, name: str, number: int) -> None:
        tool("dmsetup", "create", f"bench-byhand-{name}", "--table", f"0 {_SECTORS} thin {self._pool} {number}")

    def _deactivate(self, name: str) -> None:
        tool("umount", str(self._home / name))
        tool("dmsetup", "remove", "--retry", f"bench-byhand-{name}")

    def _message(self, text: str) -> None:
        tool("dmsetup", "message", str(self._pool), "0", text)
