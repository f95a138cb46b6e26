"""What is wrong with a pool and its thin devices, found by looking alone."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from thinpool import loop
from thinpool.dm import Control, DeviceInfo
from thinpool.errors import LoopError, PoolFailed, ThinPoolError
from thinpool.findings import Finding
from thinpool.metadata import read_superblock
from thinpool.metadata.note import Note, NoteTaken
from thinpool.pool import ThinPool
from thinpool.pool.devices import PoolTable, find_device
from thinpool.pool.health import trouble
from thinpool.pool.options import Way

_OURS = "it is this store's own, and nobody else resumes it"


def findings(pool: ThinPool, control: Control, directory: Path) -> Iterator[Finding]:
    """All that is wrong.

    Args:
        pool: the pool.
        control: the device-mapper control device.
        directory: where its files are.
    """
    info = find_device(control, pool.name)
    if info is None:
        yield from _at_rest(pool)
    elif pool.is_foreign or info.uuid == pool.uuid:
        yield from _active(pool, info, directory)
    else:
        yield _taken(pool.name, info)
    yield from _devices(pool, control)


def _taken(name: str, info: DeviceInfo) -> Finding:
    return Finding(
        "name-taken",
        f"device {name}",
        f"somebody else made it: its uuid is {info.uuid!r}",
        None,
        "what is not ours is left alone; the store cannot use the name until it is free",
    )


def _at_rest(pool: ThinPool) -> Iterator[Finding]:
    """Whether an inactive pool could be activated."""
    try:
        with pool.open_metadata():
            pass
    except ThinPoolError as error:
        yield Finding(
            "unusable-pool", f"pool {pool.name}", error.message, None, error.hint or "nothing is known to help"
        )


def _active(pool: ThinPool, info: DeviceInfo, directory: Path) -> Iterator[Finding]:
    subject = f"pool {pool.name}"
    if not info.active:
        yield Finding(
            "half-made-device", subject, "it has no table", "remove it and make it anew", "nothing can be on top of it"
        )
        return
    if info.suspended:
        if pool.is_foreign:
            yield Finding(
                "suspended", subject, "somebody suspended it", None, f"`dmsetup resume {pool.name}` ends that"
            )
        else:
            yield Finding("suspended", subject, "a process died while it changed its table", "resume it", _OURS)
    table = pool.table()
    status = pool.kernel_status()
    problem = None if status is None else trouble(pool.name, status)
    if problem is not None:
        yield Finding("failed-pool", subject, problem.message, None, problem.hint or "dmesg tells more")
    if not pool.is_foreign:
        yield from _below(pool, table, directory)
        yield from _identity(pool, table)
    yield from _pinned(pool, table)


def _below(pool: ThinPool, table: PoolTable, directory: Path) -> Iterator[Finding]:
    """Whether the pool lies on what it was made on."""
    for name, node in (("data", table.data), ("metadata", table.metadata)):
        if pool.options.way is Way.FILES:
            yield from _file(pool.name, directory / name, node)
            continue
        named = pool.options.datadev if name == "data" else pool.options.metadatadev
        with suppress(OSError):
            if named and os.stat(named).st_rdev != os.stat(node).st_rdev:
                yield Finding(
                    "other-table",
                    f"pool {pool.name}",
                    f"its {name} are on {node}, and {named} was recorded",
                    None,
                    "a device may have changed its name; `thinpool down` and `up` use the recorded one",
                )


def _file(name: str, file: Path, node: Path) -> Iterator[Finding]:
    """Whether a loop device of the pool shows the pool's own file."""
    try:
        found = loop.backing(node)
    except LoopError as error:
        yield Finding(
            "other-table",
            f"pool {name}",
            f"it lies on {node} instead of {file}: {error.message}",
            None,
            "`dmsetup table` shows what it lies on",
        )
        return
    with suppress(OSError):
        status = file.stat()
        if (status.st_dev, status.st_ino) == (found.device, found.inode):
            return
    where = f"{found.path}{' (deleted)' if found.deleted else ''}"
    yield Finding(
        "other-file",
        str(file),
        f"it was deleted, moved or replaced, and the pool still lies on what was there: {where}, as {node}",
        None,
        f"until the pool is deactivated all of it is there: copy {node} to a file before `thinpool down`"
        if found.deleted
        else f"move {where} back before `thinpool down`",
    )


def _identity(pool: ThinPool, table: PoolTable) -> Iterator[Finding]:
    """Whether the metadata are the recorded ones."""
    if pool.identity is None:
        return
    try:
        found = read_superblock(table.metadata)
        pool.identity.check(found.uuid.hex(), found.transaction_id, str(table.metadata))
    except PoolFailed as error:
        yield Finding(
            "other-metadata", f"pool {pool.name}", error.message, None, error.hint or "thin_check tells what is wrong"
        )


def _pinned(pool: ThinPool, table: PoolTable) -> Iterator[Finding]:
    """Whether a metadata snapshot was left."""
    try:
        if not read_superblock(table.metadata).held_root:
            return
    except PoolFailed:
        return
    subject = f"metadata snapshot of pool {pool.name}"
    if not pool.note.exists():
        yield Finding(
            "pinned",
            subject,
            "somebody reserved it, and not this store",
            None,
            f"if nobody reads it, `dmsetup message {pool.name} 0 release_metadata_snap` gives it back",
        )
        return
    with suppress(NoteTaken), Note.locked(pool.note, 0):
        yield Finding(
            "pinned",
            subject,
            "a process died while it read it, and nothing that is deleted gives space back",
            "release it",
            "a note says that it is ours, and nobody has the note's lock",
        )


def _devices(pool: ThinPool, control: Control) -> Iterator[Finding]:
    """What is wrong with thin devices that are active."""
    thins = pool.thins
    held = thins.holder.left()
    for number in sorted(thins.named()):
        name = thins.name(number)
        info = find_device(control, name)
        if info is None:
            continue
        if info.uuid != thins.uuid(number):
            yield _taken(name, info)
        elif not info.active:
            yield Finding(
                "half-made-device", f"device {name}", "it has no table", "remove it", "nobody can use it as it is"
            )
        elif info.suspended and number == held:
            yield Finding("suspended", f"device {name}", "a process died while it copied it", "resume it", _OURS)
        elif info.suspended:
            yield Finding(
                "suspended", f"device {name}", "somebody suspended it", None, f"`dmsetup resume {name}` ends that"
            )
