"""Opening an image wherever it is: a directory, a file, or a stream."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from thinpool.errors import ArchiveError, PoolFull, UnsafeArchive
from thinpool.layer.compression import Source
from thinpool.layer.limits import Limits
from thinpool.layer.removal import is_full
from thinpool.oci.image import Image
from thinpool.oci.layout import is_layout, read_layout
from thinpool.oci.places import ArchivePlace, DirectoryPlace, Place
from thinpool.oci.platform import Platform
from thinpool.oci.saved import is_saved, read_saved
from thinpool.units import human_size

_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")


@contextmanager
def open_image(
    source: str | os.PathLike[str] | IO[bytes], tag: str | None, platform: Platform, limits: Limits, spool: Path
) -> Iterator[Image]:
    """Open one image for reading.

    Args:
        source: the directory of an OCI image layout, or a tar archive of one, or what `docker save` writes: a path or
            a stream. A stream, and an archive that is compressed, is first written to a file without a name.
        tag: which image; may be None where there is but one.
        platform: of an image for several platforms, which.
        limits: what an archive may ask for.
        spool: the directory for that file.

    Raises:
        ArchiveError: there is no such image, or it is malformed.
        UnsafeArchive: beyond a limit.
        PoolFull: no room for the file.
    """
    with ExitStack() as stack:
        place: Place
        if isinstance(source, str | os.PathLike):
            if os.path.isdir(source):
                place = stack.enter_context(DirectoryPlace(source))
            else:
                place = _archive(stack, stack.enter_context(open(source, "rb")), limits, spool)
        else:
            place = _archive(stack, source, limits, spool)
        yield _read(place, tag, platform)


def _read(place: Place, tag: str | None, platform: Platform) -> Image:
    if is_layout(place):
        return read_layout(place, tag, platform)
    if is_saved(place):
        return read_saved(place, tag)
    raise ArchiveError(
        "no image: there is neither an oci-layout nor a manifest.json",
        hint="a tar of one layer is imported without --oci",
    )


def _archive(stack: ExitStack, file: IO[bytes], limits: Limits, spool: Path) -> ArchivePlace:
    fd = _plain_file(file)
    if fd is None:
        fd = stack.enter_context(_spooled(file, limits, spool)).fileno()
    return ArchivePlace(fd)


def _plain_file(file: IO[bytes]) -> int | None:
    """The descriptor of a file that can be read anywhere and as it is; None for others."""
    try:
        fd = file.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode) and file.tell() == 0 and not os.pread(fd, 6, 0).startswith(_COMPRESSED):
            return fd
    except OSError:
        return None
    return None


@contextmanager
def _spooled(file: IO[bytes], limits: Limits, spool: Path) -> Iterator[IO[bytes]]:
    """The archive, uncompressed, in a file without a name."""
    size = 0
    with tempfile.TemporaryFile(dir=spool) as copy:
        try:
            for piece in Source(file, limits).chunks():
                size += len(piece)
                if size > limits.size:
                    raise UnsafeArchive(f"an archive of more than {human_size(limits.size)}: beyond the limit")
                copy.write(piece)
            copy.flush()
        except OSError as error:
            if not is_full(error):
                raise
            raise PoolFull(f"no room below {spool} for the archive of the image", hint="free space there") from error
        yield copy
