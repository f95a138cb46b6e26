"""How a pool is known again: the uuid in its metadata, and a transaction id that moves.

The kernel keeps a number for us in the metadata, the transaction id. It is moved on whenever the pool is activated and
whenever it is deactivated, and the records say what it is. So metadata that were copied at one time and put back at
another are noticed, as are records that were put back: the layers of the one are not the devices of the other, and to
go on would give one layer's blocks to another. Between two moves nothing is noticed: a copy made while the pool is
active and put back before it is ever deactivated looks like the metadata after a crash.

Each move is three steps: the records name the next number beside the present one, the kernel sets it, the records
name it alone. A process that dies between them leaves records that accept both numbers until the next move.
"""

import json
from collections.abc import Callable
from typing import Self

import attrs

from thinpool.errors import PoolFailed


@attrs.frozen
class PoolIdentity:
    """What a pool is known by; of a pool that was made elsewhere nothing is known.

    Attributes:
        uuid: the uuid in its metadata, 32 hexadecimal digits; empty where it was made elsewhere.
        transaction_id: the number that the metadata have.
        pending: the number that they may have as well, where a move was begun; None else.
    """

    uuid: str
    transaction_id: int
    pending: int | None = None

    def to_json(self) -> str:
        """As it is recorded."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As it was recorded."""
        return cls(**json.loads(text))

    def check(self, uuid: str, transaction_id: int, where: str) -> None:
        """Compare metadata that were found with the records.

        Args:
            uuid: found in the metadata.
            transaction_id: found in the metadata.
            where: the device that they are on, for the message.

        Raises:
            PoolFailed: they are of another pool, or older or newer than the records.
        """
        if uuid != self.uuid:
            raise PoolFailed(
                f"the metadata on {where} is of another pool: its uuid is {uuid}, and {self.uuid} was recorded",
                hint="was a device or file of the pool replaced?",
            )
        accepted = {self.transaction_id} if self.pending is None else {self.transaction_id, self.pending}
        if transaction_id in accepted:
            return
        older = transaction_id < min(accepted)
        raise PoolFailed(
            f"the metadata on {where} is {'older' if older else 'newer'} than the records: its transaction id is"
            f" {transaction_id}, and {' or '.join(map(str, sorted(accepted)))} was recorded",
            hint="it was put back from a copy; put back the pool's latest metadata"
            if older
            else "the store's records were put back from a copy; put back its latest records",
        )

    def move(self, current: int, remember: Callable[["PoolIdentity"], None], put: Callable[[int, int], bool]) -> Self:
        """Move the transaction id on.

        Args:
            current: the number that the metadata have.
            remember: records an identity durably.
            put: sets the number in the metadata, durably, from the first to the second; False where the pool takes no
                messages, as a read-only one, and both numbers are accepted from then on.

        Returns:
            The identity as it was recorded last.
        """
        begun = attrs.evolve(self, transaction_id=current, pending=current + 1)
        if begun != self:
            remember(begun)
        if not put(current, current + 1):
            return begun
        done = attrs.evolve(self, transaction_id=current + 1, pending=None)
        remember(done)
        return done
