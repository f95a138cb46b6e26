"""How much an archive may ask for."""

from collections.abc import Mapping
from typing import Self

import attrs

from thinpool.errors import ConfigError
from thinpool.units import GIB, MIB, TIB, parse_size


@attrs.frozen
class Limits:
    """Limits of an import; an archive beyond one is an `UnsafeArchive`.

    The defaults let every archive pass that was not made to do harm, as far as we know.

    Attributes:
        entries: entries in the archive.
        size: bytes of all files together, holes included.
        ratio: uncompressed bytes for each compressed one (deflate reaches 1030).
        ratio_from: uncompressed bytes from which on the ratio counts.
        path_length: bytes of one path, or of a link's target.
        header_size: bytes of extended headers of one entry, and of a sparse file's map.
        window_size: bytes of memory that a decompressor may take.
    """

    entries: int = 20_000_000
    size: int = TIB
    ratio: int = 2000
    ratio_from: int = GIB
    path_length: int = MIB // 2
    header_size: int = MIB
    window_size: int = 68 * MIB

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Self:
        """Read limits as text, as in `{"size": "20G", "entries": "100000"}`; the others have their defaults.

        Raises:
            ConfigError: an unknown limit, or one that is no size or less than 1.
        """
        accepted = [field.name for field in attrs.fields(cls)]
        found: dict[str, int] = {}
        for key, text in given.items():
            if key not in accepted:
                raise ConfigError(f"limit {key!r}: accepted are {', '.join(accepted)}")
            try:
                found[key] = parse_size(text)
            except ConfigError as error:
                raise ConfigError(f"limit {key}={text!r}: accepted is a number, or a size as in 20G") from error
            if not found[key]:
                raise ConfigError(f"limit {key}=0: accepted is 1 or more")
        return cls(**found)
