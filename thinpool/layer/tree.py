"""Moving about in a directory tree by file descriptors: no path is put together, no symbolic link followed."""

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from thinpool.errors import TreeError

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_OPEN = 48


class Descent:
    """The open directories from a root down to one directory, moved with `enter` and `leave`.

    At most a fixed number of descriptors is open, however deep the tree: of a deeper descent only the lowest are kept,
    and the others are opened again through `..` on the way up, where they must be the directories they were.
    """

    def __init__(self, root: int) -> None:
        """Start at the root, which may be an `O_PATH` descriptor and stays the caller's.

        Raises:
            OSError: it cannot be opened.
        """
        self._names: list[bytes | str] = []
        self._fds: list[int] = [os.open(".", DIRECTORY, dir_fd=root)]
        self._closed: list[tuple[int, int]] = []

    @property
    def fd(self) -> int:
        """The descriptor of the present directory, open until the next move."""
        return self._fds[-1]

    @property
    def depth(self) -> int:
        """How many directories the present one is below the root."""
        return len(self._names)

    def enter(self, name: bytes | str) -> None:
        """Go down into a directory of that name."""
        self._fds.append(os.open(name, DIRECTORY, dir_fd=self._fds[-1]))
        self._names.append(name)
        if len(self._fds) > _KEPT_OPEN:
            oldest = self._fds.pop(0)
            status = os.fstat(oldest)
            self._closed.append((status.st_dev, status.st_ino))
            os.close(oldest)

    def leave(self) -> None:
        """Go up to the parent directory.

        Raises:
            TreeError: it is not the one we came through.
        """
        if len(self._fds) == 1:
            fd = os.open("..", DIRECTORY, dir_fd=self._fds[0])
            self._fds.insert(0, fd)
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._closed.pop():
                raise TreeError("a directory was moved while its tree was read")
        os.close(self._fds.pop())
        self._names.pop()

    def go(self, parts: Sequence[bytes | str]) -> None:
        """Go to the directory of those names below the root, by way of the nearest common ancestor."""
        common = 0
        for ours, theirs in zip(self._names, parts, strict=False):
            if ours != theirs:
                break
            common += 1
        while len(self._names) > common:
            self.leave()
        for part in parts[common:]:
            self.enter(part)

    def close(self) -> None:
        """Close what is open."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def go_over(root: int, look: Callable[[int], Iterator[bytes | str]]) -> None:
    """Look into every directory of a tree, each before those in it.

    Args:
        root: the tree's root directory, as for `Descent`.
        look: gets an open directory; gives the names of the directories in it to go on with.

    Raises:
        OSError: a directory cannot be opened.
        TreeError: one was moved meanwhile.
    """
    with Descent(root) as descent:
        stack = [look(descent.fd)]
        while stack:
            name = next(stack[-1], None)
            if name is not None:
                descent.enter(name)
                stack.append(look(descent.fd))
                continue
            stack.pop()
            if stack:
                descent.leave()
