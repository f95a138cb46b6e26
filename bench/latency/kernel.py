"""What the kernel itself needs to take a live layer's state: the floor under every contender's checkpoint."""

import os
from pathlib import Path

from bench.bare import Bare
from bench.latency.contender import tool
from thinpool import Store
from thinpool.filesystem.syscalls import syncfs

BARE = "bare ioctls"
_FIRST_ID = 9_000_000


class BareCheckpoints:
    """Snapshots of a live layer of a store by suspend, create_snap and resume, the file system synced before.

    Args:
        store: the store.
        root: where the layer is mounted.
    """

    def __init__(self, store: Store, root: Path) -> None:
        number = os.stat(root).st_dev
        self._device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/name").read_text().strip()
        table = tool("dmsetup", "table", self._device).split()
        pool = store.info().pool
        assert pool is not None
        self._origin = int(table[4])
        self._bare = Bare(pool.name, table[3], int(table[1]), "")
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._made: list[int] = []

    def take(self) -> None:
        """Snapshot the layer."""
        number = _FIRST_ID + len(self._made)
        syncfs(self._root)
        self._bare.snapshot(self._device, number, self._origin)
        self._made.append(number)

    def forget(self) -> None:
        """Delete the snapshots."""
        while self._made:
            self._bare.message(f"delete {self._made.pop()}")

    def close(self) -> None:
        """Delete the snapshots, and let go of the layer."""
        self.forget()
        self._bare.close()
        os.close(self._root)
