"""A note in a file, locked by whoever wrote it for as long as they live."""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import attrs

from thinpool.errors import PoolFailed, ThinPoolError

_FLOCK = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)  # struct flock of fcntl(2)
_NOTE_MAX = 64
_POLL_SECONDS = 0.01


class NoteTaken(PoolFailed):
    """Somebody else of us has the note."""


@attrs.frozen
class Note:
    """A note that is locked by us.

    Attributes:
        path: the file.
        fd: the file, open and locked.
    """

    path: Path
    fd: int

    @classmethod
    @contextmanager
    def locked(cls, path: Path, patience: float) -> Iterator[Self]:
        """Lock the note for the block, making the file where it is missing; what it says stays as it is.

        Args:
            path: the file.
            patience: seconds to wait for others that have it.

        Raises:
            NoteTaken: they have it still.
        """
        limit = time.monotonic() + patience
        while (fd := _try(path)) is None:
            if time.monotonic() >= limit:
                raise NoteTaken(
                    f"the metadata snapshot has been in use by another reader of this store for {patience:g} s",
                    hint="try again",
                )
            time.sleep(_POLL_SECONDS)
        try:
            yield cls(path, fd)
        finally:
            os.close(fd)

    def read(self) -> str:
        """What it says."""
        return os.pread(self.fd, _NOTE_MAX, 0).decode("ascii", "replace").strip()

    def write(self, text: str) -> None:
        """Say something else; in the page cache, as after a power cut the pool is activated anew."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{text}\n".encode("ascii"), 0)

    def remove(self) -> None:
        """Remove the file while it is locked: who waits for it makes another."""
        self.path.unlink(missing_ok=True)


def _try(path: Path) -> int | None:
    """The file, open and locked; None where others have it, or had it and removed it just now."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK)
        if os.fstat(fd).st_nlink:
            return fd
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EACCES}:
            os.close(fd)
            raise ThinPoolError(f"cannot lock {path}: {error.strerror}") from error
    os.close(fd)
    return None
