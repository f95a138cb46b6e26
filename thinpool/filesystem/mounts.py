"""Mounts: detached ones made by file descriptor, attached ones, and the mount table."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from thinpool.errors import MountError
from thinpool.filesystem import syscalls as sys

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MESSAGE_BYTES = 4096


@attrs.frozen
class MountEntry:
    """One line of a mountinfo file (proc_pid_mountinfo(5)), of what a store needs to know.

    Attributes:
        mount_id: unique among the mounts of the moment.
        device: (major, minor) of the mounted file system.
        root: the path within the file system that is mounted.
        target: where it is mounted.
        read_only: the mount itself is read-only.
        fs_type: type of the file system.
        source: what the mounter named as the source.
    """

    mount_id: int
    device: tuple[int, int]
    root: str
    target: Path
    read_only: bool
    fs_type: str
    source: str


def mount_table(path: str = "/proc/self/mountinfo") -> Iterator[MountEntry]:
    """The mounts of this process's mount namespace, in the order they were made."""
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    for line in lines:
        yield parse_mountinfo(line)


def mount_of(fd: int) -> MountEntry | None:
    """The mount that an open file was reached through; None where it is in no table of this process."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    return next((entry for entry in mount_table() if entry.mount_id == number), None)


def everywhere(device: tuple[int, int]) -> Iterator[MountEntry]:
    """The mounts of one file system in every mount namespace that a visible process is in.

    Not seen are mounts that no process has in its table: detached ones, and those of a namespace that only a bind mount
    keeps alive. A process that changed its root sees less than others of its namespace, so its table is one more.
    """
    word = b" %d:%d " % device
    seen: set[tuple[int, int, int]] = set()
    for process in ["self", *filter(str.isdigit, os.listdir("/proc"))]:
        try:
            root = os.stat(f"/proc/{process}/root")
            table = os.stat(f"/proc/{process}/ns/mnt").st_ino, root.st_dev, root.st_ino
            if table in seen:
                continue
            seen.add(table)
            with open(f"/proc/{process}/mountinfo", "rb") as file:
                text = file.read()
        except OSError:  # it ended
            continue
        if word in text:
            yield from (parse_mountinfo(line) for line in text.splitlines() if word in line)


def clone(fd: int, *, read_only: bool, said: str) -> int:
    """Mount an open directory nowhere, for another place: a file descriptor that holds a private mount of it.

    What the mount that it was reached through forbids (devices, set-user-ID, execution) is allowed in the new one,
    unless the kernel keeps that from us.

    Args:
        fd: the directory.
        read_only: writes through the mount are refused.
        said: what the error calls the directory.

    Raises:
        MountError: it cannot be.
    """
    wanted = sys.MOUNT_ATTR_NOATIME | (sys.MOUNT_ATTR_RDONLY if read_only else 0)
    unwanted = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV | sys.MOUNT_ATTR_NOEXEC | sys.MOUNT_ATTR_NOSYMFOLLOW
    mount = -1
    try:
        mount = sys.open_tree(fd, "", clone=True)
        for clear in (unwanted | (0 if read_only else sys.MOUNT_ATTR_RDONLY), 0):
            try:
                sys.mount_setattr(
                    mount,
                    set_attributes=wanted,
                    clear_attributes=clear | sys.MOUNT_ATTR__ATIME,
                    propagation=sys.MS_PRIVATE,
                )
            except PermissionError:  # locked by the namespace that gave us the mount
                if not clear:
                    raise
            else:
                break
    except OSError as error:
        if mount >= 0:
            os.close(mount)
        raise MountError(f"cannot mount {said}: {os.strerror(error.errno or 0)}") from error
    return mount


def parse_mountinfo(line: bytes) -> MountEntry:
    """One mountinfo line as a value."""
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    fs_type, source = after.split(b" ")[:2]
    major, _, minor = fields[2].partition(b":")
    return MountEntry(
        mount_id=int(fields[0]),
        device=(int(major), int(minor)),
        root=_unescape(fields[3]),
        target=Path(_unescape(fields[4])),
        read_only=b"ro" in fields[5].split(b","),
        fs_type=_unescape(fs_type),
        source=_unescape(source),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def detached_mount(fs_type: str, source: str, options: Sequence[str] = (), *, read_only: bool = False) -> int:
    """Mount a file system nowhere: a file descriptor that holds it, in nobody's mount table, gone with the process.

    Args:
        fs_type: as in mount -t.
        source: the device, or what stands for it.
        options: `key=value` or `key`, as in mount -o, each one a superblock option.
        read_only: writes through this mount are refused; whether the superblock is read-only is the option `ro`.

    Raises:
        MountError: with the kernel's own words where it has any.
    """
    attributes = sys.MOUNT_ATTR_NOATIME | (sys.MOUNT_ATTR_RDONLY if read_only else 0)
    try:
        context = sys.fsopen(fs_type)
    except OSError as error:
        reason = "the kernel has no such file system" if error.errno == errno.ENODEV else error.strerror
        raise MountError(f"cannot mount {fs_type} from {source}: {reason}") from error
    try:
        return mount_context(context, source, options, attributes)
    except OSError as error:
        said = "; ".join(_messages(context))
        detail = f"{os.strerror(error.errno or 0)}{f' ({said})' if said else ''}"
        raise MountError(f"cannot mount {fs_type} from {source}: {detail}") from error
    finally:
        os.close(context)


def mount_context(context: int, source: str, options: Sequence[str], attributes: int) -> int:
    """A detached mount of an empty file-system context, as of fsopen(2); source and options as for `detached_mount`.

    Raises:
        OSError: as fsconfig(2) and fsmount(2).
    """
    sys.fsconfig(context, sys.FSCONFIG_SET_STRING, "source", source)
    for option in options:
        key, equals, value = option.partition("=")
        if equals:
            sys.fsconfig(context, sys.FSCONFIG_SET_STRING, key, value)
        else:
            sys.fsconfig(context, sys.FSCONFIG_SET_FLAG, key)
    sys.fsconfig(context, sys.FSCONFIG_CMD_CREATE)
    return sys.fsmount(context, attributes)


def _messages(context: int) -> Iterator[str]:
    """What the kernel logged to a file-system context; each read gives one message, `e` before an error."""
    while True:
        try:
            message = os.read(context, _MESSAGE_BYTES)
        except OSError:
            return
        if not message:
            return
        yield os.fsdecode(message).strip().removeprefix("e ").removeprefix("w ")


def open_target(target: Path) -> int:
    """Open a directory to mount on, without following a symbolic link at its end.

    Raises:
        MountError: missing, no directory, or not accessible.
    """
    try:
        return os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MountError(f"mount target {target} does not exist", hint=f"mkdir -p {target}") from error
    except NotADirectoryError as error:
        raise MountError(f"mount target {target} is not a directory") from error
    except OSError as error:
        raise MountError(f"mount target {target}: {error.strerror}") from error


def attach(mount_fd: int, directory: int, target: Path) -> None:
    """Move a detached mount onto an open directory; what is mounted in it later propagates to no other namespace.

    Where the mount of the directory is shared, its peers get the mount too, and lose it with ours
    (mount_namespaces(7)); it becomes shared itself by the move, so it is made private after it.

    Raises:
        MountError: the directory, which the message calls `target`, cannot be mounted on.
    """
    try:
        sys.move_mount(mount_fd, directory)
        sys.mount_setattr(mount_fd, propagation=sys.MS_PRIVATE, recursive=True)
    except OSError as error:
        raise MountError(f"cannot mount on {target}: {os.strerror(error.errno or 0)}") from error


def unmount(target: Path) -> None:
    """Undo the topmost mount at a target.

    Raises:
        LayerInUse: somebody works in it; the message names who.
        MountError: nothing is mounted there.
    """
    try:
        sys.umount(str(target))
    except OSError as error:
        if error.errno == errno.EBUSY:
            from thinpool.filesystem import holders  # noqa: PLC0415 - for this error only

            hint = "end that, or let it keep what it has: thinpool umount --lazy"
            raise holders.in_use(f"{target} is busy", holders.of_mount(target), hint=hint) from error
        if error.errno in {errno.EINVAL, errno.ENOENT}:
            raise MountError(f"nothing is mounted on {target}") from error
        raise MountError(f"cannot unmount {target}: {os.strerror(error.errno or 0)}") from error


def detach(target: Path) -> None:
    """Take the topmost mount off a target, with all that is mounted below it, whoever is at work in it.

    Nobody finds it by its path any more; who has something of it keeps that, and the file system is unmounted when the
    last one lets go (MNT_DETACH in umount(2)).

    Raises:
        MountError: nothing is mounted there.
    """
    try:
        sys.umount(str(target), sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
    except OSError as error:
        raise MountError(f"cannot detach {target}: {os.strerror(error.errno or 0)}") from error
