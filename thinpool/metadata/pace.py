"""How many reads are worth keeping under way at once, by what reads have taken.

On a slow disk, many: they wait together. On a fast one threads would only cost, and on a busy machine some reads take
long on any disk. So a disk is slow where all but one of the last five reads that were timed took longer than half a
millisecond, not counting what their size takes; before there are five, where each took longer than two. Only reads that
were alone are timed, as one among others waits for them.
"""

from collections import deque

_SLOW_SECONDS = 0.0005
_SURELY_SLOW_SECONDS = 0.002
_BLOCK_SECONDS = 0.00003

DEPTH = 16
"""How many reads are kept under way on a slow disk."""

TIMED = 5
"""How many reads tell what a disk is like."""

_ALONE_EVERY = 4


class Pace:
    """The pace of one device."""

    def __init__(self) -> None:
        self._taken: deque[float] = deque(maxlen=TIMED)
        self._batches = 0

    @property
    def depth(self) -> int:
        """How many reads to keep under way."""
        taken = sorted(self._taken)
        if len(taken) < TIMED:
            return DEPTH if taken and taken[0] > _SURELY_SLOW_SECONDS else 1
        return DEPTH if taken[1] > _SLOW_SECONDS else 1

    def note(self, seconds: float, blocks: int) -> None:
        """A read of so many blocks, alone, took so long. One that was fast on a slow disk begins the account anew."""
        net = seconds - blocks * _BLOCK_SECONDS
        if net <= _SLOW_SECONDS and self.depth > 1:
            self._taken.clear()
        self._taken.append(net)

    def wants_proof(self) -> bool:
        """Whether one read of a batch is to be made alone, now and then, to see whether the disk is slow still."""
        self._batches += 1
        return self._batches % _ALONE_EVERY == 0
