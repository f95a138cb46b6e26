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
from bench.latency.summary import made_on

THIN_LS = "thin_ls"
EXCLUSIVE, ALL = "exclusive space", "all of usage"
_COMMAND = ("/usr/sbin/thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV,EXCLUSIVE_BLOCKS")
_METADATA = "/dev/mapper/bench-thinpool-metadata"
_BLOCK_BYTES = 64 << 10
_FILE_BYTES = 100_000


def run(setting: Setting, layers: int, files: int, delays: list[int]) -> None:
    """A chain of layers on an image, and one on nothing: asked for by all in turn; all must say the same."""
    for image in (files, 0):
        if image:
            setting.build(image, everywhere=False)
        setting.disk.set_delay(0)
        with _chain(setting, layers, image) as bare:
            for delay in delays:
                setting.set_delay(delay)
                begun = time.monotonic()
                for number in range(setting.rounds):
                    if number == 0 or time.monotonic() < begun + 2 * setting.limit:
                        _once(setting, bare, Cell(layers, image, delay), number)
                print(f"usage: {delay} ms: {layers} {made_on(image)}", flush=True)
            setting.disk.set_delay(0)


def _once(setting: Setting, bare: Bare, cell: Cell, number: int) -> None:
    store = setting.ours.store
    ways: list[tuple[str, str, Callable[[], list[int]]]] = [
        ("thinpool", EXCLUSIVE, lambda: list(store.exclusive().values())),
        (THIN_LS, EXCLUSIVE, lambda: _by_tool(bare)),
        ("thinpool", ALL, lambda: [usage.exclusive for usage in store.usages().values()]),
    ]
    found: dict[tuple[str, str], Counter[int]] = {}
    for who, what, ask in ways if number % 2 == 0 else ways[::-1]:
        drop_caches()
        begun = time.perf_counter()
        sizes = ask()
        taken = time.perf_counter() - begun
        found[who, what] = Counter(sizes)
        setting.journal.add(Record("usage", who, what, cell, number, taken))
    known = found[THIN_LS, EXCLUSIVE]  # which lists the store's base, too
    if not all(sizes <= known for sizes in found.values()):
        raise AssertionError("thinpool and thin_ls do not agree about the layers' exclusive space")


@contextmanager
def _chain(setting: Setting, layers: int, image: int) -> Iterator[Bare]:
    """So many layers, each on the one before; the pool, for messages; and all of them removed at the end."""
    store, root = setting.ours.store, setting.ours.root
    names = [f"link-{number}" for number in range(layers)]
    parent = f"base-{image}" if image else None
    for number, name in enumerate(names):
        store.prepare("linking", parent)
        with store.mount("linking", root):
            (root / name).write_bytes(bytes([number % 251 + 1]) * _FILE_BYTES)
        store.commit(name, "linking")
        parent = name
    pool = store.info().pool
    assert pool is not None
    bare = Bare(pool.name, "", 0, "")
    try:
        yield bare
    finally:
        bare.close()
        for name in reversed(names):
            store.remove(name)


def _by_tool(bare: Bare) -> list[int]:
    """With the metadata pinned by bare ioctls, so that only thin_ls itself has to be started."""
    bare.message("reserve_metadata_snap")
    try:
        said = tool(*_COMMAND, _METADATA)
    finally:
        bare.message("release_metadata_snap")
    return [int(line.split()[1]) * _BLOCK_BYTES for line in said.splitlines()]
