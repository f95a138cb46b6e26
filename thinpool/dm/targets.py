"""Device-mapper targets as values: what a table line says, parsed and rendered exactly as the kernel prints it.

Formats: Documentation/admin-guide/device-mapper/ in the kernel tree, and the `status` functions of drivers/md/dm-*.c.
"""

from typing import ClassVar, Protocol, Self

import attrs


class Target(Protocol):
    """What one line of a table maps its sectors to."""

    @property
    def kind(self) -> str:
        """The target's name in the kernel."""

    def params(self) -> str:
        """The parameters, as the kernel reads and prints them."""


class Malformed(ValueError):
    """Parameters that are not of the target's form."""


def _fields(text: str, least: int, most: int | None = None) -> list[str]:
    fields = text.split(" ")
    if "" in fields or len(fields) < least or (most is not None and len(fields) > most):
        raise Malformed(text)
    return fields


def _number(field: str) -> int:
    if not (field.isascii() and field.isdigit()) or (field != "0" and field.startswith("0")):
        raise Malformed(field)
    return int(field)


@attrs.frozen
class ThinPool:
    """A pool of blocks, with a metadata and a data device.

    Attributes:
        metadata: device of the metadata, a path or major:minor.
        data: device of the data.
        block_size_sectors: data block size.
        low_water_blocks: free blocks at which the kernel raises an event.
        features: feature words in the order given.
    """

    kind: ClassVar[str] = "thin-pool"
    metadata: str
    data: str
    block_size_sectors: int
    low_water_blocks: int
    features: tuple[str, ...] = ()

    def params(self) -> str:
        """As drivers/md/dm-thin.c prints it."""
        count = f"{len(self.features)}{''.join(f' {word}' for word in self.features)}"
        return f"{self.metadata} {self.data} {self.block_size_sectors} {self.low_water_blocks} {count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters."""
        fields = _fields(text.removesuffix(" "), 4)
        count = _number(fields[4]) if len(fields) > 4 else 0
        if len(fields) > 4 and len(fields) != 5 + count:
            raise Malformed(text)
        return cls(fields[0], fields[1], _number(fields[2]), _number(fields[3]), tuple(fields[5:]))


@attrs.frozen
class Thin:
    """One thin device of a pool.

    Attributes:
        pool: device of the pool, a path or major:minor.
        thin_id: its number in the pool.
        external_origin: device that unprovisioned blocks are read from, or None.
    """

    kind: ClassVar[str] = "thin"
    pool: str
    thin_id: int
    external_origin: str | None = None

    def params(self) -> str:
        """As drivers/md/dm-thin.c prints it."""
        return f"{self.pool} {self.thin_id}" + (f" {self.external_origin}" if self.external_origin else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters."""
        fields = _fields(text, 2, 3)
        return cls(fields[0], _number(fields[1]), fields[2] if len(fields) == 3 else None)


@attrs.frozen
class Unknown:
    """A target of another kind, or with parameters that we do not know: kept as it is."""

    kind: str
    text: str

    def params(self) -> str:
        """The text."""
        return self.text


@attrs.frozen
class TableEntry:
    """One line of a table; start and length in 512-byte sectors."""

    start_sectors: int
    length_sectors: int
    target: Target


_KNOWN: dict[str, type[ThinPool] | type[Thin]] = {"thin-pool": ThinPool, "thin": Thin}


def parse_target(kind: str, text: str) -> Target:
    """A target from its name and parameters; one that we cannot render exactly again stays text."""
    known = _KNOWN.get(kind)
    if known is not None:
        try:
            target = known.parse(text)
        except Malformed:
            return Unknown(kind, text)
        if target.params() == text.removesuffix(" "):
            return target
    return Unknown(kind, text)
