"""Two ext4 layers compared on the pool's own devices, in time that grows with what differs.

The books tell which blocks two thin devices share. In what they do not share the changed inodes are looked for, and
from those, from the directories that changed and from the names of the one layer it follows where the trees may differ
(`thinpool.filesystem.ext4.scope`). The trees themselves are read from the data device too: nothing is activated,
mounted or made known to the kernel, and nobody waits for it.

**What holds the state.** Both layers are kept by whoever calls: nobody writes to them or deletes them. Then the mapping
trees below their roots do not change either (`thinpool.metadata.still`), so the one look at what is in motion is at the
books' upper levels, for the roots; it is taken as `read_books` does, and pins a metadata snapshot, under the store's
lock and for a few reads, only where the pool commits too often. Any number of comparisons can run at once.

**What two layers have in common.** Where the devices share a block, both have it from the time when they were one. That
ended when the common ancestor was complete, or later where one of the two lines begins with a checkpoint of an active
layer that the other line goes on from: when that checkpoint was made. So files that were written to just before one of
these two times, and again just after, are looked at by their content (the late inodes of those layers). Layers without
an ancestor in common share the base, which counts as one whose time is not known.

**Manifests** are in a folder `names` below the driver's directory, one file a layer, named by its number; they go with
their layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import attrs

from thinpool.drivers.base import Ancestor, Compared, Storage, Unsure
from thinpool.drivers.thinnames import ManifestFolder
from thinpool.errors import PoolFailed
from thinpool.filesystem.ext4.changed import Changed, changed_inodes, check_comparable
from thinpool.filesystem.ext4.delta import names_since
from thinpool.filesystem.ext4.entries import Difference, difference
from thinpool.filesystem.ext4.errors import Unreadable
from thinpool.filesystem.ext4.manifest import Device, Manifest, Unfit
from thinpool.filesystem.ext4.naming import Names
from thinpool.filesystem.ext4.scan import all_names
from thinpool.filesystem.ext4.scope import find_scope
from thinpool.filesystem.ext4.shared import Directories, SharingImage
from thinpool.filesystem.ext4.view import Ext4View
from thinpool.layer.xattrs import belongs
from thinpool.metadata import Books, read_books
from thinpool.metadata.still import StillMappings
from thinpool.pool.pool import ThinPool
from thinpool.pool.volume import DataDevice, ThinVolume

__all__ = ["compared"]

_ATTEMPTS = 8
"""To read the books while others change them; each is a few reads, and what comes after holds others up."""

Alone = Callable[[], AbstractContextManager[object]]


@contextmanager
def compared(
    pool: ThinPool,
    folder: ManifestFolder,
    base: Storage,
    older: Sequence[Ancestor],
    newer: Sequence[Ancestor],
    alone: Alone,
) -> Iterator[Compared]:
    """Two layers of a pool; see `thinpool.drivers.base.Comparing`.

    Args:
        pool: the pool.
        folder: where the manifests are.
        base: the storage that all layers without a parent are snapshots of.
        older: one layer and its ancestors.
        newer: the other, the same.
        alone: see `Comparing.compared`.
    """
    root = Ancestor(base, None, lasting=True)
    try:
        with ExitStack() as opened, pool.open_metadata() as metadata:
            devices = _Devices(pool, metadata, alone, opened)
            comparison = _Comparison(devices, folder, (*older, root), (*newer, root))
            try:
                found = comparison.run()
            except Unfit:  # a manifest is damaged where nobody had looked yet: without any, they are made anew
                folder.clear()
                found = comparison.run()
            yield found
    except (Unreadable, PoolFailed, Unfit) as error:
        raise Unsure(str(error)) from error


@attrs.frozen
class _Thin:
    """A thin device as the books have it."""

    root: int
    device: Device


class _Devices:
    """The thin devices of a pool that nobody writes to, opened as they are needed."""

    def __init__(self, pool: ThinPool, metadata: Path, alone: Alone, opened: ExitStack) -> None:
        self._pool = pool
        self._metadata = metadata
        self._alone = alone
        self._thins: dict[int, _Thin] = {}
        self._images: dict[int, SharingImage] = {}
        self._volumes: dict[int, ThinVolume] = {}
        self._directories = Directories()
        table = pool.table()
        self.block_size = table.block_size
        self.mappings = opened.enter_context(StillMappings.open(metadata))
        self.data = opened.enter_context(DataDevice.open(table.data))
        self._books_reads = 0
        self._books_bytes = 0

    def learn(self, handles: Iterable[int]) -> None:
        """Look up in the books what is not known yet of some devices."""
        missing = sorted(set(handles).difference(self._thins))
        if not missing:
            return

        def work(books: Books) -> dict[int, _Thin]:
            found: dict[int, _Thin] = {}
            books.read_ahead()
            for handle in missing:
                details = books.details(handle)
                device = Device(books.superblock.uuid, handle, details.transaction_id, details.creation_time)
                found[handle] = _Thin(books.mapping_root(handle), device)
            self._books_reads += books.counters.reads
            self._books_bytes += books.counters.bytes
            return found

        attempts = 0 if _may_lag(self._pool.options.mountopt) else _ATTEMPTS
        self._thins.update(read_books(self._metadata, work, pinned=self._pinned, attempts=attempts))

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        with self._alone(), self._pool.metadata_snapshot():
            yield

    def device(self, handle: int) -> Device:
        """What tells a device from all others."""
        self.learn((handle,))
        return self._thins[handle].device

    def begin(self, storages: Sequence[Storage]) -> None:
        """Read the first blocks of some devices ahead, and the upper levels of their trees, all together."""
        self.learn(storage.handle for storage in storages)
        requests = [(self._thins[storage.handle].root, (0,)) for storage in storages]
        pages: list[int] = []
        for storage, found in zip(storages, self.mappings.look_up_each(requests), strict=True):
            pages += self._volume(storage).know(0, found.get(0))
        self.data.pages.prefetch(pages)

    def image(self, storage: Storage) -> SharingImage:
        """The file system on a device."""
        found = self._images.get(storage.handle)
        if found is None:
            found = self._images[storage.handle] = SharingImage.open(self._volume(storage))
            found.directories = self._directories
        return found

    def _volume(self, storage: Storage) -> ThinVolume:
        found = self._volumes.get(storage.handle)
        if found is None:
            self.learn((storage.handle,))
            root = self._thins[storage.handle].root
            found = ThinVolume(self.mappings, root, self.data, self.block_size, storage.size)
            self._volumes[storage.handle] = found
        return found

    def differing(self, older: int, newer: int) -> Iterator[tuple[int, int]]:
        """Offsets and lengths of what two devices store at different places."""
        self.learn((older, newer))
        for part in self.mappings.difference(self._thins[older].root, self._thins[newer].root):
            yield part.start * self.block_size, part.length * self.block_size

    def reads(self) -> int:
        """How many reads there were so far."""
        return self.mappings.counters.reads + self.data.counters.reads + self._books_reads

    def bytes(self) -> int:
        """How many bytes these gave."""
        return self.mappings.counters.bytes + self.data.counters.bytes + self._books_bytes


def _may_lag(mount_options: str) -> bool:
    """Whether file systems do not flush their device, so that the pool commits later than they are unmounted."""
    return not {"nobarrier", "barrier=0"}.isdisjoint(mount_options.split(","))


class _Comparison:
    def __init__(
        self, devices: _Devices, folder: ManifestFolder, older: Sequence[Ancestor], newer: Sequence[Ancestor]
    ) -> None:
        self._devices = devices
        self._folder = folder
        self._older = older
        self._newer = newer
        self._found: dict[int, Names] = {}

    def run(self) -> Compared:
        self._found.clear()
        older, newer = self._older, self._newer
        ours, theirs = _handles(older), _handles(newer)
        shared = set(theirs).intersection(ours)
        common = next(index for index, handle in enumerate(ours) if handle in shared)
        other_common = theirs.index(ours[common])
        parted = _first_complete(older[common - 1 : common], newer[other_common - 1 : other_common])
        self._devices.begin([line[0].storage for line in (older, newer, older[common:])])

        settled_ns = older[common].complete_ns
        named, other = older, newer
        if common and (not other_common or (newer[0].lasting and not older[0].lasting)):
            named, other = newer, older
        late = set(self._names(older[common:]).late())
        if parted is not None and common and other_common:
            line = older if parted in older else newer
            late.update(self._names(line[line.index(parted) :]).late())
        names = self._names(named)
        changed = self._changed(named[0].storage, other[0].storage, late, settled_ns)
        first, second = self._devices.image(named[0].storage), self._devices.image(other[0].storage)
        entries = difference(first, second, changed, removed_trees=False)
        scope = find_scope(first, second, names, changed, entries)
        views = [Ext4View(self._devices.image(line[0].storage), belongs) for line in (older, newer)]
        return Compared(views[0], views[1], scope, settled_ns, self._devices.reads, self._devices.bytes)

    def _changed(
        self, older: Storage, newer: Storage, late: Iterable[int], settled_ns: int | None
    ) -> Mapping[int, Changed]:
        first, second = self._devices.image(older), self._devices.image(newer)
        check_comparable(first, second)
        differing = self._devices.differing(older.handle, newer.handle)
        return changed_inodes(first, second, differing, late, settled_ns)

    # -- names

    def _names(self, line: Sequence[Ancestor]) -> Names:
        """The names in the first layer of a line: as they were kept, or by what differs from an ancestor's."""
        layer = line[0]
        found = self._found.get(layer.storage.handle) or self._kept(layer.storage)
        if found is None:
            found = self._make(line)
        self._found[layer.storage.handle] = found
        return found

    def _make(self, line: Sequence[Ancestor]) -> Names:
        layer = line[0]
        image = self._devices.image(layer.storage)
        device = self._devices.device(layer.storage.handle)
        data = None
        for above in line[1:]:
            base = self._kept(above.storage) if _is_before(above, layer) else None
            if base is not None:
                data = self._extended(base, above, layer)
                break
        if data is None:
            data = all_names(image, layer.complete_ns).finish(image.superblock.uuid, device, None)
            parts = Names([Manifest(data)])
        else:
            parts = Names.find(device, image.superblock.uuid, self._loader(layer.storage.handle, data))
        if layer.lasting:
            self._folder.keep(layer.storage.handle, data)
        return parts

    def _kept(self, storage: Storage) -> Names | None:
        """The names of a layer that were kept; None, and the file gone, where they are of no use."""
        if not self._folder.has(storage.handle):
            return None
        try:
            uuid = self._devices.image(storage).superblock.uuid
            return Names.find(self._devices.device(storage.handle), uuid, self._folder.load)
        except Unfit:
            self._folder.forget(storage.handle)
            return None

    def _loader(self, handle: int, data: bytes) -> Callable[[int], Manifest]:
        return lambda wanted: Manifest(data) if wanted == handle else self._folder.load(wanted)

    def _extended(self, base: Names, above: Ancestor, layer: Ancestor) -> bytes:
        """The manifest of a layer by what differs from an ancestor."""
        late = base.late()
        changed = self._changed(above.storage, layer.storage, late, above.complete_ns)
        first, second = self._devices.image(above.storage), self._devices.image(layer.storage)
        entries: Difference = difference(first, second, changed, removed_trees=True)
        since = names_since(first, second, changed, entries, late, layer.complete_ns)
        return base.extended(since, self._devices.device(layer.storage.handle))


def _handles(line: Sequence[Ancestor]) -> list[int]:
    return [ancestor.storage.handle for ancestor in line]


def _first_complete(*lines: Sequence[Ancestor]) -> Ancestor | None:
    """Of the layers right below the common one, the committed one that was complete first."""
    found = [ancestor for line in lines for ancestor in line if ancestor.lasting and ancestor.complete_ns is not None]
    return min(found, key=lambda ancestor: ancestor.complete_ns or 0, default=None)


def _is_before(above: Ancestor, layer: Ancestor) -> bool:
    """Whether an ancestor was complete first by the clock too, which may have been set back."""
    return above.complete_ns is None or layer.complete_ns is None or above.complete_ns <= layer.complete_ns
