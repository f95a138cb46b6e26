"""How much an archive may ask for."""

import attrs

from thinpool.units import GIB, MIB, TIB


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
