"""The options of a thin pool: Docker's names, one definition each, with the kernel's limits.

`PoolOptions.parse` reads them, `to_mapping` gives their canonical text (what is recorded), `reconcile` compares
recorded ones with those that a later open names.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs

from thinpool.errors import ConfigError
from thinpool.units import GIB, KIB, MIB, SECTOR, format_size, parse_size

BLOCK_SIZE_STEP = 64 * KIB  # DATA_DEV_BLOCK_SIZE_MIN_SECTORS, drivers/md/dm-thin.c
BLOCK_SIZE_MAX = GIB  # DATA_DEV_BLOCK_SIZE_MAX_SECTORS
METADATA_MIN = 2 * MIB
METADATA_MAX = 16 * GIB  # THIN_METADATA_MAX_SECTORS, drivers/md/dm-thin-metadata.h, rounded up
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


class _Refused(ValueError):
    """A value that an option does not accept; the text says what it accepts."""


def _size(least: int, most: int | None = None, step: int = SECTOR) -> Callable[[str], int]:
    limit = f"at least {format_size(least)}" + (f", at most {format_size(most)}" if most else "")
    limit += f", in steps of {format_size(step)}" if step > SECTOR else ""

    def read(text: str) -> int:
        try:
            size = parse_size(text)
        except ConfigError:
            size = -1
        if size < least or (most is not None and size > most) or size % step:
            raise _Refused(f"a size as in 10G: {limit}")
        return size

    return read


def _percent(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        digits = text.removesuffix("%")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and least <= int(digits) <= most):
            raise _Refused(f"a percentage from {least} to {most}")
        return int(digits)

    return read


def _truth(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise _Refused("true or false")


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise _Refused(" or ".join(words))
        return text

    return read


def _device(text: str) -> str | None:
    if text and not text.startswith("/"):
        raise _Refused("the absolute path of a block device")
    return text or None


def _pool_device(text: str) -> str | None:
    return text.removeprefix("/dev/mapper/") or None


def _plain(text: str) -> str:
    return text


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _show_size(value: object) -> str:
    assert isinstance(value, int)
    return format_size(value)


def _show_percent(value: object) -> str:
    return f"{value}%"


@attrs.frozen
class Option:
    """One option.

    Attributes:
        key: its name, as in `dm.basesize`.
        read: text to value.
        show: value to canonical text.
        later: what a later open may do: `change` it, `grow` it, or `keep` it as it was.
        help: one line for people.
    """

    key: str
    read: Callable[[str], Any]
    show: Callable[[object], str]
    later: str
    help: str


def _option(
    key: str, default: str, read: Callable[[str], Any], show: Callable[[object], str], later: str, text: str
) -> Any:
    return attrs.field(default=read(default), metadata={"option": Option(f"dm.{key}", read, show, later, text)})


@attrs.frozen(kw_only=True)
class PoolOptions:
    """The options of one pool, parsed; sizes in bytes."""

    basesize: int = _option(
        "basesize", "10G", _size(16 * MIB, None, 4 * KIB), _show_size, "grow", "size of a layer's file system"
    )
    loopdatasize: int = _option(
        "loopdatasize", "100G", _size(64 * MIB), _show_size, "grow", "size of the sparse data file"
    )
    loopmetadatasize: int = _option(
        "loopmetadatasize",
        "2G",
        _size(METADATA_MIN, METADATA_MAX, 4 * KIB),
        _show_size,
        "grow",
        "size of the sparse metadata file",
    )
    datadev: str | None = _option("datadev", "", _device, _show, "keep", "block device for the pool's data")
    metadatadev: str | None = _option("metadatadev", "", _device, _show, "keep", "block device for the pool's metadata")
    thinpooldev: str | None = _option(
        "thinpooldev", "", _pool_device, _show, "keep", "a pool made elsewhere, e.g. by LVM"
    )
    blocksize: int = _option(
        "blocksize",
        "64K",
        _size(BLOCK_SIZE_STEP, BLOCK_SIZE_MAX, BLOCK_SIZE_STEP),
        _show_size,
        "keep",
        "the pool's data block size",
    )
    fs: str = _option("fs", "ext4", _choice("ext4", "xfs"), _show, "keep", "file system of the layers: ext4 or xfs")
    mkfsarg: str = _option("mkfsarg", "", _plain, _show, "keep", "more arguments for mkfs")
    mountopt: str = _option(
        "mountopt", "", _plain, _show, "change", "more mount options of the layers, comma-separated"
    )
    blkdiscard: bool = _option(
        "blkdiscard", "true", _truth, _show, "change", "give a removed layer's blocks back to the device below"
    )
    min_free_space: int = _option(
        "min_free_space", "10%", _percent(0, 99), _show_percent, "change", "free space below which nothing new is begun"
    )
    use_deferred_removal: bool = _option(
        "use_deferred_removal", "true", _truth, _show, "change", "a device in use goes when its last user lets go"
    )
    use_deferred_deletion: bool = _option(
        "use_deferred_deletion",
        "true",
        _truth,
        _show,
        "change",
        "a removed layer in use is deleted when its last user lets go",
    )
    thinp_autoextend_threshold: int = _option(
        "thinp_autoextend_threshold",
        "80",
        _percent(1, 100),
        _show,
        "change",
        "percentage in use at which the pool is extended",
    )
    thinp_autoextend_percent: int = _option(
        "thinp_autoextend_percent", "20", _percent(1, 999), _show, "change", "by how many percent it is extended"
    )
    error_if_no_space: bool = _option(
        "error_if_no_space",
        "true",
        _truth,
        _show,
        "change",
        "a full pool fails writes at once instead of queueing them",
    )

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """Read options.

        Raises:
            ConfigError: an unknown key, a value that is not accepted, or a pair that contradicts.
        """
        values: dict[str, Any] = {key.removeprefix("dm."): _read(key, text) for key, text in given.items()}
        options = cls(**values)
        _check_pairs(options, {key for key, text in given.items() if text})
        return options

    def to_mapping(self) -> dict[str, str]:
        """All options in canonical text, defaults included."""
        return {option.key: option.show(getattr(self, name)) for name, option in _options().items()}


def _options() -> dict[str, Option]:
    return {field.name: field.metadata["option"] for field in attrs.fields(PoolOptions)}


def describe() -> list[Option]:
    """All options, for documentation and help."""
    return list(_options().values())


def _read(key: str, text: str) -> object:
    option = _options().get(key.removeprefix("dm.")) if key.startswith("dm.") else None
    if option is None:
        known = [option.key for option in describe()]
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise ConfigError(f"unknown option {key!r} for the devicemapper driver", hint=hint)
    try:
        return option.read(text)
    except _Refused as accepted:
        raise ConfigError(f"{key}={text!r} is not accepted; it takes {accepted}") from accepted


def _check_pairs(options: PoolOptions, given: set[str]) -> None:
    backings = {
        "dm.thinpooldev": {"dm.thinpooldev"},
        "dm.datadev and dm.metadatadev": {"dm.datadev", "dm.metadatadev"},
        "dm.loopdatasize and dm.loopmetadatasize": {"dm.loopdatasize", "dm.loopmetadatasize"},
    }
    used = [(name, sorted(keys & given)) for name, keys in backings.items() if keys & given]
    defaults = PoolOptions()
    if options.loopdatasize == defaults.loopdatasize and options.loopmetadatasize == defaults.loopmetadatasize:
        used = [entry for entry in used if not entry[0].startswith("dm.loop")] or used
    if len(used) > 1:
        named = " and ".join(", ".join(keys) for _, keys in used)
        raise ConfigError(f"{named} contradict: a pool lies on loop files, on two block devices, or is made elsewhere")
    if (options.datadev is None) != (options.metadatadev is None):
        have, miss = ("dm.datadev", "dm.metadatadev") if options.datadev else ("dm.metadatadev", "dm.datadev")
        raise ConfigError(f"{have} needs {miss} too: a pool has a data and a metadata device")
    if options.datadev is not None and options.datadev == options.metadatadev:
        raise ConfigError(f"dm.datadev and dm.metadatadev are both {options.datadev}; they must be two devices")
    if options.thinpooldev and "dm.blocksize" in given and options.blocksize != defaults.blocksize:
        raise ConfigError("dm.blocksize contradicts dm.thinpooldev: that pool has its own block size")


def reconcile(recorded: PoolOptions, given: Mapping[str, str]) -> PoolOptions:
    """The options in force when a store is opened with some named anew.

    Raises:
        ConfigError: one of them cannot be changed any more (or only be grown), with the key, both values and why.
    """
    merged = recorded.to_mapping() | dict(given)
    new = PoolOptions.parse(merged)
    for name, option in _options().items():
        before, after = getattr(recorded, name), getattr(new, name)
        if before == after or option.key not in given:
            continue
        shown = f"{option.key} is {option.show(before)} in this store, and {option.show(after)} was given"
        if option.later == "keep":
            raise ConfigError(f"{shown}; it is fixed when a store is made")
        if option.later == "grow" and after < before:
            raise ConfigError(f"{shown}; it can only grow")
    return new
