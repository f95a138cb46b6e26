"""The terms of a store, as values: layers, their kinds, usage and changes."""

import enum
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, Self, overload

import attrs

from thinpool.errors import ConfigError, InvalidName

NAME_MAX_BYTES = 255
_NAME = re.compile(r"[A-Za-z0-9._:/@+-]+", re.ASCII)

ChangeKind = Literal["A", "C", "D"]


class Kind(enum.Enum):
    """What may be done with a layer (containerd's snapshot kinds)."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))


def _within(path: str | os.PathLike[str]) -> str:
    """A path in a layer, in its shortest form."""
    text = os.fspath(path)
    parts = [part for part in text.split("/") if part not in {"", "."}]
    if not text.startswith("/") or not parts or ".." in parts or "\0" in text:
        raise ConfigError(f"volume target {text!r}: accepted is an absolute path below /, without '..'")
    return "/" + "/".join(parts)


@attrs.frozen
class Volume:
    """A directory or file of the host that is mounted inside a layer.

    Attributes:
        source: the path on the host; a relative one is made absolute.
        target: the absolute path in the layer.
        read_only: nothing can be written through the layer.

    Raises:
        ConfigError: the target is no such path.
    """

    source: Path = attrs.field(converter=_absolute)
    target: str = attrs.field(converter=_within)
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `SOURCE:TARGET` or `SOURCE:TARGET:ro` (`:rw` is the default, said).

        Raises:
            ConfigError: it is of another form.
        """
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target or mode not in {"", "ro", "rw"}:
            raise ConfigError(f"volume {text!r}: accepted is SOURCE:TARGET or SOURCE:TARGET:ro")
        return cls(source, target, mode == "ro")


@attrs.frozen
class Layer:
    """One layer of a store.

    Attributes:
        name: unique in the store.
        parent: name of the parent layer, or None.
        kind: active (writable), view (read-only, temporary) or committed (immutable, may be a parent).
        created: when it was made, UTC; commit makes a new layer.
        updated: when its record last changed, UTC; equal to `created` at first.
        size: the size of its file system in bytes; 0 where the driver has no fixed size.
        labels: free-form strings, containerd's labels.
        volumes: what was mounted inside it; see `Store.mount`.
        crash_consistent: what `commit` and `checkpoint` say of the layer that they give back, and nobody else: it was
            in use as a block device, so its file system is what a power cut would have left, with a journal to replay.
    """

    name: str
    parent: str | None
    kind: Kind
    created: datetime
    updated: datetime
    size: int
    labels: Mapping[str, str] = attrs.field(factory=dict)
    volumes: tuple[Volume, ...] = ()
    crash_consistent: bool = attrs.field(default=False, eq=False)


@attrs.frozen
class Usage:
    """What a layer occupies, in bytes.

    Attributes:
        size: what the layer holds and its parent does not.
        exclusive: what removing it frees.
        referenced: all that it maps, shared or not.
        inodes: number of inodes in use, or None where that is not known.
    """

    size: int
    exclusive: int
    referenced: int
    inodes: int | None = None


@attrs.frozen(order=False)
class Change:
    """One difference between two trees.

    Attributes:
        kind: `A` added, `C` changed, `D` deleted.
        path: absolute within the layer; bytes that are no UTF-8 appear as `os.fsdecode` makes them.
    """

    kind: ChangeKind
    path: str


@attrs.frozen
class Changes(Sequence[Change]):
    """The differences between two layers, sorted by the bytes of their paths.

    Attributes:
        entries: the changes.
        method: how they were found: `fast` where the driver told where to look, `walk` where all was compared.
        reason: why all was compared, if that was not asked for.
        reads: how many reads from devices it took, where no tree was mounted for it; else None.
        bytes: how many bytes these gave.
    """

    entries: tuple[Change, ...]
    method: str
    reason: str | None = None
    reads: int | None = None
    bytes: int | None = None

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self.entries[index]

    def __len__(self) -> int:
        return len(self.entries)


def check_name(name: str) -> str:
    """Give back a valid layer name: 1-255 bytes of `[A-Za-z0-9._:/@+-]` in parts between slashes.

    Raises:
        InvalidName: naming the rule that is broken.
    """
    if not isinstance(name, str):
        raise InvalidName(f"a layer name is a string, not {type(name).__name__}")
    if not name:
        raise InvalidName("a layer name must not be empty")
    if len(name) > NAME_MAX_BYTES:
        raise InvalidName(f"layer name of {len(name)} characters; at most {NAME_MAX_BYTES} are allowed")
    if _NAME.fullmatch(name) is None:
        raise InvalidName(f"layer name {name!r} has a character outside A-Z a-z 0-9 . _ : / @ + -")
    if name.startswith(("/", "-")):
        raise InvalidName(f"layer name {name!r} must not start with {name[0]!r}")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise InvalidName(f"layer name {name!r} has an empty part, '.' or '..' between slashes")
    return name
