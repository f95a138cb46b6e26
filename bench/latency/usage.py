"""The part `usage`: the exclusive space of many layers, by the library and by thin_ls(8)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.bare import Bare
from bench.latency.contender import tool
from bench.latency.disk import drop_caches
from bench.latency.records import Cell, Record
from bench.latency.setting import Setting

THIN_LS = "thin_ls"
_COMMAND = ("/usr/sbin/thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV,EXCLUSIVE_BLOCKS")
_METADATA = "/dev/mapper/bench-thinpool-metadata"
_BLOCK_BYTES = 64 << 10
_FILE_BYTES = 100_000


def run(setting: Setting, layers: int, delays: list[int]) -> None:
    """A chain of layers, a file written in each, asked for by both in turn; both must say the same."""
    setting.disk.set_delay(0)
    with _chain(setting, layers) as bare:
        for delay in delays:
            setting.set_delay(delay)
            begun = time.monotonic()
            for number in range(setting.rounds):
                if number == 0 or time.monotonic() < begun + 2 * setting.limit:
                    _once(setting, bare, Cell(layers, 1, delay), number)
            print(f"usage: {delay} ms: {layers} layers", flush=True)
        setting.disk.set_delay(0)


def _once(setting: Setting, bare: Bare, cell: Cell, number: int) -> None:
    ways: dict[str, Callable[[], list[int]]] = {
        "thinpool": lambda: _by_library(setting),
        THIN_LS: lambda: _by_tool(bare),
    }
    found: dict[str, Counter[int]] = {}
    for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
        drop_caches()
        begun = time.perf_counter()
        sizes = ways[name]()
        taken = time.perf_counter() - begun
        found[name] = Counter(sizes)
        setting.journal.add(Record("usage", name, "exclusive space of all", cell, number, taken))
    if not found["thinpool"] <= found[THIN_LS]:  # which lists the store's base, too
        raise AssertionError("thinpool and thin_ls do not agree about the layers' exclusive space")


@contextmanager
def _chain(setting: Setting, layers: int) -> Iterator[Bare]:
    """So many layers, each on the one before; the pool, for messages; and all of them removed at the end."""
    store, root = setting.ours.store, setting.ours.root
    names = [f"link-{number}" for number in range(layers)]
    for number, name in enumerate(names):
        store.prepare("linking", names[number - 1] if number else None)
        with store.mount("linking", root):
            (root / name).write_bytes(bytes([number % 251 + 1]) * _FILE_BYTES)
        store.commit(name, "linking")
    pool = store.info().pool
    assert pool is not None
    bare = Bare(pool.name, "", 0, "")
    try:
        yield bare
    finally:
        bare.close()
        for name in reversed(names):
            store.remove(name)


def _by_library(setting: Setting) -> list[int]:
    return [usage.exclusive for usage in setting.ours.store.usages().values()]


def _by_tool(bare: Bare) -> list[int]:
    """With the metadata pinned by bare ioctls, so that only thin_ls itself has to be started."""
    bare.message("reserve_metadata_snap")
    try:
        said = tool(*_COMMAND, _METADATA)
    finally:
        bare.message("release_metadata_snap")
    return [int(line.split()[1]) * _BLOCK_BYTES for line in said.splitlines()]
