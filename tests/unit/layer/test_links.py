"""Sets of hard links in one pass, and the changes that wait for them."""

import os
import stat
from collections import Counter
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from thinpool.layer.links import Backlog, LinkSets, Pair
from thinpool.model import Change

FILE = stat.S_IFREG | 0o644


def status(inode: int, links: int) -> os.stat_result:
    return os.stat_result((FILE, inode, 1, links, 0, 0, 0, 0, 0, 0))


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12), more=st.integers(0, 2))
def test_sets_of_names_differ_where_the_simple_account_says_so(pairs: list[tuple[int, int]], more: int) -> None:
    """`more`: names outside of the common paths, which do not count."""
    older, newer = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    links = LinkSets()
    met = [links.meet(status(old, older[old] + more), status(new, newer[new] + more)) for old, new in pairs]
    for number, (old, new) in enumerate(pairs):
        ours = {other for other, pair in enumerate(pairs) if pair[0] == old}
        theirs = {other for other, pair in enumerate(pairs) if pair[1] == new}
        pair = met[number]
        assert (pair is not None and pair.differs) == (ours != theirs)
        if not more:
            assert pair is None or pair.decided


def test_one_name_each_is_not_looked_at() -> None:
    assert LinkSets().meet(status(1, 1), status(2, 1)) is None


def test_a_pair_is_decided_when_all_names_were_met() -> None:
    links = LinkSets()
    first = links.meet(status(1, 2), status(7, 2))
    assert first is not None
    assert not first.decided
    links.meet(status(1, 2), status(7, 2))
    assert first.decided
    assert not first.differs


@given(
    plan=st.lists(st.tuples(st.sampled_from("ACD"), st.sampled_from((None, True, False)), st.booleans()), max_size=60),
    in_memory=st.integers(1, 10),
)
def test_changes_wait_in_order_in_memory_or_not(plan: list[tuple[str, bool | None, bool]], in_memory: int) -> None:
    """Each change is certain, or turns out one way or the other later; some are asked for in between."""
    with closing(Backlog(in_memory)) as backlog:
        out: list[Change] = []
        expected: list[Change] = []
        undecided: list[tuple[LinkSets, Pair, bool]] = []
        for number, (kind, outcome, ask) in enumerate(plan):
            change = Change(kind, f"/{number}\udcff")  # type: ignore[arg-type] # one of the letters
            pair = None
            if outcome is not None:
                links = LinkSets()
                pair = links.meet(status(1, 2), status(1, 2))
                assert pair is not None
                undecided.append((links, pair, outcome))
            if outcome is not False:
                expected.append(change)
            backlog.add(change, pair)
            if ask:
                if undecided:
                    settle(*undecided.pop(0))
                out += backlog.ready()
        for each in undecided:
            settle(*each)
        out += backlog.ready(at_end=True)
        assert out == expected
        assert not backlog


def settle(links: LinkSets, pair: Pair, differs: bool) -> None:
    links.meet(status(1, 2), status(2 if differs else 1, 2))
    assert pair.differs == differs
