"""A pool is known again, also when a process died at any step of moving its transaction id."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import PoolFailed
from thinpool.pool.identity import PoolIdentity

IDS = st.integers(0, (1 << 64) - 2)
IDENTITIES = st.builds(PoolIdentity, st.just("ab" * 16), IDS, st.none() | IDS)


@attrs.define
class World:
    """What is durable, and how many more steps the process lives."""

    recorded: PoolIdentity
    in_metadata: int
    steps: int

    def _live(self) -> None:
        if not self.steps:
            raise InterruptedError
        self.steps -= 1

    def remember(self, identity: PoolIdentity) -> None:
        self._live()
        self.recorded = identity

    def put(self, old: int, new: int) -> bool:
        self._live()
        assert self.in_metadata == old
        self.in_metadata = new
        return True


@given(IDENTITIES)
def test_what_is_recorded_is_read_back(identity: PoolIdentity) -> None:
    assert PoolIdentity.from_json(identity.to_json()) == identity


def test_records_without_a_pending_number_are_read() -> None:
    assert PoolIdentity.from_json('{"uuid": "ab", "transaction_id": 3}') == PoolIdentity("ab", 3, None)


@given(st.lists(st.integers(0, 4), max_size=12))
def test_metadata_and_records_agree_wherever_moves_end(lives: list[int]) -> None:
    """Each life is a move that ends after so many steps; the next one begins with the check of an activation."""
    world = World(PoolIdentity("ab", 0), 0, 0)
    copies = []
    for steps in lives:
        world.recorded.check("ab", world.in_metadata, "metadata")
        copies.append((world.recorded, world.in_metadata))
        world.steps = steps
        try:
            world.recorded.move(world.in_metadata, world.remember, world.put)
        except InterruptedError:
            continue
        for recorded, in_metadata in copies:
            with pytest.raises(PoolFailed, match="older"):
                world.recorded.check("ab", in_metadata, "metadata")
            if recorded.pending is None:
                with pytest.raises(PoolFailed, match="newer"):
                    attrs.evolve(recorded).check("ab", world.in_metadata + 1, "metadata")


def test_a_pool_that_takes_no_messages_is_accepted_with_both() -> None:
    recorded: list[PoolIdentity] = []
    identity = PoolIdentity("ab", 4).move(4, recorded.append, lambda *_: False)
    assert recorded == [identity]
    identity.check("ab", 4, "metadata")
    identity.check("ab", 5, "metadata")
    assert identity.move(4, recorded.append, lambda *_: False) == identity
    assert len(recorded) == 1


@pytest.mark.parametrize(
    ("uuid", "found", "said"),
    [("cd", 4, "of another pool"), ("ab", 3, "older than the records"), ("ab", 5, "newer than the records")],
)
def test_what_is_not_ours(uuid: str, found: int, said: str) -> None:
    with pytest.raises(PoolFailed, match=said) as caught:
        PoolIdentity("ab", 4).check(uuid, found, "/dev/loop0")
    assert caught.value.hint
