"""Import: a layer archive, which may have been made to do harm, written below a directory.

Nothing outside that directory is ever opened for writing: parents are found by `thinpool.layer.target`, and an entry's
own name is made with O_EXCL or its like and never followed. What the names mean is the rule of `thinpool.layer.paths`;
whiteouts are those of `thinpool.layer.whiteouts` and apply to what was there before the import, whatever the order in
the archive. Later entries replace earlier ones of the same name, with all below them unless both are directories.
"""

import os
import stat
from collections.abc import Callable
from typing import IO

import attrs

from thinpool.errors import ArchiveError, PoolFull, UnsafeArchive
from thinpool.layer import whiteouts, xattrs
from thinpool.layer.compression import Source
from thinpool.layer.limits import Limits
from thinpool.layer.notes import Writer
from thinpool.layer.paths import clean
from thinpool.layer.reader import Member, TarReader
from thinpool.layer.removal import is_full
from thinpool.layer.tarformat import EntryType
from thinpool.layer.target import Directory, Owner, Target
from thinpool.layer.text import shown
from thinpool.layer.whiteouts import Meaning

__all__ = ["Limits", "UnpackResult", "unpack_layer"]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLE = 1 << 16
_ZEROS = bytes(_HOLE)
_MOST_WARNINGS = 100
_NO_ID = 0xFFFFFFFF
_SPECIAL = {
    EntryType.CHARACTER: stat.S_IFCHR,
    EntryType.BLOCK: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


@attrs.frozen
class UnpackResult:
    """What an import wrote.

    Attributes:
        entries: entries of the archive.
        size: bytes of all its files, holes included.
        diff_id: digest of the uncompressed archive, `sha256:...`.
        digest: digest of the archive as it came.
        warnings: what was not carried over, and why.
    """

    entries: int
    size: int
    diff_id: str
    digest: str
    warnings: tuple[str, ...]


def unpack_layer(
    fileobj: IO[bytes],
    root: int,
    *,
    limits: Limits | None = None,
    devices: bool = True,
    noting: bool = False,
    progress: Callable[[int], None] | None = None,
) -> UnpackResult:
    """Write a layer archive below a directory.

    If it fails, or the process dies, what was written so far stays: the caller throws the whole layer away.

    Args:
        fileobj: the archive, by `read`: plain, gzip, zstd or xz; it need not be seekable.
        root: the layer's root directory, as a descriptor; may hold what the parent layers have.
        limits: what the archive may ask for.
        devices: make device nodes; False leaves them out, with a warning.
        noting: leave notes for `thinpool.layer.notes.settle`, which is called when nothing else can see the layer.
        progress: called with the number of bytes of the archive read so far.

    Raises:
        ArchiveError: empty, cut short, damaged, no archive, or not to be carried out on this file system.
        UnsafeArchive: it tries to leave the root, or goes beyond a limit.
        PoolFull: no room.
    """
    bounds = Limits() if limits is None else limits
    source = Source(fileobj, bounds, progress)
    reader = TarReader(source.chunks(), bounds)
    with Target(root, Writer(noting=noting)) as target:
        unpacker = _Unpacker(target, reader, devices=devices)
        for member in reader.members():
            try:
                unpacker.apply(member)
            except OSError as error:
                raise _failure(member, error) from error
        try:
            target.set_times()
        except OSError as error:
            raise ArchiveError(f"times of directories cannot be set: {error.strerror}") from error
    warnings = (*unpacker.warnings, *reader.warnings)
    return UnpackResult(unpacker.entries, unpacker.size, source.diff_id, source.digest, warnings)


class _Unpacker:
    def __init__(self, target: Target, reader: TarReader, *, devices: bool) -> None:
        self.entries = 0
        self.size = 0
        self.warnings: list[str] = []
        self._target = target
        self._reader = reader
        self._devices = devices

    def apply(self, member: Member) -> None:
        """Carry out one entry."""
        self.entries += 1
        path = clean(member.name)
        meaning = whiteouts.meaning(path)
        if meaning is not Meaning.ENTRY:
            self._apply_whiteout(meaning, path)
            return
        if member.uid >= _NO_ID or member.gid >= _NO_ID:
            raise ArchiveError(f"{shown(path)}: owner {member.uid}:{member.gid} is beyond 32 bits")
        kind = member.type
        if kind is EntryType.DIRECTORY:
            self._directory(path, member)
            return
        if not path:
            raise UnsafeArchive("an entry puts something that is no directory in the place of the root")
        above, _, name = path.rpartition(b"/")
        parent = self._target.directory(above, member.mtime_ns)
        if kind is EntryType.REGULAR:
            self._file(parent, name, path, member)
        elif kind is EntryType.HARDLINK:
            self._hard_link(parent, name, path, member)
        elif kind is EntryType.SYMLINK:
            self._symlink(parent, name, path, member)
        elif kind is EntryType.FIFO or self._devices:
            self._special(parent, name, path, member)
        else:
            self._warn(f"left out {shown(path)}: a device")

    def _apply_whiteout(self, meaning: Meaning, path: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        if meaning is Meaning.WHITEOUT:
            gone = whiteouts.removed(name)
            self._target.hide(above + b"/" + gone if above else gone)
        elif meaning is Meaning.OPAQUE:
            self._target.hide_all(above)

    def _directory(self, path: bytes, member: Member) -> None:
        owner = Owner(member.mode, member.uid, member.gid, member.mtime_ns)
        if path:
            directory, new = self._target.make(path, owner)
        else:
            directory, new = self._target.root, False
            self._target.times.add(b"", os.fstat(directory.fd).st_ino, member.mtime_ns)
        if not new:
            os.fchown(directory.fd, member.uid, member.gid)
            os.fchmod(directory.fd, member.mode)
            for name in xattrs.read(directory.fd):
                if name not in member.xattrs:
                    self._target.writer.remove_attribute(directory.fd, name)
        self._set_xattrs(directory.fd, path, member)
        acl = xattrs.ACL_DEFAULT in member.xattrs
        self._target.changed(path, directory, setgid=bool(member.mode & stat.S_ISGID), acl=acl)

    def _file(self, parent: Directory, name: bytes, path: bytes, member: Member) -> None:
        try:
            fd = os.open(name, _CREATE, member.mode, dir_fd=parent.fd)
        except FileExistsError:
            self._target.clear(parent, name)
            fd = os.open(name, _CREATE, member.mode, dir_fd=parent.fd)
        try:
            self._target.made(parent, name, fd)
            if member.size:
                self._write(fd, member.size)
            owned = bool(member.uid or member.gid)
            if owned or not parent.plain:
                os.fchown(fd, member.uid, member.gid)
            if parent.acl:
                xattrs.drop_acls(fd)
            if member.mode & (self._target.umask | 0o7000) or not parent.plain:
                os.fchmod(fd, member.mode)
            self._set_xattrs(fd, path, member)
            self._target.writer.set_time(fd, member.mtime_ns)
        finally:
            os.close(fd)
        self.size += member.size

    def _write(self, fd: int, size: int) -> None:
        """Write a file's data; long runs of zeros become holes."""
        if size < _HOLE and (data := self._reader.at_once()) is not None:
            _write_all(fd, data, 0)
            return
        end = 0
        for offset, piece in self._reader.data():
            if len(piece) < _HOLE or _ZEROS not in piece:
                _write_all(fd, piece, offset)
                end = offset + len(piece)
                continue
            start = 0
            for position in range(0, len(piece), _HOLE):
                if piece[position : position + _HOLE] == _ZEROS:
                    if start < position:
                        _write_all(fd, piece[start:position], offset + start)
                        end = offset + position
                    start = position + _HOLE
            if start < len(piece):
                _write_all(fd, piece[start:], offset + start)
                end = offset + len(piece)
        if end < size:
            os.ftruncate(fd, size)

    def _hard_link(self, parent: Directory, name: bytes, path: bytes, member: Member) -> None:
        wanted = clean(member.link)
        above, _, source = wanted.rpartition(b"/")
        if not source:
            raise UnsafeArchive(f"{shown(path)} is a hard link to the root")
        try:
            origin = self._target.directory(above).fd
            first = os.stat(source, dir_fd=origin, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(f"{shown(path)} is a hard link to {shown(wanted)}, which is not there") from None
        if stat.S_ISDIR(first.st_mode):
            raise ArchiveError(f"{shown(path)} is a hard link to the directory {shown(wanted)}")
        try:
            os.link(source, name, src_dir_fd=origin, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:
            there = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) != (first.st_dev, first.st_ino):
                self._target.clear(parent, name)
                origin = self._target.directory(above).fd
                os.link(source, name, src_dir_fd=origin, dst_dir_fd=parent.fd, follow_symlinks=False)
        self._target.linked(parent, name)

    def _symlink(self, parent: Directory, name: bytes, path: bytes, member: Member) -> None:
        try:
            os.symlink(member.link, name, dir_fd=parent.fd)
        except FileExistsError:
            self._target.clear(parent, name)
            os.symlink(member.link, name, dir_fd=parent.fd)
        self._target.made(parent, name)
        if member.uid or member.gid or not parent.plain:
            os.chown(name, member.uid, member.gid, dir_fd=parent.fd, follow_symlinks=False)
        self._set_xattrs(xattrs.path_of(parent.fd, name), path, member)
        self._target.writer.set_time_at(parent.fd, name, member.mtime_ns)

    def _special(self, parent: Directory, name: bytes, path: bytes, member: Member) -> None:
        mode = _SPECIAL[member.type] | member.mode
        device = os.makedev(member.major, member.minor) if member.type is not EntryType.FIFO else 0
        try:
            os.mknod(name, mode, device, dir_fd=parent.fd)
        except FileExistsError:
            self._target.clear(parent, name)
            os.mknod(name, mode, device, dir_fd=parent.fd)
        self._target.made(parent, name)
        if member.uid or member.gid or not parent.plain:
            os.chown(name, member.uid, member.gid, dir_fd=parent.fd, follow_symlinks=False)
        file = xattrs.path_of(parent.fd, name)
        if parent.acl:
            xattrs.drop_acls(file)
        # the name was made here, and is no link: following it is going nowhere else
        os.chmod(file, member.mode)
        self._set_xattrs(file, path, member)
        self._target.writer.set_time_at(parent.fd, name, member.mtime_ns)

    def _set_xattrs(self, file: int | str, path: bytes, member: Member) -> None:
        for name, value in member.xattrs.items():
            if xattrs.belongs(name) and not xattrs.write(file, name, value):
                self._warn(f"{shown(path)}: the file system takes no extended attribute {shown(name)} here")

    def _warn(self, text: str) -> None:
        if len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(text)
        elif len(self.warnings) == _MOST_WARNINGS:
            self.warnings.append("there are more warnings like these")


def _write_all(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def _failure(member: Member, error: OSError) -> ArchiveError | PoolFull:
    if is_full(error):
        return PoolFull(f"no room for {shown(member.name)}: {error.strerror}")
    return ArchiveError(f"{shown(member.name)} cannot be unpacked: {error.strerror}")
