"""The names in a layer, from a whole manifest and the deltas on it.

A delta refers to its base, so manifests form chains: a whole one and at most `MOST_DELTAS` deltas. What would make a
longer one is pressed together to one delta on the whole manifest; and where that holds a quarter as many names as the
whole one, to a new whole one. So a look-up costs at most nine binary searches, making the manifest of a layer costs
what changed since its base, and the rare pressing together costs what changed since the last one.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from thinpool.filesystem.ext4.manifest import Builder, Device, Manifest, Name, Unfit

__all__ = ["MOST_DELTAS", "Names"]

MOST_DELTAS: Final = 8
"""Longest chain of deltas on a whole manifest."""

_SMALL: Final = 1024


class Names:
    """The names in one layer."""

    def __init__(self, parts: Sequence[Manifest]) -> None:
        """Of a whole manifest and the deltas on it, in order.

        Raises:
            Unfit: they do not belong together.
        """
        base: Device | None = None
        for part in parts:
            if part.base != base or part.file_system != parts[0].file_system:
                raise Unfit("its base is another one")
            base = part.device
        if not 0 < len(parts) <= MOST_DELTAS + 1:
            raise Unfit("it is none, or the end of a longer chain than there can be")
        self._parts = parts

    @classmethod
    def find(cls, device: Device, file_system: bytes, load: Callable[[int], Manifest]) -> "Names":
        """The names in a layer whose manifest is loaded with that of its base, and so on.

        Args:
            device: the layer's device.
            file_system: the UUID of its file system.
            load: gives a manifest by the thin id of its device, or raises Unfit.

        Raises:
            Unfit: one of them is missing, damaged, or of another device.
        """
        parts: list[Manifest] = []
        wanted: Device | None = device
        while wanted is not None:
            part = load(wanted.thin_id)
            if part.device != wanted or part.file_system != file_system:
                raise Unfit("it is of another device")
            if len(parts) > MOST_DELTAS:
                raise Unfit("the chain is longer than there can be")
            parts.append(part)
            wanted = part.base
        return cls(parts[::-1])

    @property
    def device(self) -> Device:
        """The device whose names these are."""
        return self._parts[-1].device

    @property
    def file_system(self) -> bytes:
        """The UUID of its file system."""
        return self._parts[-1].file_system

    def of(self, inode: int) -> Collection[Name]:
        """The names of an inode; none where it is not in use.

        Raises:
            Unfit: a manifest is damaged.
        """
        found = set(self._parts[0].added(inode))
        for part in self._parts[1:]:
            found.difference_update(part.removed(inode))
            found.update(part.added(inode))
        return found

    def late(self) -> Collection[int]:
        """The inodes that were changed just before the layer was complete.

        Raises:
            Unfit: a manifest is damaged.
        """
        return self._parts[-1].late()

    def extended(self, change: Builder, device: Device) -> bytes:
        """The manifest of a device that differs from this one by what is in a builder: a delta, or a whole one.

        Raises:
            Unfit: a manifest is damaged.
        """
        whole = self._parts[0]
        if len(self._parts) <= MOST_DELTAS and change.records * 4 <= whole.records + _SMALL:
            return change.finish(self.file_system, device, self.device)
        last = Manifest(change.finish(self.file_system, device, self.device))
        pressed = _pressed([*self._parts[1:], last])
        pressed.late = change.late
        if pressed.records * 4 <= whole.records + _SMALL:
            return pressed.finish(self.file_system, device, whole.device)
        merged = _merged([*self._parts, last])
        merged.late = change.late
        return merged.finish(self.file_system, device, None)


def _inodes(parts: Iterable[Manifest]) -> set[int]:
    return {number for part in parts for number in part.inodes()}


def _pressed(deltas: Sequence[Manifest]) -> Builder:
    """Several deltas, each on the one before, as one on the base of the first."""
    builder = Builder()
    for inode in sorted(_inodes(deltas)):
        removed: set[Name] = set()
        added: set[Name] = set()
        for delta in deltas:
            gone = set(delta.removed(inode))
            removed |= gone - added
            added -= gone
            added.update(delta.added(inode))
        for name in removed - added:
            builder.remove(inode, name)
        for name in added - removed:
            builder.add(inode, name)
    return builder


def _merged(parts: Sequence[Manifest]) -> Builder:
    """A whole manifest and the deltas on it as a whole one."""
    builder = Builder()
    touched = _inodes(parts[1:])
    for inode, name in parts[0].all_added():
        if inode not in touched:
            builder.add(inode, name)
    names = Names(parts)
    for inode in sorted(touched):
        for name in names.of(inode):
            builder.add(inode, name)
    return builder
