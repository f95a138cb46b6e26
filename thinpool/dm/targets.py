"""Device-mapper targets as values: what a table line says, parsed and rendered exactly as the kernel prints it.

Formats: Documentation/admin-guide/device-mapper/ in the kernel tree, and the `status` functions of drivers/md/dm-*.c
for what the kernel prints. `parse_target` gives a typed target only where rendering it again gives the same text; all
else stays text, as `Unknown`. One difference is allowed: thin-pool and flakey are printed with a space at the end,
which `params` leaves out and the kernel does not ask for.

A device is a path or `major:minor`. Spaces and backslashes in a path are escaped on the way to the kernel, which splits
parameters at every byte that its isspace() knows, 0xA0 included (dm_split_args in drivers/md/dm-table.c).
"""

import re
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol, Self

import attrs

_SPECIAL = re.compile(rb"[\t-\r \xa0\\]")
_WORD = re.compile(rb"(?:\\[\x00-\xff]|[^\t-\r \xa0\\])+")
_ESCAPED = re.compile(rb"\\([\x00-\xff])")
_NUMBER_MAX = (1 << 64) - 1


class Target(Protocol):
    """What one line of a table maps its sectors to."""

    @property
    def kind(self) -> str:
        """The target's name in the kernel."""

    def params(self) -> str:
        """The parameters, as the kernel reads and prints them."""


class Malformed(ValueError):
    """Parameters that are not of the target's form."""


def _words(text: str, least: int, most: int | None = None) -> list[str]:
    raw = text.encode("utf-8", "surrogateescape")
    words = [_ESCAPED.sub(rb"\1", word).decode("utf-8", "surrogateescape") for word in _WORD.findall(raw)]
    if len(words) < least or (most is not None and len(words) > most):
        raise Malformed(text)
    return words


def _word(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    if _SPECIAL.search(raw) is None:
        return text
    return _SPECIAL.sub(rb"\\\g<0>", raw).decode("utf-8", "surrogateescape")


def _number(field: str) -> int:
    if not (field.isascii() and field.isdigit()) or (field != "0" and field.startswith("0")):
        raise Malformed(field)
    number = int(field)
    if number > _NUMBER_MAX:
        raise Malformed(field)
    return number


def _features(words: Iterable[str]) -> str:
    given = [_word(word) for word in words]
    return " ".join([str(len(given)), *given])


def _counted(fields: list[str], text: str) -> tuple[str, ...]:
    """Feature words behind their count; the count, and all, may be left out."""
    if fields and len(fields) != 1 + _number(fields[0]):
        raise Malformed(text)
    return tuple(fields[1:])


@attrs.frozen
class Linear:
    """Sectors of another device, one after the other.

    Attributes:
        device: the device below.
        start_sectors: where on it they begin.
    """

    kind: ClassVar[str] = "linear"
    device: str
    start_sectors: int = 0

    def params(self) -> str:
        """As drivers/md/dm-linear.c prints it."""
        return f"{_word(self.device)} {self.start_sectors}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        device, start = _words(text, 2, 2)
        return cls(device, _number(start))


@attrs.frozen
class Stripe:
    """One of the devices that a striped target spreads over.

    Attributes:
        device: the device below.
        start_sectors: where on it the stripe begins.
    """

    device: str
    start_sectors: int = 0


@attrs.frozen
class Striped:
    """Chunks spread over several devices in turn.

    Attributes:
        chunk_sectors: size of a chunk.
        stripes: the devices; at least one.
    """

    kind: ClassVar[str] = "striped"
    chunk_sectors: int
    stripes: tuple[Stripe, ...]

    def params(self) -> str:
        """As drivers/md/dm-stripe.c prints it."""
        devices = "".join(f" {_word(each.device)} {each.start_sectors}" for each in self.stripes)
        return f"{len(self.stripes)} {self.chunk_sectors}{devices}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        count, chunk, *rest = _words(text, 4)
        if len(rest) != 2 * _number(count):
            raise Malformed(text)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return cls(_number(chunk), tuple(Stripe(device, _number(start)) for device, start in pairs))


@attrs.frozen
class Zero:
    """Reads as zeros; what is written is forgotten."""

    kind: ClassVar[str] = "zero"

    def params(self) -> str:
        """Nothing: drivers/md/dm-zero.c takes none."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: there are any.
        """
        _words(text, 0, 0)
        return cls()


@attrs.frozen
class Error:
    """Fails every read and write."""

    kind: ClassVar[str] = "error"

    def params(self) -> str:
        """Nothing: drivers/md/dm-target.c takes none."""
        return ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: there are any.
        """
        _words(text, 0, 0)
        return cls()


@attrs.frozen
class Delayed:
    """Where one class of I/O goes, and how late.

    Attributes:
        device: the device below.
        start_sectors: where on it the target begins.
        delay_ms: milliseconds that each request waits.
    """

    device: str
    start_sectors: int
    delay_ms: int

    def params(self) -> str:
        """As drivers/md/dm-delay.c prints one class."""
        return f"{_word(self.device)} {self.start_sectors} {self.delay_ms}"


@attrs.frozen
class Delay:
    """Holds every request back for a while: a slow disk.

    Attributes:
        read: reads, and whatever has no class of its own.
        write: writes, and flushes if `flush` is None; or None.
        flush: flushes, or None.
    """

    kind: ClassVar[str] = "delay"
    read: Delayed
    write: Delayed | None = None
    flush: Delayed | None = None

    def params(self) -> str:
        """As drivers/md/dm-delay.c prints it; a class behind one that is None is not said."""
        classes = [self.read]
        if self.write is not None:
            classes += [self.write] if self.flush is None else [self.write, self.flush]
        return " ".join(each.params() for each in classes)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        fields = _words(text, 3, 9)
        if len(fields) % 3:
            raise Malformed(text)
        triples = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
        return cls(*(Delayed(device, _number(start), _number(delay)) for device, start, delay in triples))


@attrs.frozen
class Flakey:
    """A device that works for a while, and then does not.

    Attributes:
        device: the device below.
        start_sectors: where on it the target begins.
        up_seconds: how long it works.
        down_seconds: how long it then fails.
        features: what failing means, in words: `drop_writes`, `error_writes`, `corrupt_bio_byte` and its four
            arguments; none: every request fails.
    """

    kind: ClassVar[str] = "flakey"
    device: str
    start_sectors: int
    up_seconds: int
    down_seconds: int
    features: tuple[str, ...] = ()

    def params(self) -> str:
        """As drivers/md/dm-flakey.c prints it, without the space at the end."""
        where = f"{_word(self.device)} {self.start_sectors}"
        return f"{where} {self.up_seconds} {self.down_seconds} {_features(self.features)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        device, start, up, down, *rest = _words(text, 4)
        return cls(device, _number(start), _number(up), _number(down), _counted(rest, text))


@attrs.frozen
class LogWrites:
    """Passes everything on and writes every write down on a second device.

    Attributes:
        device: the device below.
        log: the device that the log is written to.
    """

    kind: ClassVar[str] = "log-writes"
    device: str
    log: str

    def params(self) -> str:
        """As drivers/md/dm-log-writes.c prints it."""
        return f"{_word(self.device)} {_word(self.log)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        device, log = _words(text, 2, 2)
        return cls(device, log)


@attrs.frozen
class SnapshotOrigin:
    """A device with old-style (not thin) snapshots, which see every write to it first.

    Attributes:
        device: the device below.
    """

    kind: ClassVar[str] = "snapshot-origin"
    device: str

    def params(self) -> str:
        """As drivers/md/dm-snap.c prints it."""
        return _word(self.device)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        (device,) = _words(text, 1, 1)
        return cls(device)


@attrs.frozen
class ThinPool:
    """A pool of blocks, with a metadata and a data device.

    Attributes:
        metadata: device of the metadata.
        data: device of the data.
        block_size_sectors: data block size.
        low_water_blocks: free blocks at which the kernel raises an event.
        features: feature words in the order given: `skip_block_zeroing`, `ignore_discard`, `no_discard_passdown`,
            `read_only`, `error_if_no_space`.
    """

    kind: ClassVar[str] = "thin-pool"
    metadata: str
    data: str
    block_size_sectors: int
    low_water_blocks: int
    features: tuple[str, ...] = ()

    def params(self) -> str:
        """As drivers/md/dm-thin.c prints it, without the space at the end."""
        devices = f"{_word(self.metadata)} {_word(self.data)}"
        return f"{devices} {self.block_size_sectors} {self.low_water_blocks} {_features(self.features)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        metadata, data, block, low_water, *rest = _words(text, 4)
        return cls(metadata, data, _number(block), _number(low_water), _counted(rest, text))


@attrs.frozen
class Thin:
    """One thin device of a pool.

    Attributes:
        pool: device of the pool.
        thin_id: its number in the pool.
        external_origin: device that unprovisioned blocks are read from, or None.
    """

    kind: ClassVar[str] = "thin"
    pool: str
    thin_id: int
    external_origin: str | None = None

    def params(self) -> str:
        """As drivers/md/dm-thin.c prints it."""
        origin = "" if self.external_origin is None else f" {_word(self.external_origin)}"
        return f"{_word(self.pool)} {self.thin_id}{origin}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read parameters.

        Raises:
            Malformed: they are of another form.
        """
        pool, number, *origin = _words(text, 2, 3)
        return cls(pool, _number(number), origin[0] if origin else None)


@attrs.frozen
class Unknown:
    """A target of another kind, or with parameters of another form: kept as it is.

    Attributes:
        kind: the target's name in the kernel.
        text: its parameters.
    """

    kind: str
    text: str

    def params(self) -> str:
        """The text."""
        return self.text


@attrs.frozen
class TableEntry:
    """One line of a table.

    Attributes:
        start_sectors: where on the device it begins, in sectors of 512 bytes.
        length_sectors: how many sectors it maps.
        target: what it maps them to.
    """

    start_sectors: int
    length_sectors: int
    target: Target


def parse_target(kind: str, text: str) -> Target:
    """A target from its name and parameters; one that would not be rendered as the same text stays text."""
    parse = _parser(kind)
    if parse is None:
        return Unknown(kind, text)
    try:
        target = parse(text)
    except Malformed:
        return Unknown(kind, text)
    same = {text, text.removesuffix(" ")} if isinstance(target, ThinPool | Flakey) else {text}
    return target if target.params() in same else Unknown(kind, text)


def _parser(kind: str) -> Callable[[str], Target] | None:
    known = (Linear, Striped, Zero, Error, Delay, Flakey, LogWrites, SnapshotOrigin, ThinPool, Thin)
    return next((target.parse for target in known if target.kind == kind), None)
