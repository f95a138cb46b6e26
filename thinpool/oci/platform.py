"""What an image runs on, in the words of Go (config.md: `GOOS`, `GOARCH`; image-index.md, "Platform Variants")."""

import os
from collections.abc import Sequence

import attrs

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown
from thinpool.oci.documents import Node

_LINUX = "linux"
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv5l": ("arm", "v5"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
_ARM_ORDER = ("v8", "v7", "v6", "v5")


@attrs.frozen
class Platform:
    """One platform.

    Attributes:
        architecture: as Go names it.
        os: likewise.
        variant: of the processor, or empty.
    """

    architecture: str
    os: str = _LINUX
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @classmethod
    def parse(cls, text: str) -> "Platform":
        """Read `linux/arm64` or `linux/arm/v7`.

        Raises:
            ArchiveError: it has another form.
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ArchiveError(f"platform {shown(text)}: accepted is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")
        return cls(parts[1], parts[0], *parts[2:])

    @classmethod
    def read(cls, node: Node) -> "Platform":
        """The platform that an object names; parts that are missing are empty."""
        return cls(node.text("architecture", ""), node.text("os", ""), node.text("variant", ""))

    def members(self) -> dict[str, object]:
        """The members of an object that names it."""
        named: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        return named | {"variant": self.variant} if self.variant else named

    def rank(self, wanted: "Platform") -> int | None:
        """How well an image for this platform runs on another: 0 is best; None where it does not."""
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return None
        if self.variant == wanted.variant:
            return 0
        if self.architecture != "arm":
            return 1
        order: Sequence[str] = _ARM_ORDER[_index(wanted.variant) :]
        return 1 + order.index(self.variant or "v7") if (self.variant or "v7") in order else None


def this_machine() -> Platform:
    """The platform that we run on."""
    machine = os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(architecture, variant=variant)


def _index(variant: str) -> int:
    return _ARM_ORDER.index(variant) if variant in _ARM_ORDER else 1
