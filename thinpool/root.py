"""A store's root directory: what lies where in it, and whether a directory may become one."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import attrs

from thinpool.crashpoints import point
from thinpool.errors import ConfigError, NotPermitted

DEFAULT = Path("/var/lib/thinpool")
_DATABASE = "store.db"
_LOCK = "lock"
_MOUNTS = "mnt"
_FRESH = {"lost+found"}


@attrs.frozen
class Root:
    """The paths below a store's root."""

    path: Path

    @property
    def database(self) -> Path:
        """The records."""
        return self.path / _DATABASE

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.path / _LOCK

    @property
    def mounts(self) -> Path:
        """Private mount points, each removed with its mount."""
        return self.path / _MOUNTS

    def driver(self, name: str) -> Path:
        """A driver's own directory."""
        return self.path / name

    def is_store(self) -> bool:
        """Whether a store was made, or begun, here."""
        return self.database.is_file()

    def claim(self, drivers: frozenset[str]) -> None:
        """Make the directory a store's, or find that it is one.

        Raises:
            ConfigError: it is a file, or holds something that is no store's.
            NotPermitted: it cannot be made or written.
        """
        try:
            os.makedirs(self.path, mode=0o711, exist_ok=True)
            point("root-made")
            strange = sorted(set(os.listdir(self.path)) - self._own_names(drivers) - _FRESH)
        except FileExistsError as error:
            raise ConfigError(f"root {self.path} is not a directory") from error
        except NotADirectoryError as error:
            raise ConfigError(f"root {self.path}: a part of the path is not a directory") from error
        except OSError as error:
            raise _refused(self.path, error) from error
        if strange and not self.is_store():
            shown = ", ".join(repr(name) for name in strange[:3]) + (", ..." if len(strange) > 3 else "")
            raise ConfigError(
                f"root {self.path} is not empty and no thinpool store: it holds {shown}",
                hint="name an empty or a new directory with --root",
            )
        try:
            os.close(os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise _refused(self.path, error) from error
        point("root-claimed")

    def abandon(self) -> None:
        """Take away what `claim` and the making of records left, when making a store failed; the caller has the lock.

        What is not ours stays, and with it the directory.
        """
        for path in (self.database, *self._database_logs(), self.lock):
            path.unlink(missing_ok=True)
        for directory in (self.mounts, self.path):
            with suppress(OSError):
                directory.rmdir()

    def _database_logs(self) -> list[Path]:
        return [self.path / f"{_DATABASE}{suffix}" for suffix in ("-wal", "-shm", "-journal")]

    def _own_names(self, drivers: frozenset[str]) -> set[str]:
        return {_DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm", f"{_DATABASE}-journal", _LOCK, _MOUNTS, *drivers}


def resolve(path: str | os.PathLike[str]) -> Root:
    """The root at a path, symbolic links resolved, so that two spellings are one store.

    Raises:
        ConfigError: it exists and is not a directory.
    """
    root = Path(os.path.realpath(path))
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        return Root(root)
    except OSError as error:
        raise _refused(root, error) from error
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"root {root} is not a directory")
    return Root(root)


def _refused(path: Path, error: OSError) -> ConfigError | NotPermitted:
    if error.errno == errno.EROFS:
        return NotPermitted(f"root {path} is on a read-only file system")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return NotPermitted(f"root {path}: {error.strerror}", hint="run as root")
    return ConfigError(f"root {path}: {error.strerror}")
