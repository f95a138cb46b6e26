"""What an inode's time of change (ctime) tells: whether a change after a given time must show in it.

The kernel's clock for ctime moves in ticks of up to 10 ms before Linux 6.13, and on inodes of 128 bytes in seconds. So
a change that comes within two ticks of the one before may show the same ctime.
"""

import struct
from collections.abc import Sequence
from typing import Final

from thinpool.filesystem.ext4.inode import Inode

__all__ = ["TWO_TICKS_NS", "is_late", "may_repeat", "unsettled"]

TWO_TICKS_NS: Final = 20_000_000

_NANOSECONDS: Final = 1_000_000_000
_CTIME_AT = 12
_KNOWN_AT = 0x80
_CTIME_EXTRA = struct.Struct("<H2xI")  # i_extra_isize and i_ctime_extra, from _KNOWN_AT on
_CTIME_EXTRA_AT = 0x84
_EPOCHS = bytes(byte & 3 for byte in range(256))


def is_late(inode: Inode, complete_ns: int | None) -> bool:
    """Whether an inode may have been changed within two ticks of the time when its layer was complete, or later."""
    return complete_ns is None or may_repeat(inode.ctime_ns, complete_ns - TWO_TICKS_NS)


def may_repeat(ctime_ns: int, before_ns: int) -> bool:
    """Whether a ctime may be shown again by a later change; one of whole seconds may tick in seconds."""
    margin = 0 if ctime_ns % _NANOSECONDS else 2 * _NANOSECONDS
    return ctime_ns >= before_ns - margin


def unsettled(raw: bytes, size: int, before_ns: int) -> Sequence[int]:
    """Which inodes in a piece of a table have a ctime that may be shown again, without parsing them.

    Args:
        raw: the piece, whole inodes.
        size: bytes of an inode, more than 136.
        before_ns: as for `may_repeat`.

    Returns:
        Their places in the piece. Among them are those of which only parsing tells.
    """
    seconds = before_ns // _NANOSECONDS - 2
    ctimes = [ctime for (ctime,) in struct.iter_unpack(f"<{_CTIME_AT}xi{size - _CTIME_AT - 4}x", raw)]
    if max(ctimes, default=seconds) < seconds and not any(raw[_CTIME_EXTRA_AT::size].translate(_EPOCHS)):
        return ()
    found = []
    for index, ctime in enumerate(ctimes):
        known, extra = _CTIME_EXTRA.unpack_from(raw, index * size + _KNOWN_AT)
        if ctime >= seconds or extra & 3:
            ctime_ns = (ctime + ((extra & 3) << 32)) * _NANOSECONDS + (extra >> 2)
            if 0 < known < 8 or extra >> 2 >= _NANOSECONDS or may_repeat(ctime_ns, before_ns):
                found.append(index)
    return found
