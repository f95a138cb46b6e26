"""Which directories a sorted archive already has, as far as that matters for what is still to come."""

from collections.abc import Iterator

import attrs


@attrs.frozen
class _Directory:
    """A directory that something may still come below.

    Attributes:
        name: its last part.
        child: it lies in the directory before it on the stack; else the two lie in the same one.
    """

    name: bytes
    child: bool


class Parents:
    """The directories that are in an archive whose paths come sorted by their bytes.

    Between a directory and what is below it others may sort (`/a`, `/a-b`, `/a/x`), so a stack holds those of which
    something may still come. A directory is either in the one before it on the stack, or its name begins with that
    one's name and both are in the same directory: that is why parts of paths are enough, and a deep tree takes little.
    """

    def __init__(self) -> None:
        self._stack: list[_Directory] = []
        self._top = b""

    def missing(self, path: bytes) -> Iterator[bytes]:
        """The directories above a path, from the top, that have to be added (and told by `add`) before it."""
        if path and not self._stack:
            yield b""
        self._forget(path)
        top = self._top
        position = len(top) + 1 if top and path.startswith(top + b"/") else top.rfind(b"/") + 1
        while (end := path.find(b"/", position)) > 0:
            yield path[:end]
            position = end + 1

    def add(self, path: bytes) -> None:
        """A directory, whose parents are all there, is in the archive."""
        self._forget(path)
        above, _, name = path.rpartition(b"/")
        self._stack.append(_Directory(name, above == self._top))
        self._top = path

    def clear(self) -> None:
        """Begin anew."""
        self._stack.clear()
        self._top = b""

    def _forget(self, path: bytes) -> None:
        """Let go of those below which nothing can come any more, now that this path does."""
        while len(self._stack) > 1 and not (path <= self._top + b"/" or path.startswith(self._top + b"/")):
            self._pop()

    def _pop(self) -> None:
        gone = self._stack.pop()
        above = self._top.rpartition(b"/")[0]
        name = self._stack[-1].name
        self._top = above if gone.child or not name else above + b"/" + name if above else name
