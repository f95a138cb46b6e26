"""The options of a thin pool: Docker's names, one definition each, with the kernel's limits.

`PoolOptions.parse` reads them, `in_force` gives the canonical text of those that mean something for the pool (what is
recorded and shown), `reconcile` compares recorded ones with those that a later open names.
"""

import enum
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import attrs

from thinpool.errors import ConfigError
from thinpool.pool import values
from thinpool.units import GIB, KIB, MIB

BLOCK_SIZE_STEP = 64 * KIB  # DATA_DEV_BLOCK_SIZE_MIN_SECTORS, drivers/md/dm-thin.c
BLOCK_SIZE_MAX = GIB  # DATA_DEV_BLOCK_SIZE_MAX_SECTORS
METADATA_MIN = 2 * MIB
METADATA_MAX = 16 * GIB  # THIN_METADATA_MAX_SECTORS, drivers/md/dm-thin-metadata.h, rounded up
SIZE_MAX = 1 << 60  # what ext4 can have; far beyond what a kernel can count in a pool's metadata
METADATA_STEP = 4 * KIB
_DRIVERS = {"btrfs": "btrfs", "overlay": "overlay", "aufs": "aufs"}


class Way(enum.Enum):
    """What a pool lies on."""

    FILES = "loop files"
    DEVICES = "block devices"
    FOREIGN = "a pool made elsewhere"


class Later(enum.Enum):
    """What an open after the first may do to an option."""

    CHANGE = "change"
    GROW = "grow"
    KEEP = "keep"


_EVERY = frozenset(Way)
_OWN = frozenset({Way.FILES, Way.DEVICES})


@attrs.frozen
class Option:
    """One option.

    Attributes:
        key: its name, as in `dm.basesize`.
        read: text to value; `thinpool.pool.values.Refused` where it is not accepted.
        show: value to canonical text.
        later: what a later open may do: `change` it, `grow` it, or `keep` it as it was.
        ways: the kinds of pool that it means something for.
        help: one line for people.
    """

    key: str
    read: Callable[[str], Any]
    show: Callable[[object], str]
    later: str
    ways: frozenset[Way]
    help: str


def _option(
    default: str,
    read: Callable[[str], Any],
    show: Callable[[object], str],
    later: Later,
    text: str,
    ways: Collection[Way] = _EVERY,
) -> Any:
    return attrs.field(
        default=read(default),
        metadata={"option": Option("", read, show, later.value, frozenset(ways), text)},
    )


@attrs.frozen(kw_only=True)
class PoolOptions:
    """The options of one pool, parsed; sizes in bytes."""

    basesize: int = _option(
        "10G",
        values.size(16 * MIB, SIZE_MAX, 4 * KIB),
        values.show_size,
        Later.GROW,
        "size of a layer's file system",
    )
    loopdatasize: int = _option(
        "100G",
        values.size(64 * MIB, SIZE_MAX),
        values.show_size,
        Later.GROW,
        "size of the sparse data file",
        {Way.FILES},
    )
    loopmetadatasize: int = _option(
        "2G",
        values.size(METADATA_MIN, METADATA_MAX, METADATA_STEP),
        values.show_size,
        Later.GROW,
        "size of the sparse metadata file",
        {Way.FILES},
    )
    datadev: str | None = _option(
        "", values.device, values.show, Later.KEEP, "block device for the pool's data", {Way.DEVICES}
    )
    metadatadev: str | None = _option(
        "", values.device, values.show, Later.KEEP, "block device for the pool's metadata", {Way.DEVICES}
    )
    thinpooldev: str | None = _option(
        "", values.pool_device, values.show, Later.KEEP, "a pool made elsewhere, e.g. by LVM", {Way.FOREIGN}
    )
    blocksize: int = _option(
        "64K",
        values.size(BLOCK_SIZE_STEP, BLOCK_SIZE_MAX, BLOCK_SIZE_STEP),
        values.show_size,
        Later.KEEP,
        "the pool's data block size",
        _OWN,
    )
    fs: str = _option(
        "ext4", values.choice("ext4", "xfs"), values.show, Later.KEEP, "file system of the layers: ext4 or xfs"
    )
    mkfsarg: str = _option("", values.words, values.show, Later.KEEP, "more arguments for mkfs")
    mountopt: str = _option(
        "", values.mount_options, values.show, Later.CHANGE, "more mount options of the layers, comma-separated"
    )
    blkdiscard: bool = _option(
        "true",
        values.truth,
        values.show,
        Later.CHANGE,
        "give a large layer's blocks back to the device below when it is removed, and pass on discards of layers",
    )
    min_free_space: int = _option(
        "10%",
        values.percent(0, 99),
        values.show_percent,
        Later.CHANGE,
        "free data or metadata below which no layer is begun",
    )
    use_deferred_removal: bool = _option(
        "true",
        values.truth,
        values.show,
        Later.CHANGE,
        "a device in use goes when its last user lets go; else it stays active",
    )
    use_deferred_deletion: bool = _option(
        "true",
        values.truth,
        values.show,
        Later.CHANGE,
        "a layer that others still have mounted, in another mount namespace, can be removed, and its storage goes with"
        " its last user; else that is an error",
    )
    thinp_autoextend_threshold: int = _option(
        "80",
        values.percent(1, 100),
        values.show,
        Later.CHANGE,
        "percentage of data in use at which the kernel tells, and info warns, that the pool is to be extended",
        _OWN,
    )
    thinp_autoextend_percent: int = _option(
        "20",
        values.percent(1, 999),
        values.show,
        Later.CHANGE,
        "by how many percent a monitor is to extend it; nothing extends it by itself",
        _OWN,
    )
    error_if_no_space: bool = _option(
        "true",
        values.truth,
        values.show,
        Later.CHANGE,
        "a full pool fails writes at once; else it holds them back, for a minute",
        _OWN,
    )

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """Read options, with white space around a value ignored.

        Raises:
            ConfigError: an unknown key, a value that is not accepted, or options that contradict each other.
        """
        options = cls(**_read(given))
        _check_way(options, given)
        _check_pair(options)
        return options

    @property
    def way(self) -> Way:
        """What the pool lies on."""
        if self.thinpooldev:
            return Way.FOREIGN
        return Way.DEVICES if self.datadev or self.metadatadev else Way.FILES

    def to_mapping(self) -> dict[str, str]:
        """All options in canonical text, defaults included."""
        return {option.key: option.show(getattr(self, name)) for name, option in _options().items()}

    def in_force(self) -> dict[str, str]:
        """The options that mean something for this pool, in canonical text; `parse` gives the same value back."""
        return {
            option.key: option.show(getattr(self, name))
            for name, option in _options().items()
            if self.way in option.ways
        }


def _options() -> dict[str, Option]:
    return {
        field.name: attrs.evolve(field.metadata["option"], key=f"dm.{field.name}")
        for field in attrs.fields(PoolOptions)
    }


def describe() -> list[Option]:
    """All options, for documentation and help."""
    return list(_options().values())


def _read(given: Mapping[str, str]) -> dict[str, Any]:
    """Values by the name of their attribute."""
    known = {option.key: name for name, option in _options().items()}
    found = {}
    for key, text in given.items():
        if key not in known:
            raise _unknown(key, list(known))
        option = _options()[known[key]]
        try:
            found[known[key]] = option.read(text.strip())
        except values.Refused as accepted:
            raise ConfigError(f"{key}={text!r} is not accepted; it takes {accepted}") from accepted
    return found


def _unknown(key: str, known: list[str]) -> ConfigError:
    other = _DRIVERS.get(key.partition(".")[0])
    if other is not None:
        return ConfigError(f"option {key!r} is one of the {other} driver, not of devicemapper")
    import difflib  # noqa: PLC0415 - needed for mistakes only

    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return ConfigError(f"unknown option {key!r} for the devicemapper driver", hint=hint)


def _check_way(options: PoolOptions, given: Mapping[str, str]) -> None:
    """Refuse what was given and means nothing for the kind of pool."""
    chosen = {
        Way.FILES: "loop files",
        Way.DEVICES: "dm.datadev and dm.metadatadev",
        Way.FOREIGN: f"dm.thinpooldev={options.thinpooldev}",
    }[options.way]
    for option in describe():
        if given.get(option.key, "").strip() and options.way not in option.ways:
            raise ConfigError(
                f"{option.key} contradicts {chosen}: it is for a pool on {_named(option.ways)}",
                hint="a pool lies on loop files, on two block devices, or is made elsewhere",
            )


def _named(ways: Collection[Way]) -> str:
    return " or ".join(way.value for way in Way if way in ways)


def _check_pair(options: PoolOptions) -> None:
    if (options.datadev is None) != (options.metadatadev is None):
        have, miss = ("dm.datadev", "dm.metadatadev") if options.datadev else ("dm.metadatadev", "dm.datadev")
        raise ConfigError(f"{have} needs {miss} too: a pool has a data and a metadata device")
    if options.datadev is not None and options.datadev == options.metadatadev:
        raise ConfigError(f"dm.datadev and dm.metadatadev are both {options.datadev}; they must be two devices")


def reconcile(recorded: PoolOptions, given: Mapping[str, str]) -> PoolOptions:
    """The options in force when a store is opened with some named anew.

    Raises:
        ConfigError: one of them cannot be changed any more (or only be grown), with the key, both values and why.
    """
    new = attrs.evolve(recorded, **_read(given))
    changed = [
        (option, before, after)
        for name, option in _options().items()
        if (before := getattr(recorded, name)) != (after := getattr(new, name))
    ]
    for option, before, after in changed:
        if option.later == Later.KEEP.value:
            raise ConfigError(f"{_difference(option, before, after)}; it is fixed when a store is made")
    _check_way(new, given)
    for option, before, after in changed:
        if option.later == Later.GROW.value and after < before:
            raise ConfigError(f"{_difference(option, before, after)}; it can only grow")
    return new


def _difference(option: Option, before: object, after: object) -> str:
    was, wanted = (option.show(value) or "not set" for value in (before, after))
    return f"{option.key} is {was} in this store, and {wanted} was given"
