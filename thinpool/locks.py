"""Locks that die with their holder: open-file-description locks on single bytes of one file.

Byte 0 is the store's writer lock; its content is a mark that says whether a writer is (or was, when it died) at work.
Byte `LAYER_BASE + handle` is the lock of one layer. Byte `USE_BASE + handle` is shared by all who have the layer open
where no mount table shows it: as a detached mount, for a look inside or on its way to the place where it is mounted.
Threads exclude each other as processes do, because every acquisition opens the file anew (fcntl_locking(2), "Open file
description locks"). Nothing has to be cleaned up after a crash: the kernel drops the locks of a dead process, and the
mark is only ever looked at under the writer lock.

Order, so that nobody waits in a circle: the writer lock before a layer's, and at most one layer's lock at a time.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinpool.crashpoints import point
from thinpool.errors import PoolFull, ThinPoolError

LAYER_BASE = 1 << 12
USE_BASE = 1 << 25  # beyond the locks of all layers: handles are below 1 << 24
_WRITER = 0
_FLOCK = struct.Struct("@hhqqi")  # struct flock of fcntl(2)
_AT_WORK = b"1"
_AT_REST = b"0"


class LockFile:
    """The lock file of a store.

    Args:
        path: the file, made if it is missing; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: mmap.mmap | None = None

    def close(self) -> None:
        """Let go of what is kept in memory; locks are held by those who hold them."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _keep(self) -> None:
        """Map the mark, so that it and the file stay in memory, whatever else a busy machine puts there.

        The mapping has a descriptor of its own open, which must not be one that holds a lock.
        """
        if self._kept is not None:
            return
        fd = self._open()
        try:
            if os.fstat(fd).st_size:
                self._kept = mmap.mmap(fd, len(_AT_REST), prot=mmap.PROT_READ)
                self._kept.read_byte()
        finally:
            os.close(fd)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def writer(self) -> Iterator["WriterMark"]:
        """Hold the writer lock; the value tells whether the last writer died at work, and marks this one."""
        fd = self._writer()
        try:
            self._keep()
            yield WriterMark(fd)
        finally:
            os.close(fd)

    def _writer(self) -> int:
        while True:
            fd = self._open()
            try:
                _lock(fd, _WRITER, wait=True)
                if os.fstat(fd).st_nlink:
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # removed meanwhile, by somebody who failed to make a store: who holds it excludes nobody

    @contextmanager
    def layer(self, handle: int) -> Iterator[None]:
        """Hold one layer's lock."""
        fd = self._open()
        try:
            _lock(fd, LAYER_BASE + handle, wait=True)
            yield
        finally:
            os.close(fd)

    def try_layer(self, handle: int, held: int | None = None) -> int | None:
        """Take one layer's lock if it is free: a file descriptor that holds it until it is closed, or None.

        Args:
            handle: the layer's.
            held: a descriptor that holds locks of other layers, to hold this one too.
        """
        fd = self._open() if held is None else held
        taken = False
        try:
            taken = _lock(fd, LAYER_BASE + handle, wait=False)
        finally:
            if not taken and held is None:
                os.close(fd)
        return fd if taken else None

    @contextmanager
    def use(self, handle: int) -> Iterator[None]:
        """Say, for as long as the block lasts, that a layer is in use; taken under the layer's lock."""
        fd = self._open()
        try:
            _lock(fd, USE_BASE + handle, wait=True, shared=True)
            yield
        finally:
            os.close(fd)

    def is_used(self, handle: int) -> bool:
        """Whether somebody, this process included, is inside `use`."""
        fd = self._open()
        try:
            request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, USE_BASE + handle, 1, 0)
            found: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))[0]
            return found != fcntl.F_UNLCK
        finally:
            os.close(fd)


class WriterMark:
    """The mark of the writer lock's holder, in the page cache: it outlives the process, not the machine.

    After a power cut the kernel's objects are gone too, and the store looks after what is left when it activates its
    storage; so the mark is never synced.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.begun = False

    def left_at_work(self) -> bool:
        """Whether a writer before this one ended without saying that it was done."""
        return os.pread(self._fd, 1, 0) == _AT_WORK

    def begin(self) -> None:
        """Say that storage and records may disagree from here on."""
        self.begun = True
        point("mark-begin")
        self._write(_AT_WORK)
        point("mark-begun")

    def end(self) -> None:
        """Say that storage and records agree."""
        point("mark-end")
        self._write(_AT_REST)
        point("mark-ended")

    def _write(self, mark: bytes) -> None:
        try:
            os.pwrite(self._fd, mark, 0)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # a copy-on-write file system needs room even for this
                raise PoolFull("no space left for the store's own files", hint="free space below its root") from error
            raise


def _lock(fd: int, byte: int, *, wait: bool, shared: bool = False) -> bool:
    request = _FLOCK.pack(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if not wait and error.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise ThinPoolError(f"cannot lock the store: {os.strerror(error.errno or 0)}") from error
    return True
