"""A look at a whole store: what records, storage, kernel and mounts say, and where they disagree.

Looking changes nothing. The writer lock is held meanwhile, so that no change that is under way counts as one that was
left half done; what `thinpool.recovery` would end by itself is told as found. `recover` lets it, and looks again.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from thinpool import recovery
from thinpool.drivers.base import Activating, Checking
from thinpool.errors import PoolFailed, PoolFull
from thinpool.filesystem.mounts import mount_table
from thinpool.findings import Finding, Recovered
from thinpool.locks import WriterMark
from thinpool.session import Session

_DELETE = "delete it"


def check(session: Session) -> list[Finding]:
    """All that is not as it should be."""
    with session.locks.writer() as mark:
        return list(_findings(session, mark))


def recover(session: Session) -> Recovered:
    """Mend what can be mended, and tell what is left.

    It may be killed at any point, and is simply done again.
    """
    with session.locks.writer() as mark:
        before = list(_findings(session, mark))
        if any(finding.remedy for finding in before):
            with suppress(PoolFailed, PoolFull):  # found again below
                mark.begin()
                session.driver.up()
                session.mend()
                mark.end()
        left = list(_findings(session, mark))
    still = {finding.key for finding in left}
    return Recovered([finding for finding in before if finding.key not in still], left)


def _findings(session: Session, mark: WriterMark) -> Iterator[Finding]:
    if mark.left_at_work():
        yield Finding(
            "interrupted",
            str(session.root.path),
            "a process died in the middle of a change",
            "end what it left, and forget it",
            "what it left is found again by the records, which are changed last, and at once",
        )
    stored = None
    if isinstance(session.driver, Checking):
        yield from session.driver.findings()
        stored = session.driver.stored()
    if stored is not None:
        yield from _unrecorded(session, stored)
        yield from _missing(session, stored)
    yield from _unfinished(session)
    yield from _unused(session)


def _unrecorded(session: Session, stored: Collection[int]) -> Iterator[Finding]:
    """Storage that no record names: half made, or unknown."""
    half_made = frozenset(recovery.half_made(session.state, session.driver))
    for handle in sorted(stored):
        if handle in half_made:
            yield Finding(
                "half-made",
                f"storage {handle}",
                "a process died before any layer had it",
                _DELETE,
                "its number was reserved for a layer that was never recorded",
            )
        elif not session.driver.shares_handles and not session.state.is_named(handle):
            yield Finding(
                "unrecorded",
                f"storage {handle}",
                "no record names it",
                None,
                "it may be all that is left of a layer; nothing of it is touched, and its number is not used again",
            )


def _missing(session: Session, stored: Collection[int]) -> Iterator[Finding]:
    """Layers whose storage is not there."""
    for record in session.state.layers():
        if record.handle not in stored:
            yield Finding(
                "missing",
                f"layer {record.name}",
                f"its storage, number {record.handle}, is gone",
                None,
                f"what it held is lost; `thinpool rm {record.name}` forgets it, once it has no children",
            )


def _unfinished(session: Session) -> Iterator[Finding]:
    """Records that say that something is to be ended."""
    for record in session.state.unfinished():
        if record.phase == "filling" and _is_unlocked(session, record.handle):
            yield Finding(
                "abandoned-import",
                f"layer {record.name}",
                "the process that imported it died before it was whole",
                _DELETE,
                "nobody has its lock, and it was never a layer that could be used",
            )
        elif record.phase == "doomed" and _is_idle(session, record.handle):
            yield Finding(
                "half-removed",
                f"storage {record.handle}",
                "its layer was removed, or was looked at by a process that died",
                _DELETE,
                "it is on record that it is to be deleted, and nobody uses it",
            )


def _unused(session: Session) -> Iterator[Finding]:
    """What was made ready for a use that never came."""
    mounted = {entry.target for entry in mount_table()}
    for name in sorted(os.listdir(session.root.mounts)):
        number = name.partition("-")[0]
        if number.isdecimal() and session.root.mounts / name not in mounted and _is_idle(session, int(number)):
            yield Finding(
                "leftover-directory",
                str(session.root.mounts / name),
                "nothing is mounted on it",
                "remove it",
                "it is one of the store's own mount points, and empty",
            )
    for handle in sorted(session.driver.active()) if isinstance(session.driver, Activating) else ():
        if _is_ready(session, handle) and _is_idle(session, handle):
            yield Finding(
                "idle",
                f"storage {handle}",
                "it was made ready to be used, and nobody uses it",
                "let go of it",
                "nobody has its lock, and the kernel knows of no user",
            )


def _is_ready(session: Session, handle: int) -> bool:
    record = session.state.by_handle(handle)
    return record is None or record.phase == "ready"


def _is_idle(session: Session, handle: int) -> bool:
    """Whether nobody uses storage, as far as the driver can tell."""
    driver = session.driver
    return isinstance(driver, Checking) and _is_unlocked(session, handle) and not driver.has_users(handle)


def _is_unlocked(session: Session, handle: int) -> bool:
    """Whether nobody works on storage, or has it open inside the store."""
    lock = session.locks.try_layer(handle)
    if lock is None:
        return False
    os.close(lock)
    return not session.locks.is_used(handle)
