"""containerd's built-in devmapper snapshotter, through `ctr snapshots`."""

from collections.abc import Sequence
from pathlib import Path

from bench.latency.contender import Operation, tool
from bench.latency.daemon import Daemon
from bench.latency.disk import SlowDisk
from bench.latency.ours import DATA_BYTES, GIB, METADATA_BYTES
from bench.latency.trees import LOAD_FILE, change

_DAEMON, _CLIENT = "/usr/bin/containerd", "/usr/bin/ctr"
_CONFIG = """\
version = 2
root = "{home}/root"
state = "{run}/containerd"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "{home}/devmapper"
  pool_name = "{pool}"
  base_image_size = "4096MB"
  fs_type = "ext4"
"""


class Containerd:
    """A daemon with a pool made for it, its records on a file system of the slow disk."""

    name = "containerd devmapper"
    context = False

    def __init__(self, disk: SlowDisk, run: Path) -> None:
        home = disk.home("containerd", 4 * GIB)
        pool = disk.pool("containerd", DATA_BYTES, METADATA_BYTES)
        self._socket = run / "containerd.sock"
        config = run / "containerd.toml"
        config.write_text(_CONFIG.format(home=home, run=run, socket=self._socket, pool=pool.name))
        self._daemon = Daemon(
            "containerd", [_DAEMON, "--config", str(config)], run / "containerd.log", self._socket.is_socket
        )
        self.root, self._other = home / "live", home / "other"
        for target in (self.root, self._other):
            target.mkdir()
        self._begun: tuple[int, int] | None = None

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            Operation("commit", lambda: self._ctr("commit", "done", "live"), self._again, self._look_up),
            Operation("ctr alone", self._look_up, warm=self._look_up),
            Operation(
                "prepare",
                lambda: self._ctr("prepare", "new", self._base()),
                lambda: self._ctr("rm", "new"),
                self._look_up,
                context=True,
            ),
        )

    def build(self, files: int, archive: Path) -> None:
        self._ctr("prepare", "unpacked")
        self._mount("unpacked", self.root)
        tool("tar", "--numeric-owner", "-xpf", str(archive), "-C", str(self.root))
        tool("umount", str(self.root))
        self._ctr("commit", f"base-{files}", "unpacked")

    def begin(self, files: int, changes: int) -> None:
        self._begun = files, changes
        self._ctr("prepare", "live", self._base())
        self._mount("live", self.root)
        change(self.root, files, changes)

    def end(self) -> None:
        tool("umount", str(self.root))
        self._ctr("rm", "live")
        if self._has_other():
            tool("umount", str(self._other))
            self._ctr("rm", "other")

    def adopt(self, pid: int) -> None:
        """A writer is anybody here."""

    def other(self) -> Path:
        if not self._has_other():
            self._ctr("prepare", "other", self._base())
            self._mount("other", self._other)
        return self._other / LOAD_FILE

    def close(self) -> None:
        self._daemon.stop()

    def _has_other(self) -> bool:
        return (self._other / LOAD_FILE).exists()

    def _base(self) -> str:
        assert self._begun is not None, "no snapshot was begun"
        return f"base-{self._begun[0]}"

    def _again(self) -> None:
        assert self._begun is not None, "no snapshot was begun"
        tool("umount", str(self.root))
        self._ctr("rm", "done")
        self.begin(*self._begun)

    def _mount(self, key: str, target: Path) -> None:
        """As `ctr snapshots mounts` says."""
        words = self._ctr("mounts", str(target), key).split()
        tool("mount", "-t", words[2], words[3], str(target))

    def _look_up(self) -> None:
        self._ctr("info", "live")

    def _ctr(self, *command: str) -> str:
        return tool(_CLIENT, "--address", str(self._socket), "snapshots", "--snapshotter", "devmapper", *command)
