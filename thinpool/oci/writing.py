"""Writing an OCI image layout: blobs under their digests, then the documents, and last the index that names them.

Every file is written beside the layout's own under another name, synced, and renamed; the index last. So a process
that dies half-way leaves a layout that is what it was, with blobs that nothing refers to and at most one unfinished
file `.thinpool-blob-*`, which the next writer removes. A writer that fails removes all that it made.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import IO, Self

from thinpool.crashpoints import point
from thinpool.errors import ConfigError
from thinpool.layer.archive import ArchiveResult
from thinpool.layer.text import shown
from thinpool.oci import media
from thinpool.oci.digests import check_digest, digest_of
from thinpool.oci.documents import format_document, parse_object
from thinpool.oci.layout import INDEX, MARKER, VERSION_KEY, read_file
from thinpool.oci.places import DirectoryPlace
from thinpool.oci.values import Descriptor, check_shape

_UNFINISHED = re.compile(r"\.thinpool-blob-[0-9a-f]{16}", re.ASCII)
_OWN_NAMES = frozenset({"blobs", MARKER, INDEX})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_TAG = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG_MOST = 255


def check_tag(tag: str) -> str:
    """Give back a tag of the form that an index may have (annotations.md, `org.opencontainers.image.ref.name`).

    Raises:
        ConfigError: it has another.
    """
    if len(tag) > _TAG_MOST or _TAG.fullmatch(tag) is None:
        raise ConfigError(
            f"tag {shown(tag)}: accepted are at most {_TAG_MOST} letters and digits, with one of - . _ : @ + / between"
        )
    return tag


class LayoutWriter:
    """Adds one image to a layout, which it makes where there is none; a context manager.

    Writers of one directory wait for each other. Leaving the `with` block before `finish` removes what was made.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Take the directory, or make it.

        Raises:
            ConfigError: it holds something else than a layout.
            ArchiveError: the index that is there is malformed.
            OSError: it cannot be made or read.
        """
        self._path = os.path.realpath(directory)
        self._undo = ExitStack()
        self._close = ExitStack()
        with ExitStack() as failing:
            failing.callback(self._end)
            self._root = self._open_root()
            self._index = self._read_index()
            self._blobs = self._open_directory("sha256", self._open_directory("blobs", self._root))
            failing.pop_all()

    def add_layer(
        self, media_type: str, write: Callable[[IO[bytes]], ArchiveResult]
    ) -> tuple[Descriptor, ArchiveResult]:
        """Add a blob that is written by a function, and known by its digest only when it is written."""
        with self._unfinished() as (name, file):
            result = write(file)
            self._place(name, file, self._blobs, _blob_name(result.digest))
        return Descriptor(media_type, result.digest, result.size), result

    def add_document(self, media_type: str, members: Mapping[str, object]) -> Descriptor:
        """Add a document as a blob."""
        data = format_document(members)
        descriptor = Descriptor(media_type, digest_of(data), len(data))
        self._write(data, self._blobs, _blob_name(descriptor.digest))
        return descriptor

    def finish(self, manifest: Descriptor, tag: str) -> None:
        """Name the image in the index, in place of what had that tag; durable when this returns."""
        os.fsync(self._blobs)
        if MARKER not in os.listdir(self._root):
            self._write(format_document({VERSION_KEY: "1.0.0"}), self._root, MARKER)
        entries = self._index.get("manifests") or []
        assert isinstance(entries, list)
        kept = [entry for entry in entries if (entry.get("annotations") or {}).get(media.REF_NAME) != tag]
        named = Descriptor(manifest.media_type, manifest.digest, manifest.size, {media.REF_NAME: tag})
        os.fsync(self._root)
        with self._unfinished() as (unfinished, file):
            file.write(format_document({**self._index, "manifests": [*kept, named.members()]}))
            _sync(file)
            point("index-synced")
            made = self._undo.pop_all()  # also where a signal comes: what the index may refer to has to stay
            try:
                os.rename(unfinished, INDEX, src_dir_fd=self._root, dst_dir_fd=self._root)
            except OSError:
                made.close()
                raise
            point("index-placed")
        os.fsync(self._root)
        point("index-settled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self._undo.close()
        finally:
            self._close.close()

    # -- the directory

    def _open_root(self) -> int:
        """Make the directory where it is missing, lock it, and look at what is in it."""
        while True:
            made = False
            with suppress(FileExistsError):
                os.mkdir(self._path)
                made = True
            fd = os.open(self._path, _DIRECTORY)
            self._close.callback(os.close, fd)
            if made:
                self._undo.callback(_remove_directory, self._path)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                break  # else somebody made it, failed, and removed it while we waited
        names = set(os.listdir(fd))
        unfinished = {name for name in names if _UNFINISHED.fullmatch(name)}
        if MARKER not in names and (strange := sorted(names - unfinished - _OWN_NAMES)):
            listed = ", ".join(map(shown, strange[:3])) + (", ..." if len(strange) > 3 else "")
            raise ConfigError(
                f"{self._path} is neither empty nor an OCI image layout: it holds {listed}",
                hint="name an empty or a new directory",
            )
        for name in unfinished:
            os.unlink(name, dir_fd=fd)
        return fd

    def _read_index(self) -> Mapping[str, object]:
        with DirectoryPlace(self._path) as place:
            data = read_file(place, INDEX, INDEX)
        if data is None:
            return {"schemaVersion": 2, "mediaType": media.INDEX}
        index = parse_object(data, f"{self._path}: {INDEX}")
        check_shape(index, "index", media.INDEX)
        for entry in index.nodes("manifests"):
            entry.node("annotations")
        return index.values

    def _open_directory(self, name: str, parent: int) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            self._undo.callback(_remove_directory, name, parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        self._close.callback(os.close, fd)
        return fd

    # -- files

    def _write(self, data: bytes, directory: int, name: str) -> None:
        with self._unfinished() as (unfinished, file):
            file.write(data)
            self._place(unfinished, file, directory, name)

    @contextmanager
    def _unfinished(self) -> Iterator[tuple[str, IO[bytes]]]:
        """A new file under a name of its own, which is gone at the end if it was not placed."""
        name = f".thinpool-blob-{secrets.token_hex(8)}"
        with open(os.open(name, _NEW, 0o666, dir_fd=self._root), "wb") as file, ExitStack() as stack:
            stack.callback(_remove_file, name, self._root)
            yield name, file

    def _place(self, unfinished: str, file: IO[bytes], directory: int, name: str) -> None:
        """Give a file its name, once its content is on disk."""
        _sync(file)
        point("blob-synced")
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            self._undo.callback(_remove_file, name, directory)
        os.rename(unfinished, name, src_dir_fd=self._root, dst_dir_fd=directory)
        point("blob-placed")


def _blob_name(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_file(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _remove_directory(path: str, parent: int | None = None) -> None:
    with suppress(OSError):  # somebody put something into it
        os.rmdir(path, dir_fd=parent)
