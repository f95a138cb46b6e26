"""The differences of two trees by a walk over both, side by side: the reference for every faster way.

What counts as a change is the same for every driver. Here it is found by two open directories, entry by entry, in the
order of the paths' bytes, without recursion, with a fixed number of descriptors and no path longer than a name.

**When content is read.** Where all that stat(2) tells agrees, extended attributes, link target and content must be
compared, unless the inode cannot have been touched since the two trees were one. Equal inode number and equal time of
status change (ctime) mean that, but not alone: ctime moves in ticks of the clock (up to 10 ms before Linux 6.13), so a
file written just before a snapshot was taken and again just after it may show the same ctime twice; and two layers that
were filled at the same time on the same empty file system give the same inode numbers to different files. So the caller
says until when the trees were one (`settled_ns`), and only an inode whose ctime lies before that by more than two ticks
is trusted. What is left is a clock that is set back, onto the very nanosecond of an earlier change.
"""

import os
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

import attrs

from thinpool.errors import TreeError
from thinpool.layer.compare import attributes_differ, contents_differ
from thinpool.layer.links import Backlog, LinkSets, Pair
from thinpool.layer.scope import Place, Scope
from thinpool.layer.text import shown
from thinpool.layer.view import MountedView, Status, View
from thinpool.model import Change

_TWO_TICKS_NS = 20_000_000
_SECOND_NS = 1_000_000_000  # the tick of ext4 with inodes of 128 bytes, whose times have no smaller parts
_NEVER_NS = -(1 << 63)
_EMPTY_ROOT_MODE = stat.S_IFDIR | 0o755


def walk(
    older: int | None, newer: int, *, settled_ns: int | None = None, scope: Scope | None = None
) -> Iterator[Change]:
    """Compare two trees, everywhere or where they may differ.

    In memory are the names of the directories on the way down, and two numbers an inode with several names. Changes
    after a path whose hard links are not all seen yet wait, most of them in a temporary file.

    Args:
        older: the older tree's root directory, `O_PATH` or readable, which may be a detached mount's. None stands for
            an empty root directory: mode 0755, owned by root, no extended attributes.
        newer: the newer tree's root directory.
        settled_ns: a time (nanoseconds since 1970) before which the two trees were one, so not later than the
            snapshot of their last common ancestor, which is the older tree itself where the newer one descends from
            it. None: nothing is known, and the content of every file that agrees in all else is read.
        scope: where the trees may differ; None looks everywhere.

    Yields:
        The changes, sorted by the bytes of their paths.

    Raises:
        TreeError: a tree cannot be read, or changes while it is read.
    """
    with _reading(), ExitStack() as stack:
        old = None if older is None else stack.enter_context(MountedView(older))
        new = stack.enter_context(MountedView(newer))
        yield from walk_views(old, new, settled_ns=settled_ns, scope=scope)


def walk_views(
    older: View | None, newer: View, *, settled_ns: int | None = None, scope: Scope | None = None
) -> Iterator[Change]:
    """Compare two trees, however they are read; see `walk`.

    Args:
        older: the older tree, at its root.
        newer: the newer tree, at its root.
        settled_ns: as for `walk`.
        scope: as for `walk`.

    Raises:
        TreeError: a tree cannot be read, or changes while it is read; and what else the views raise.
    """
    before_ns = _NEVER_NS if settled_ns is None else settled_ns - _TWO_TICKS_NS
    with _reading(), closing(Backlog()) as backlog:
        yield from _Walk(older, newer, before_ns, backlog, scope).run()


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = "" if error.filename is None else f" at {shown(error.filename)}"
        raise TreeError(f"the layer's tree cannot be read{where}: {error.strerror}") from error


@attrs.define(eq=False)
class _Frame:
    """A directory that is being walked.

    Attributes:
        older: its entries in the older tree, as `View.entries` gives them, or None where it is new.
        newer: its entries in the newer tree.
        place: what of it is in the scope; None for all.
        same_inodes: as in the scope.
        keys: what is left to do, in order: names, and `NAME/` for what lies below a directory.
    """

    older: Mapping[str, int] | None
    newer: Mapping[str, int]
    place: Place | None
    same_inodes: bool
    keys: Iterator[str] = attrs.field(factory=lambda: iter(()))

    @classmethod
    def open(cls, older: View | None, newer: View, place: Place | None, *, same_inodes: bool) -> "_Frame":
        names = None
        if place is None or place.whole or older is None:
            place = None
        elif not place.listed:
            names = place.children
        frame = cls(None if older is None else older.entries(names), newer.entries(names), place, same_inodes)
        frame.keys = iter(frame._sorted_keys())
        return frame

    def _sorted_keys(self) -> list[str]:
        newer = self.newer
        names = newer if self.older is None else newer.keys() | self.older.keys()
        keys = [*names, *(f"{name}/" for name, inode in newer.items() if inode and self._is_entered(name))]
        if "".join(keys).isascii():
            keys.sort()
        else:
            keys.sort(key=os.fsencode)
        return keys

    def _is_entered(self, name: str) -> bool:
        if self.place is None or self._is_new(name):
            return True
        below = self.place.children.get(name)
        return below is not None and below.leads_on

    def below(self, name: str) -> Place | None:
        """What is looked at below a directory of the newer tree; None for all."""
        return None if self.place is None or self._is_new(name) else self.place.children[name]

    def _is_new(self, name: str) -> bool:
        inode = None if self.older is None else self.older.get(name)
        return not inode or (self.same_inodes and inode != self.newer[name])


class _Walk:
    def __init__(self, older: View | None, newer: View, before_ns: int, backlog: Backlog, scope: Scope | None) -> None:
        self._place = None if scope is None else scope.root
        self._same_inodes = scope is not None and scope.same_inodes
        self._older = older
        self._newer = newer
        self._before_ns = before_ns
        self._links = LinkSets()
        self._backlog = backlog
        self._prefix = "/"

    def run(self) -> Iterator[Change]:
        if self._root_differs():
            yield Change("C", "/")
        stack = [self._frame(self._older, self._place)]
        lengths = [1]
        while stack:
            below = yield from self._entries(stack[-1])
            if below is not None:
                stack.append(self._enter(stack[-1], below))
                lengths.append(len(self._prefix))
                continue
            frame = stack.pop()
            lengths.pop()
            if stack:
                self._newer.leave()
                if frame.older is not None and self._older is not None:
                    self._older.leave()
                self._prefix = self._prefix[: lengths[-1]]
        yield from self._backlog.ready(at_end=True)

    def _enter(self, frame: _Frame, name: str) -> _Frame:
        self._newer.enter(name)
        self._prefix += f"{name}/"
        place = frame.below(name)
        if self._older is None or frame.older is None or not frame.older.get(name):
            return self._frame(None, place)
        self._older.enter(name)
        return self._frame(self._older, place)

    def _frame(self, older: View | None, place: Place | None) -> _Frame:
        return _Frame.open(older, self._newer, place, same_inodes=self._same_inodes)

    def _entries(self, frame: _Frame) -> Generator[Change, None, str | None]:
        """Go on with a directory; returns the name of the directory below which to go on, or None when done."""
        older, newer, backlog, prefix = frame.older, frame.newer, self._backlog, self._prefix
        for key in frame.keys:
            if key.endswith("/"):
                return key[:-1]
            pair = None
            if older is None or key not in older:
                change = Change("A", prefix + key)
            elif key not in newer:
                change = Change("D", prefix + key)
            else:
                differs, pair = self._compare(key)
                if not differs and pair is None:
                    continue
                change = Change("C", prefix + key)
                if differs:
                    pair = None
            if backlog or pair is not None:
                backlog.add(change, pair)
                yield from backlog.ready()
            else:
                yield change
        return None

    def _compare(self, name: str) -> tuple[bool, Pair | None]:
        """Whether an entry of both trees differs in itself, and its link sets where it has any."""
        assert self._older is not None
        older = self._older.status(name)
        newer = self._newer.status(name)
        pair = self._links.meet(older, newer) if older.st_nlink > 1 or newer.st_nlink > 1 else None
        if attributes_differ(older, newer):
            return True, pair
        if self._untouched(older, newer):
            return False, pair
        return contents_differ(self._older, self._newer, name, newer), pair

    def _root_differs(self) -> bool:
        newer = self._newer.status(".")
        if self._older is None:
            bare = newer.st_mode == _EMPTY_ROOT_MODE and newer.st_uid == 0 and newer.st_gid == 0
            return not bare or bool(self._newer.attributes("."))
        older = self._older.status(".")
        return attributes_differ(older, newer) or contents_differ(self._older, self._newer, ".", newer)

    def _untouched(self, older: Status, newer: Status) -> bool:
        ctime = newer.st_ctime_ns
        before = self._before_ns if ctime % _SECOND_NS else self._before_ns - 2 * _SECOND_NS
        return ctime < before and ctime == older.st_ctime_ns and newer.st_ino == older.st_ino
