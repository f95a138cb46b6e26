"""Random trees, random changes to them, and a simple account of what is in a tree and what differs between two."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from thinpool.layer.xattrs import belongs
from thinpool.model import Change, ChangeKind

LONG = os.environ.get("THINPOOL_TEST_LONG") == "1"

NAMES = (
    b"a",
    b"a-b",
    b"a.b",
    b"ab",
    b"b",
    b"c",
    b"B",
    b"new\nline",
    b"tab\t and blank",
    b"\xff\xfe no utf-8",
    "\u00e9\u4e16".encode(),
    "\U0001f600".encode(),
    "\ue000".encode(),
    b"\xee",
    b"-n",
    b"~",
    b"%3D=%",
    b"wh.it",
    b"n" * 255,
    b"m" * 100,
    b"m" * 99,
    b"\x01",
)
TIMES = (0, -1, -1_500_000_000, 1_700_000_000_123_456_789, 4_000_000_000_000_000_000, 1_700_000_000_000_000_000, 1)
IDS = (0, 1, 1000, 65534, 2_097_151, 2_097_152, 4_294_967_294)
MODES = (0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o000, 0o7777)
SIZES = (0, 1, 511, 512, 513, 4096, 5000, 70_000, 300_000)
Choice = TypeVar("Choice")
XATTRS = ("user.k", "user.eq=ual", "user.per%cent", "trusted.t", "user.%3D", "security.other")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def examples(number: int, rounds: int = 1) -> settings:
    """So many random examples, 50 times as many in a long run, in one of several rounds."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=(50 * number if LONG else number) // rounds,
        suppress_health_check=checks,
        phases=[__import__("hypothesis").Phase.generate],
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A directory as a driver hands it over."""
    fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


@attrs.frozen
class Step:
    """One random operation; the numbers choose among what there is."""

    operation: str
    x: int
    y: int
    z: int


@attrs.frozen
class Entry:
    """All that counts of one path.

    Attributes:
        what: everything but names: type, mode, owner, device, size, content, target, attributes, time.
        inode: to tell hard links.
        directory: it is one.
        mtime_ns: for directories too.
        socket: it is one.
        plain: it is a file or a symbolic link.
    """

    what: tuple[object, ...]
    inode: int
    directory: bool
    mtime_ns: int
    socket: bool
    plain: bool

    @property
    def mode(self) -> int:
        """Type and permissions."""
        mode = self.what[0]
        assert isinstance(mode, int)
        return mode


Tree = Mapping[bytes, Entry]


def survey(root: Path) -> dict[bytes, Entry]:
    """Every path below a root, which itself is `/`."""
    top = os.fsencode(root)
    found = {b"/": _entry(top)}
    pending = [b""]
    while pending:
        prefix = pending.pop()
        for name in os.listdir(top + prefix):
            path = prefix + b"/" + name
            found[path] = entry = _entry(top + path)
            if entry.directory:
                pending.append(path)
    return found


def expected_changes(older: Tree, newer: Tree) -> list[Change]:
    """What the contract says that the changes are, in the most simple-minded way."""
    common = older.keys() & newer.keys()
    changes: list[Change] = []
    for path in sorted(older.keys() | newer.keys()):
        kind: ChangeKind
        if path not in older:
            kind = "A"
        elif path not in newer:
            parent = path.rpartition(b"/")[0] or b"/"
            if parent not in newer or not newer[parent].directory:
                continue
            kind = "D"
        else:
            same = older[path].what == newer[path].what
            if same and _links(older, path, common) == _links(newer, path, common):
                continue
            kind = "C"
        changes.append(Change(kind, os.fsdecode(path)))
    return changes


def content(tree: Tree, *, special_links: bool = True) -> dict[bytes, tuple[object, ...]]:
    """A tree as what a round trip must keep: everything but sockets and the times of directories, with hard links.

    Args:
        tree: the tree.
        special_links: tell the hard links of devices and FIFOs.
    """
    kept = {path: entry for path, entry in tree.items() if not entry.socket}
    names = defaultdict(list)
    for path, entry in sorted(kept.items()):
        if not entry.directory and (special_links or entry.plain):
            names[entry.inode].append(path)
    return {
        path: (entry.what, None if entry.directory else tuple(names.get(entry.inode, ())))
        for path, entry in kept.items()
    }


def _links(tree: Tree, path: bytes, common: Iterable[bytes]) -> set[bytes]:
    own = tree[path]
    if own.directory:
        return {path}
    return {other for other in common if not tree[other].directory and tree[other].inode == own.inode}


def _attributes(path: bytes) -> dict[str, bytes]:
    found = {}
    for name in os.listxattr(path, follow_symlinks=False):
        if belongs(name):
            try:
                found[name] = os.getxattr(path, name, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EINVAL or name != "security.capability":
                    raise  # what aufs leaves of one that was removed, and no kernel takes for one
    return found


def _entry(path: bytes) -> Entry:
    status = os.lstat(path)
    mode = status.st_mode
    what: list[object] = [mode, status.st_uid, status.st_gid]
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            what += [status.st_size, hashlib.file_digest(file, "md5").hexdigest()]
    elif stat.S_ISLNK(mode):
        what.append(os.readlink(path))
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        what.append(status.st_rdev)
    what.append(_attributes(path))
    if not stat.S_ISDIR(mode):
        what.append(status.st_mtime_ns)
    return Entry(
        tuple(what),
        status.st_ino,
        stat.S_ISDIR(mode),
        status.st_mtime_ns,
        stat.S_ISSOCK(mode),
        stat.S_ISREG(mode) or stat.S_ISLNK(mode),
    )


# -- changing a tree


class Mutator:
    """Carries out steps on a tree; a step that the tree or the file system refuses does nothing."""

    def __init__(self, root: Path, longest: int = 0) -> None:
        self._root = os.fsencode(root)
        self._longest = longest or os.statvfs(root).f_namemax
        self._counter = 0

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._counter += 1
            with contextlib.suppress(OSError, shutil.Error):
                getattr(self, f"_{step.operation}")(step)

    # -- choosing

    def _paths(self) -> tuple[list[bytes], list[bytes]]:
        files: list[bytes] = []
        directories = [self._root]
        for folder, folders, others in os.walk(self._root):
            folders.sort()
            directories += [folder + b"/" + name for name in folders if not os.path.islink(folder + b"/" + name)]
            files += [folder + b"/" + name for name in sorted([*others, *folders])]
        return files, directories

    def _file(self, step: Step) -> bytes:
        files = [path for path in self._paths()[0] if not stat.S_ISDIR(os.lstat(path).st_mode)]
        return _pick(files, step.x)

    def _regular(self, step: Step) -> bytes:
        return _pick([path for path in self._paths()[0] if stat.S_ISREG(os.lstat(path).st_mode)], step.x)

    def _any(self, step: Step) -> bytes:
        files, directories = self._paths()
        return _pick([*files, *directories], step.x)

    def _directory(self, step: Step) -> bytes:
        return _pick(self._paths()[1], step.y)

    def _new(self, step: Step) -> bytes:
        return self._directory(step) + b"/" + _pick(NAMES, step.z)[: self._longest]

    # -- operations

    def _create(self, step: Step) -> None:
        with open(self._new(step), "xb") as file:
            file.write(_data(step.x, _pick(SIZES, step.x)))

    def _mkdir(self, step: Step) -> None:
        os.mkdir(self._new(step))

    def _symlink(self, step: Step) -> None:
        os.symlink(_pick((b"/etc", b"a", b"../b", b"t" * 150, b"\xff", b"n" * 1000), step.x), self._new(step))

    def _fifo(self, step: Step) -> None:
        os.mkfifo(self._new(step))

    def _socket(self, step: Step) -> None:
        os.mknod(self._new(step), stat.S_IFSOCK | 0o755)

    def _device(self, step: Step) -> None:
        kind = _pick((stat.S_IFCHR, stat.S_IFBLK), step.x)
        os.mknod(self._new(step), kind | 0o600, os.makedev(step.x % 200, step.y % 100_000))

    def _link(self, step: Step) -> None:
        os.link(self._file(step), self._new(step), follow_symlinks=False)

    def _unlink(self, step: Step) -> None:
        os.unlink(self._file(step))

    def _remove(self, step: Step) -> None:
        directory = self._directory(step)
        if directory != self._root:
            shutil.rmtree(directory)

    def _rename(self, step: Step) -> None:
        os.rename(self._any(step), self._new(step))

    def _exchange(self, step: Step) -> None:
        first, second = self._any(step), self._any(attrs.evolve(step, x=step.z))
        if first.startswith(second) or second.startswith(first):
            return
        os.rename(first, self._root + b"/swap")
        os.rename(second, first)
        os.rename(self._root + b"/swap", second)

    def _append(self, step: Step) -> None:
        with open(self._regular(step), "ab") as file:
            file.write(_data(step.y, 1 + step.y % 9000))

    def _truncate(self, step: Step) -> None:
        os.truncate(self._regular(step), _pick(SIZES, step.y))

    def _overwrite_silently(self, step: Step) -> None:
        """Other content, same size, same time."""
        path = self._regular(step)
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.seek(step.y % max(status.st_size, 1))
            file.write(_data(step.z, 8)[: max(status.st_size - file.tell(), 0)])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _touch_and_put_back(self, step: Step) -> None:
        path = self._regular(step)
        status = os.stat(path)
        os.chmod(path, stat.S_IMODE(status.st_mode) ^ 0o111)
        os.chmod(path, stat.S_IMODE(status.st_mode))

    def _make_again(self, step: Step) -> None:
        """The same file anew, which may get the same inode number."""
        path = self._regular(step)
        status = os.stat(path)
        data = Path(os.fsdecode(path)).read_bytes()
        os.unlink(path)
        with open(path, "xb") as file:
            file.write(data if step.y % 2 else data[::-1])
        os.chmod(path, stat.S_IMODE(status.st_mode))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _break_link(self, step: Step) -> None:
        path = self._regular(step)
        shutil.copy2(path, self._root + b"/copy")
        os.rename(self._root + b"/copy", path)

    def _replace_type(self, step: Step) -> None:
        path = self._any(step)
        if path == self._root:
            return
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
            with open(path, "xb") as file:
                file.write(b"was a directory")
        else:
            os.unlink(path)
            os.mkdir(path)
            if step.y % 2:
                os.symlink(b"x", path + b"/inside")

    def _chmod(self, step: Step) -> None:
        path = self._any(step)
        if not os.path.islink(path):
            os.chmod(path, _pick(MODES, step.y))

    def _chown(self, step: Step) -> None:
        os.chown(self._any(step), _pick(IDS, step.y), _pick(IDS, step.z), follow_symlinks=False)

    def _utime(self, step: Step) -> None:
        os.utime(self._any(step), ns=(0, _pick(TIMES, step.y)), follow_symlinks=False)

    def _set_xattr(self, step: Step) -> None:
        os.setxattr(self._any(step), _pick(XATTRS, step.y), _data(step.z, step.z % 300), follow_symlinks=False)

    def _remove_xattr(self, step: Step) -> None:
        path = self._any(step)
        os.removexattr(path, _pick(os.listxattr(path, follow_symlinks=False), step.y), follow_symlinks=False)

    def _capability(self, step: Step) -> None:
        os.setxattr(self._regular(step), "security.capability", CAPABILITY)

    def _acl(self, step: Step) -> None:
        path = self._any(step)
        acl = [(1, 7, 0xFFFFFFFF), (2, step.y % 8, 60_000 + step.z % 3), (4, 5, 0xFFFFFFFF)]
        acl += [(16, 7, 0xFFFFFFFF), (32, step.z % 8, 0xFFFFFFFF)]
        packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in acl)
        kind = "default" if step.y % 2 and os.path.isdir(path) and not os.path.islink(path) else "access"
        os.setxattr(path, f"system.posix_acl_{kind}", packed, follow_symlinks=False)

    def _sparse(self, step: Step) -> None:
        with open(self._new(step), "xb") as file:
            for offset in (0, 1 << 20, 3 << 20)[step.x % 2 :]:
                file.seek(offset)
                file.write(_data(step.z, 100))
            file.truncate(_pick((4 << 20, (4 << 20) + 1, 5 << 20), step.y))

    def _punch(self, step: Step) -> None:
        """Make zeros of what was data, at the same size and time."""
        path = self._regular(step)
        status = os.stat(path)
        with open(path, "r+b") as file:
            file.write(bytes(min(status.st_size, 4096)))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


OPERATIONS = tuple(
    name[1:]
    for name, value in vars(Mutator).items()
    if name.startswith("_")
    and not name.startswith("__")
    and name not in {"_paths", "_file", "_regular", "_any", "_directory", "_new"}
    and callable(value)
)

_numbers = st.integers(0, 1 << 16)
_making = st.sampled_from(("create", "mkdir", "link", "symlink", "sparse", "set_xattr", "chmod", "device"))
steps = st.lists(st.builds(Step, st.sampled_from(OPERATIONS), _numbers, _numbers, _numbers), min_size=3, max_size=30)
makings = st.lists(
    st.builds(Step, st.one_of(_making, st.sampled_from(OPERATIONS)), _numbers, _numbers, _numbers),
    min_size=10,
    max_size=40,
)


def _pick(choices: Sequence[Choice], number: int) -> Choice:
    if not choices:
        raise OSError(errno.ENOENT, "nothing to choose from")
    return choices[number % len(choices)]


def _data(seed: int, size: int) -> bytes:
    block = hashlib.sha512(str(seed).encode()).digest()
    return (block * (size // len(block) + 1))[:size]
