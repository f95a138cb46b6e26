"""The thin devices of one pool: made, snapshotted, activated, deactivated, deleted.

A device's name is the store's prefix and its number, its uuid says the same, and none is touched that has not our uuid.
Messages are whole or not at all, and durable when they return; what a process that dies leaves is at worst a device
without a table, which the next activation takes away, or one that is suspended, which `resume_held` mends.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress

from thinpool.crashpoints import point
from thinpool.dm import Control, DeviceInfo, TableEntry, Thin, thin
from thinpool.dm.device import create_device, remove_device
from thinpool.errors import DeviceMapperError, LayerInUse, PoolFailed, PoolFull
from thinpool.filesystem import holders
from thinpool.pool.devices import find_device, find_number
from thinpool.pool.health import trouble
from thinpool.pool.holding import Holder
from thinpool.pool.written import WriteNotes
from thinpool.units import to_sectors

_ATTEMPTS = 5


class ThinIdTaken(Exception):
    """A thin device of that number exists."""


class ThinDevices:
    """The thin devices of one store in one pool.

    Args:
        control: the device-mapper control device.
        pool: the pool's device-mapper name.
        prefix: of the devices' names, as in `thinpool-3f9a1c02b7aa`.
        holder: holds devices that are copied while they are in use.
        deferred: tells whether a device in use goes when its last user lets go.
        notes: notes of the devices that much was written to, or None where nobody asks for them.
        block_size: bytes of the pool's data block.

    Attributes:
        holder: the holder.
        notes: the notes.
    """

    def __init__(
        self,
        control: Control,
        pool: str,
        prefix: str,
        holder: Holder,
        deferred: Callable[[], bool],
        *,
        notes: WriteNotes | None,
        block_size: int,
    ) -> None:
        self._control = control
        self._pool = pool
        self._prefix = prefix
        self._uuid = f"THINPOOL-{prefix.removeprefix('thinpool-')}"
        self._deferred = deferred
        self._block_size = block_size
        self.holder = holder
        self.notes = notes

    def close(self) -> None:
        """Let go of what this process holds; devices stay."""
        self.holder.close()
        if self.notes is not None:
            self.notes.close()

    # -- active or not

    def name(self, thin_id: int) -> str:
        """The name of a thin device."""
        return f"{self._prefix}-{thin_id}"

    def uuid(self, thin_id: int) -> str:
        """The device-mapper uuid of a thin device."""
        return f"{self._uuid}-{thin_id}"

    def activate(self, thin_id: int, size: int, *, read_only: bool = False) -> DeviceInfo:
        """Activate a thin device, or find it active.

        Args:
            thin_id: its number.
            size: its size in bytes.
            read_only: nothing can be written to it; says nothing about one that is active already.

        Raises:
            PoolFailed: the pool is inactive or has failed, or a device that is not ours has the name.
        """
        name, uuid = self.name(thin_id), self.uuid(thin_id)
        entry = TableEntry(0, to_sectors(size), Thin(self._pool_number(), thin_id))
        for _ in range(_ATTEMPTS):
            try:
                return create_device(self._control, name, [entry], uuid=uuid, read_only=read_only)
            except DeviceMapperError as error:
                if error.errno not in {errno.EBUSY, errno.EEXIST}:
                    raise self._explained(error) from error
            info = self._taken(name, uuid)
            if info is not None:
                return info
        raise PoolFailed(f"device {name} cannot be activated: it comes and goes", hint="another process uses it")

    def _pool_number(self) -> str:
        """The pool's major:minor, asked for each time: another process may have activated it anew."""
        info = find_device(self._control, self._pool)
        if info is None or not info.active:
            raise PoolFailed(f"pool {self._pool} is not active", hint="thinpool up")
        return f"{info.major}:{info.minor}"

    def _taken(self, name: str, uuid: str) -> DeviceInfo | None:
        """The device that has a name already, if it is ours and serves."""
        info = find_device(self._control, name)
        if info is None:
            return None
        if info.uuid != uuid:
            raise PoolFailed(f"a device named {name} exists and is not ours (its uuid is {info.uuid!r})")
        if not info.active:
            with suppress(DeviceMapperError):  # left without a table by a process that died
                remove_device(self._control, name)
            return None
        if info.deferred_remove:
            with suppress(DeviceMapperError):  # gone just now
                self._control.message(name, "@cancel_deferred_remove")
            return None if find_device(self._control, name) is None else info
        return info

    def deactivate(self, thin_id: int) -> bool:
        """Deactivate a thin device; False where somebody uses it, and it goes when they let go, or not, by option."""
        info = self._observed(thin_id)
        if info is None:
            return True
        try:
            info = remove_device(self._control, info.name, deferred=self._deferred())
        except DeviceMapperError as error:
            if error.errno == errno.ENXIO:
                return True
            if error.errno == errno.EBUSY:
                return False
            raise
        if info.deferred_remove and self.notes is not None:
            self.notes.note(thin_id)  # nobody looks when it goes
        return not info.deferred_remove

    def _observed(self, thin_id: int) -> DeviceInfo | None:
        """A device's state, None where it is not active; with a note if much was written to it."""
        info = find_device(self._control, self.name(thin_id))
        if info is not None and self.notes is not None and not info.read_only:
            self.notes.observe(thin_id, (info.major, info.minor), self._block_size)
        return info

    def active(self) -> list[int]:
        """The thin devices that are active, by number."""
        uuids = self._named()
        return [number for number, uuid in uuids.items() if uuid in {None, self.uuid(number)}]

    def named(self) -> list[int]:
        """The numbers of all devices that have a name of ours, whoever made them."""
        return list(self._named())

    def _named(self) -> dict[int, str | None]:
        """The uuids of those devices, by number; None from a kernel that lists no uuids."""
        start = f"{self._prefix}-"
        return {
            int(tail): entry.uuid
            for entry in self._control.devices()
            if (tail := entry.name.removeprefix(start)) != entry.name and tail.isdecimal()
        }

    def is_active(self, thin_id: int) -> bool:
        """Whether a thin device is active, or begun to be."""
        return find_device(self._control, self.name(thin_id)) is not None

    def in_use(self, thin_id: int) -> DeviceInfo | None:
        """The state of a thin device that is active and that somebody uses; else None."""
        info = find_device(self._control, self.name(thin_id))
        return info if info is not None and info.open_count > 0 else None

    def users(self, thin_id: int) -> Iterator[holders.Holder]:
        """Who uses a thin device; nobody where it is not active."""
        info = find_device(self._control, self.name(thin_id))
        if info is not None:
            yield from holders.of_device((info.major, info.minor))

    def busy(self, thin_id: int, *, hint: str | None = None) -> LayerInUse:
        """The error that names them: `device NAME is in use: mounted on /mnt`."""
        return holders.in_use(f"device {self.name(thin_id)} is in use", self.users(thin_id), hint=hint)

    def number_of(self, device: tuple[int, int]) -> int | None:
        """The number of the thin device at (major, minor); None where that is none of ours."""
        info = find_number(self._control, device)
        tail = "" if info is None else info.uuid.removeprefix(f"{self._uuid}-")
        return int(tail) if info is not None and tail != info.uuid and tail.isdigit() else None

    def resume_held(self) -> None:
        """Resume the device that a process that died was holding; what others suspended is theirs."""
        thin_id = self.holder.left()
        if thin_id:
            info = find_device(self._control, self.name(thin_id))
            self.holder.resume(info if info is not None and info.uuid == self.uuid(thin_id) else None)

    # -- in the pool

    def create(self, thin_id: int) -> None:
        """Make an empty thin device.

        Raises:
            ThinIdTaken: there is one of that number.
            PoolFull, PoolFailed: the pool cannot take it.
        """
        self._send(f"create_thin {thin_id}")

    def snapshot(self, thin_id: int, origin: int, *, quiesce: bool) -> None:
        """Make a snapshot of a thin device.

        Args:
            thin_id: the snapshot's number.
            origin: the number of the device to copy.
            quiesce: suspend the origin for the moment, if it is active, which freezes its file system; needed where
                anybody can write to it.

        Raises:
            ThinIdTaken: there is one of that number.
            LayerInUse: somebody else holds the origin's file system frozen, or the device suspended.
            PoolFull, PoolFailed: the pool cannot take it, or has no such origin; or the origin was resumed too early.
        """
        text = f"create_snap {thin_id} {origin}"
        info = self._observed(origin) if quiesce else None
        if info is None:
            self._send(text)
        elif info.suspended:  # the kernel would not say so, and our resume would end it
            raise LayerInUse(
                f"device {info.name} is held suspended by somebody else", hint=f"dmsetup resume {info.name} ends that"
            )
        else:
            try:
                with self.holder.held(origin, self.name(origin)):
                    self._control.message(self._pool, text)
            except DeviceMapperError as error:
                if error.ioctl == "DM_DEV_SUSPEND" and error.errno == errno.ENXIO:  # its last user let go just now
                    self._send(text)
                else:
                    raise self._refused(text, error) from error
            self._check_committed()
        if quiesce and self.notes is not None and self.notes.has(origin):  # the copy may be what remains of it
            self.notes.note(thin_id)

    def delete(self, thin_id: int) -> bool:
        """Delete a thin device that is not active; False where there is none.

        Raises:
            DeviceMapperError: EBUSY, where it is active.
            PoolFailed: the pool takes no changes.
        """
        point("thin-delete")
        try:
            thin.delete_thin(self._control, self._pool, thin_id)
        except DeviceMapperError as error:
            if error.errno != errno.ENODATA:
                raise self._explained(error) from error
            found = False
        else:
            found = True
            point("thin-deleted")
            self._check_committed()
        if self.notes is not None:  # also where it was gone: who deleted it may have died before this
            self.notes.forget(thin_id)
        point("thin-forgotten")
        return found

    def _send(self, text: str) -> None:
        point("thin-make")
        try:
            self._control.message(self._pool, text)
        except DeviceMapperError as error:
            raise self._refused(text, error) from error
        point("thin-made")
        self._check_committed()

    def _refused(self, text: str, error: DeviceMapperError) -> Exception:
        """What it means that the pool does not take a message."""
        if error.errno == errno.EEXIST:
            return ThinIdTaken(text)
        if error.errno == errno.ENODATA:
            return PoolFailed(f"pool {self._pool} has no thin device {text.rpartition(' ')[2]}")
        return self._explained(error)

    def _check_committed(self) -> None:
        """Raise PoolFailed where what a message did was not written.

        The kernel commits after each message, and answers that the message was carried out even if the commit failed
        (`pool_message` in drivers/md/dm-thin.c): the pool's mode tells.
        """
        found = trouble(self._pool, thin.pool_status(self._control, self._pool))
        if isinstance(found, PoolFailed):
            raise found

    def _explained(self, error: DeviceMapperError) -> PoolFailed | PoolFull | DeviceMapperError:
        """The pool's trouble, where it has one; else what the errno means for a pool."""
        if error.errno == errno.EBUSY:
            return error
        with suppress(DeviceMapperError):
            found = trouble(self._pool, thin.pool_status(self._control, self._pool))
            if found is not None:
                return found
        if error.errno == errno.ENOSPC:
            return PoolFull(error.message, hint="thinpool grow --metadata SIZE, or rm layers that are not needed")
        if error.errno == errno.ENXIO:
            return PoolFailed(f"pool {self._pool} is not active", hint="thinpool up")
        if error.errno in {errno.EIO, errno.EOPNOTSUPP, errno.EROFS, errno.ENODATA}:
            return PoolFailed(error.message)
        return error
