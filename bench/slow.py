"""A pool on devices that are slow the same way everywhere: dm-delay under its data and its metadata."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from thinpool import Store

_DATA_BYTES = 16 << 30
_METADATA_BYTES = 256 << 20


@attrs.define
class SlowPool:
    """A store on two such devices.

    Attributes:
        store: the store.
        sizes: sectors of each device below, by the name of the one on it.
    """

    store: Store
    loops: dict[str, tuple[str, int]]

    def delay(self, milliseconds: int) -> None:
        """Hold each read and each write of data and metadata back for so long."""
        for name, (loop, sectors) in self.loops.items():
            _run("dmsetup", "load", name, "--table", _table(loop, sectors, milliseconds))
            _run("dmsetup", "suspend", name)
            _run("dmsetup", "resume", name)


@contextmanager
def slow_pool(folder: Path, basesize: str) -> Iterator[SlowPool]:
    """A store of its own, without a delay at first; brought down at the end."""
    folder.mkdir()
    with ExitStack() as undo:
        loops: dict[str, tuple[str, int]] = {}
        for part, size in (("data", _DATA_BYTES), ("metadata", _METADATA_BYTES)):
            image = folder / part
            with image.open("wb") as file:
                file.truncate(size)
            undo.callback(image.unlink)
            loop = _run("losetup", "--find", "--show", str(image))
            undo.callback(_run, "losetup", "--detach", loop)
            name = f"bench-slow-{part}"
            _run("dmsetup", "create", name, "--table", _table(loop, size // 512, 0))
            undo.callback(_run, "dmsetup", "remove", name)
            loops[name] = (loop, size // 512)
        options = {
            "dm.basesize": basesize,
            "dm.datadev": "/dev/mapper/bench-slow-data",
            "dm.metadatadev": "/dev/mapper/bench-slow-metadata",
        }
        store = undo.enter_context(Store.open(folder / "store", "devicemapper", options))
        undo.callback(store.down)
        pool = SlowPool(store, loops)
        undo.callback(pool.delay, 0)
        yield pool


def _table(loop: str, sectors: int, milliseconds: int) -> str:
    return f"0 {sectors} delay {loop} 0 {milliseconds}" if milliseconds else f"0 {sectors} linear {loop} 0"


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
