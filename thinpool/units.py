"""Sizes: bytes inside, binary units in text, sectors only at the kernel's edge."""

import re

from thinpool.errors import ConfigError

SECTOR = 512
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_PREFIXES = "KMGTPE"
_SIZE = re.compile(
    r"(?P<number>\d{1,20}(?:\.\d{1,9})?)\s*(?:(?P<prefix>[kmgtpe])(?:i?b)?|b)?", re.IGNORECASE | re.ASCII
)


def parse_size(text: str) -> int:
    """Turn `10G`, `64k`, `1.5T` or `4096` into bytes; every unit is binary (`10G` is 10 GiB).

    Raises:
        ConfigError: not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"not a size: {text!r}; accepted is a number with an optional unit, as in 512M, 10G or 1.5T")
    prefix = match["prefix"]
    shift = 10 * (_PREFIXES.index(prefix.upper()) + 1) if prefix else 0
    whole, _, fraction = match["number"].partition(".")
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(whole + fraction) << shift, scale)
    if rest:
        raise ConfigError(f"not a whole number of bytes: {text!r}")
    return size


def format_size(size: int) -> str:
    """Render bytes exactly where a unit divides them (`10G`), so that `parse_size` gives the same number back."""
    shift = 0
    while size and shift < 10 * len(_PREFIXES) and size % (1 << (shift + 10)) == 0:
        shift += 10
    return f"{size >> shift}{_PREFIXES[shift // 10 - 1] if shift else ''}"


def human_size(size: int) -> str:
    """Render bytes for people: three significant digits and a binary unit, as in `1.50 GiB`."""
    if abs(size) < KIB:
        return f"{size} B"
    value = float(size)
    for prefix in _PREFIXES:
        value /= KIB
        if abs(value) < 999.5 or prefix == _PREFIXES[-1]:
            break
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {prefix}iB"


def to_sectors(size: int) -> int:
    """Bytes to 512-byte sectors; the size must be whole sectors."""
    sectors, rest = divmod(size, SECTOR)
    if rest:
        raise ConfigError(f"{size} bytes is not a whole number of {SECTOR}-byte sectors")
    return sectors
