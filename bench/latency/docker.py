"""Docker's daemon, spoken to as its client does, over its socket: what the client itself costs is left out."""

import http
import http.client
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bench.latency.contender import Operation
from bench.latency.daemon import Daemon
from bench.latency.disk import SlowDisk
from bench.latency.ours import BASE_SIZE, DATA_BYTES, GIB, METADATA_BYTES
from bench.latency.trees import LOAD_FILE, change

_DAEMON = "/usr/sbin/dockerd"
_COMMAND = ["/bin/busybox", "sleep", "100000000"]
_SECONDS = 3600.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))


class Docker:
    """A daemon with one of its storage drivers, its data root on the slow disk.

    Args:
        disk: the slow disk.
        driver: `devicemapper` (with a pool made for it), `overlay2` or `btrfs`.
        run: a directory in memory for sockets and logs.
    """

    def __init__(self, disk: SlowDisk, driver: str, run: Path) -> None:
        self.name = f"docker {driver}"
        self.context = driver != "devicemapper"
        self._socket = run / f"docker-{driver}.sock"
        options: list[str] = []
        if driver == "devicemapper":
            pool = disk.pool("docker", DATA_BYTES, METADATA_BYTES)
            for option in (f"dm.thinpooldev={pool}", f"dm.basesize={BASE_SIZE}", "dm.fs=ext4"):
                options += ["--storage-opt", option]
        self._home = disk.home(f"docker-{driver}", 8 * GIB, "btrfs" if driver == "btrfs" else "ext4")
        command = [
            _DAEMON, "--data-root", str(self._home / "docker"), "--exec-root", str(run / f"docker-{driver}"),
            "--pidfile", str(run / f"docker-{driver}.pid"), "--host", f"unix://{self._socket}",
            "--iptables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false",
            "--storage-driver", driver, *options,
        ]  # fmt: skip
        self._daemon = Daemon(f"docker-{driver}", command, run / f"docker-{driver}.log", self._serves)
        self._container: str | None = None
        self._others: str | None = None
        self._image: str | None = None
        self._base = ""

    @property
    def operations(self) -> Sequence[Operation]:
        return (
            Operation("commit", self._commit, self._remove_image),
            Operation("diff", lambda: self._ask("GET", f"/containers/{self._container}/changes"), context=True),
        )

    @property
    def root(self) -> Path:
        assert self._container is not None, "no container was begun"
        return self._root_of(self._container)

    def build(self, files: int, archive: Path) -> None:
        with archive.open("rb") as file:
            self._ask("POST", f"/images/create?fromSrc=-&repo=base&tag=f{files}", file)

    def begin(self, files: int, changes: int) -> None:
        self._base = f"base:f{files}"
        self._container = self._start()
        change(self.root, files, changes)

    def end(self) -> None:
        for container in (self._container, self._others):
            if container is not None:
                self._ask("DELETE", f"/containers/{container}?force=1")
        self._container = self._others = None

    def adopt(self, pid: int) -> None:
        """Into the container's cgroup, which the daemon freezes while it commits."""
        assert self._container is not None, "no container was begun"
        Path("/sys/fs/cgroup/docker", self._container, "cgroup.procs").write_text(str(pid))

    def other(self) -> Path:
        if self._others is None:
            self._others = self._start()
        return self._root_of(self._others) / LOAD_FILE

    def close(self) -> None:
        self.end()
        self._daemon.stop()

    def _start(self) -> str:
        asked = {"Image": self._base, "Cmd": _COMMAND, "HostConfig": {"NetworkMode": "none"}}
        container = str(json.loads(self._ask("POST", "/containers/create", asked))["Id"])
        self._ask("POST", f"/containers/{container}/start")
        return container

    def _root_of(self, container: str) -> Path:
        """As its processes see it."""
        found = json.loads(self._ask("GET", f"/containers/{container}/json"))
        return Path("/proc", str(found["State"]["Pid"]), "root")

    def _commit(self) -> None:
        self._image = json.loads(self._ask("POST", f"/commit?container={self._container}&repo=done&pause=1", {}))["Id"]

    def _remove_image(self) -> None:
        self._ask("DELETE", f"/images/{self._image}?force=1")

    def _serves(self) -> bool:
        try:
            self._ask("GET", "/_ping")
        except OSError:
            return False
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | IO[bytes] | None = None) -> str:
        """Ask the daemon; a dictionary goes as JSON, a file as it is."""
        connection = _Connection(self._socket)
        try:
            if isinstance(body, dict):
                connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            else:
                connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise RuntimeError(f"{self.name}: {method} {path}: {answer.status} {text}")
        return text
