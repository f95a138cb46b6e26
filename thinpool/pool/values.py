"""How the text of an option becomes a value, and a value its canonical text."""

import shlex
from collections.abc import Callable

from thinpool.errors import ConfigError
from thinpool.units import SECTOR, format_size, parse_size

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_NAME_MAX = 127  # DM_NAME_LEN of include/uapi/linux/dm-ioctl.h, less the final NUL


class Refused(ValueError):
    """A value that an option does not accept; the text says what it accepts."""


def size(least: int, most: int | None = None, step: int = SECTOR) -> Callable[[str], int]:
    """A reader of sizes in bytes, within limits and a multiple of a step."""
    limit = f"at least {format_size(least)}" + (f", at most {format_size(most)}" if most else "")
    limit += f", in steps of {format_size(step)}"

    def read(text: str) -> int:
        try:
            found = parse_size(text)
        except ConfigError:
            found = -1
        if found < least or (most is not None and found > most) or found % step:
            raise Refused(f"a size as in 10G: {limit}")
        return found

    return read


def percent(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole percentages, with or without the sign."""

    def read(text: str) -> int:
        digits = text.removesuffix("%").rstrip()
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and least <= int(digits) <= most):
            raise Refused(f"a whole percentage from {least}% to {most}%")
        return int(digits)

    return read


def truth(text: str) -> bool:
    """True or false, in any usual spelling."""
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise Refused("true or false")


def choice(*words: str) -> Callable[[str], str]:
    """A reader of one of some words."""

    def read(text: str) -> str:
        if text not in words:
            raise Refused(" or ".join(words))
        return text

    return read


def device(text: str) -> str | None:
    """The absolute path of a block device, or nothing."""
    if text and not text.startswith("/"):
        raise Refused("the absolute path of a block device")
    return text or None


def pool_device(text: str) -> str | None:
    """A device-mapper name, or the path of a device; paths below /dev/mapper become names."""
    name = text.removeprefix("/dev/mapper/")
    if not name.startswith("/") and ("/" in name or len(name.encode()) > _NAME_MAX):
        raise Refused("the name of a device-mapper device or the absolute path of one, as in vg-pool or /dev/vg/pool")
    return name or None


def words(text: str) -> str:
    """Arguments of a command, quoted as in a shell."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise Refused(f"arguments as a shell splits them ({error})") from error
    return text


def mount_options(text: str) -> str:
    """Mount options with commas between them, without empty ones."""
    return ",".join(option for part in text.split(",") if (option := part.strip()))


def show(value: object) -> str:
    """Canonical text of what is no size and no percentage."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def show_size(value: object) -> str:
    """Canonical text of a size: exact, in the largest unit that divides it."""
    assert isinstance(value, int)
    return format_size(value)


def show_percent(value: object) -> str:
    """Canonical text of a percentage."""
    return f"{value}%"
