"""The folder of manifests: the names of each layer's files, kept for comparisons (`thinpool.drivers.thincompare`)."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from thinpool.crashpoints import point

if TYPE_CHECKING:
    from thinpool.filesystem.ext4.manifest import Manifest

NAMES = "names"
"""The folder's name in the driver's directory."""

PART = ".part-"
"""How the name of a file begins that a process writes, or wrote when it died."""


@attrs.frozen
class ManifestFolder:
    """Where the manifests of a store's layers are.

    Attributes:
        path: the folder, which need not be there.
    """

    path: Path

    def load(self, handle: int) -> "Manifest":
        """The manifest of the layer with that number.

        Raises:
            Unfit: there is none that can be used.
        """
        from thinpool.filesystem.ext4.manifest import Manifest  # noqa: PLC0415 - only where trees are compared

        return Manifest.open(self.path / str(handle))

    def has(self, handle: int) -> bool:
        """Whether there is a file for that layer."""
        return os.path.lexists(self.path / str(handle))

    def keep(self, handle: int, data: bytes) -> None:
        """Put a manifest in its place, whole or not at all; where that cannot be, there is none.

        Nothing is synced: what a power cut leaves of it is told from a whole one by its checksums.
        """
        with suppress(OSError):
            self.path.mkdir(mode=0o700, exist_ok=True)
            fd, part = tempfile.mkstemp(prefix=PART, dir=self.path)
            point("manifest-begun")
            try:
                with open(fd, "wb") as file:
                    file.write(data)
                point("manifest-written")
                os.rename(part, self.path / str(handle))
                point("manifest-kept")
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(part)
                raise

    def forget(self, handle: int) -> None:
        """Remove the manifest of a layer that goes."""
        self._unlink(str(handle))
        point("manifest-dropped")

    def clear(self, *, parts_only: bool = False) -> None:
        """Remove all files, or those that a process left that died while it wrote."""
        with suppress(OSError):
            for name in os.listdir(self.path):
                if name.startswith(PART) or not parts_only:
                    self._unlink(name)

    def _unlink(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(self.path / name)
