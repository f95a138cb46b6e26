"""A thin device held still for the moment of its copy: for as short as the kernel allows, and never for good.

`create_snap` wants its origin suspended, and to suspend a device freezes the file system on it, so all who write to it
wait. Between suspend and resume there is the one message, and nothing else: names are looked up, numbers reserved and
objects made before, errors explained and statuses read after, and the garbage collector rests.

What can go wrong in between, and who ends it:

- an exception, also one out of a signal handler: `thinpool.dm.device.suspended` resumes;
- this process is killed: the guard resumes at once (`thinpool.guard`);
- it is stopped, or the message takes longer than `HOLD_SECONDS`, as on a disk that hardly answers: the guard resumes
  then. The copy is not to be trusted, since writes may have come between: it is deleted, and the call fails. (While the
  pool writes its metadata, all I/O of its thin devices waits, that of the thaw included: so this comes to an end with
  the message, and not before.)
- this process and the guard are killed: whoever opens the store next, or takes its writer lock, resumes the device
  (`resume`). A note says which device that is, so that what somebody else suspended stays suspended.

Nobody can end a suspend that the kernel has not finished: writers wait while the file system writes out what is dirty,
which is why it is synced before. The hold ends as said once that is done.
"""

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.dm import Control, DeviceInfo
from thinpool.dm.device import suspended
from thinpool.errors import DeviceMapperError, LayerInUse, PoolFailed, PoolFull
from thinpool.guard import Guard, Order

HOLD_SECONDS = 10.0
"""How long a device is held at most, from before it is suspended; a copy takes some milliseconds."""

_NOTE_BYTES = 4096  # a whole page, so that nothing is read for it, and the wait for the disk is saved


class Holder:
    """Holds the devices of one store, one at a time: the caller has the store's writer lock.

    Args:
        control: the device-mapper control device.
        note: the file that says which thin device is being held.
        seconds: how long one is held at most.
    """

    def __init__(self, control: Control, note: Path, *, seconds: float = HOLD_SECONDS) -> None:
        self._control = control
        self._note = note
        self._seconds = seconds
        self._fd = -1
        self.guard = Guard(control.fileno())

    def close(self) -> None:
        """End the guard."""
        self.guard.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def held(self, thin_id: int, name: str) -> Iterator[None]:
        """Hold a device that is not suspended, and the file system on it, for the block.

        Args:
            thin_id: its number.
            name: its device-mapper name.

        Raises:
            LayerInUse: somebody else holds its file system frozen, and it stays so.
            PoolFailed: its file system cannot be frozen; or somebody resumed the device before the block had ended, so
                that what was copied is not to be trusted.
        """
        self._write(thin_id)
        point("hold-noted")
        try:
            with self.guard.over(Order(self._seconds, self._control.resume_call(name))):
                try:
                    with _uncollected(), suspended(self._control, name) as suspension:
                        point("hold-begun")
                        yield
                        point("hold-copied")
                except DeviceMapperError as error:
                    if (meaning := _meaning(name, error)) is not None:
                        raise meaning from error
                    raise
            point("hold-ended")
        finally:
            self._write(0)
        point("hold-forgotten")
        if not suspension.lasted:
            raise PoolFailed(
                f"device {name} was resumed before its copy was made: by somebody else, or as the pool took longer than"
                f" {self._seconds:g} s",
                hint="try again when its disks are less busy",
            )

    def left(self) -> int:
        """The thin device that a process that died was holding; 0 where there is none."""
        try:
            return int(self._note.read_bytes() or b"0")
        except (OSError, ValueError):
            return 0

    def resume(self, info: DeviceInfo | None) -> None:
        """Resume the device of `left`, if it is still suspended, and forget it.

        Args:
            info: its state; None where it is not active.
        """
        if info is not None and info.suspended and info.active:
            self._control.resume(info.name)
            point("hold-resumed")
        with suppress(PoolFull, FileNotFoundError):
            self._write(0)

    def _write(self, thin_id: int) -> None:
        """Note what is held, in place; in the page cache, as no device outlives the machine."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, f"{thin_id}".encode().ljust(_NOTE_BYTES), 0)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise PoolFull("no space left for the store's own files", hint="free space below its root") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let the garbage collector rest: in a large process it can take longer than the whole hold."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _meaning(name: str, error: DeviceMapperError) -> LayerInUse | PoolFailed | None:
    """Why a device cannot be suspended; None for other errors, and where there is no such device any more."""
    if error.ioctl != "DM_DEV_SUSPEND" or error.errno == errno.ENXIO:
        return None
    if error.errno == errno.EBUSY:
        return LayerInUse(
            f"the file system on device {name} is held frozen by somebody else",
            hint="fsfreeze --unfreeze DIR ends that, if nobody relies on it",
        )
    return PoolFailed(
        f"the file system on device {name} cannot be frozen: {os.strerror(error.errno or 0)}",
        hint="an error ended it, or its device fails: dmesg says more; what was written to it may be lost",
    )
