"""A store brought down: layers unmounted, devices let go, and waited for those who hold something.

Nothing of this is recorded, as it changes nothing that outlives the machine's next boot: a process that dies half-way
leaves a store that is half down, and `down` or `up` take it from there.
"""

import logging
import os
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from thinpool import mounting
from thinpool.drivers.base import Deferring
from thinpool.errors import LayerInUse
from thinpool.filesystem.holders import Holder, Why, all_in_use
from thinpool.filesystem.mounts import mount_table
from thinpool.session import Session

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0


def stop(session: Session, *, lazy: bool, force: bool, timeout: float) -> None:
    """Bring a store down; see `thinpool.Store.down`."""
    limit = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    while True:
        busy = _stop_once(session)
        left = limit - time.monotonic()
        if not busy or left <= 0:
            break
        _wait([holder for error in busy for holder in error.holders], min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    if busy and (lazy or force):
        busy = _stop_for_later(session, force=force)
    if busy:
        raise all_in_use(busy)


def _stop_once(session: Session) -> list[LayerInUse]:
    """Take down what nobody uses: what somebody does, each named."""
    with session.locks.writer():  # and no mending first: a pool that has failed must come down too
        busy = mounting.unmount_all(session)
        try:
            session.driver.down()
        except LayerInUse as error:
            if not busy or _says_more(error, busy):
                busy.append(error)
        _drop_directories(session)
    session.lie_down()
    return busy


def _says_more(error: LayerInUse, busy: Sequence[LayerInUse]) -> bool:
    """Whether devices are held by somebody who was not named already, as at work in what is mounted here."""
    named = {holder for other in busy for holder in other.holders}
    here = {str(entry.target) for entry in mount_table()}
    return any(
        holder not in named and not (holder.why is Why.MOUNT and holder.pid is None and holder.what in here)
        for holder in error.holders
    )


def _stop_for_later(session: Session, *, force: bool) -> list[LayerInUse]:
    """Detach what is in use, and let the rest go with it: what stands in the way even of that."""
    with session.locks.writer():
        busy = mounting.unmount_all(session, lazy=True)
        if force:
            mounting.detach_elsewhere(session)
        try:
            session.driver.down()
        except LayerInUse as error:
            if not isinstance(session.driver, Deferring):
                _LOG.warning("what is in use stays until it is let go: %s", error.message)
            else:
                with_rest = _down_later(session.driver)
                busy += with_rest
                if not with_rest:
                    _LOG.warning("what is in use goes when it is let go: %s", error.message)
        _drop_directories(session)
    return busy


def _down_later(driver: Deferring) -> list[LayerInUse]:
    try:
        driver.down_later()
    except LayerInUse as error:
        return [error]
    return []


def _drop_directories(session: Session) -> None:
    """Remove the private mount points that nothing is mounted on; the kernel takes copies in other namespaces along."""
    for name in os.listdir(session.root.mounts):
        with suppress(OSError):  # it is in use
            os.rmdir(session.root.mounts / name)


def _wait(holders: Sequence[Holder], seconds: float) -> None:
    """Wait until one of them ends, or mounts change, or the time is over.

    Nothing tells when somebody closes a file or leaves a directory, so that is asked for again after the time.
    """
    with ExitStack() as held:
        poll = select.poll()
        table = held.enter_context(open("/proc/self/mountinfo", "rb"))
        poll.register(table, select.POLLPRI)
        for pid in {holder.pid for holder in holders if holder.pid not in {None, os.getpid()}}:
            with suppress(OSError):
                fd = os.pidfd_open(pid or 0)
                held.callback(os.close, fd)
                poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
