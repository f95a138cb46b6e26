import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from thinpool.errors import LayerExists, StateError
from thinpool.model import Kind
from thinpool.state import HANDLE_LIMIT, LayerRecord, State

RECORD = LayerRecord(1, "base", None, None, Kind.COMMITTED, "ready", 10, 10, 4096, {"a": "b"})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "store.db")
    state.create({"driver": "test"})
    yield state
    state.close()


def test_a_new_database_holds_no_store(tmp_path: Path) -> None:
    state = State(tmp_path / "store.db")
    assert not state.exists
    state.create({"driver": "x"})
    assert state.exists
    state.close()
    again = State(tmp_path / "store.db")
    assert again.get("driver") == "x"
    again.close()


def test_records_come_back(state: State) -> None:
    state.add(RECORD)
    child = attrs.evolve(RECORD, handle=2, name="child", parent=1, kind=Kind.ACTIVE)
    state.add(child)
    assert state.layer("base") == RECORD
    assert state.layer("child") == attrs.evolve(child, parent_name="base")
    assert [record.name for record in state.layers()] == ["base", "child"]
    assert state.children(1) == ["child"]
    state.add(attrs.evolve(RECORD, handle=3, name="grandchild", parent=2))
    state.doom(3)
    assert state.count() == 2


def test_the_nearest_common_ancestor(state: State) -> None:
    for handle, parent in ((1, None), (2, 1), (3, 2), (4, 2), (5, None)):
        state.add(attrs.evolve(RECORD, handle=handle, name=f"layer-{handle}", parent=parent))
    pairs = {(3, 4): 2, (4, 3): 2, (3, 2): 2, (2, 3): 2, (3, 1): 1, (3, 3): 3, (3, 5): None, (5, 1): None}
    for (one, other), expected in pairs.items():
        found = state.common_ancestor(one, other)
        assert (found and found.handle) == expected


def test_the_line_of_a_layer(state: State) -> None:
    for handle, parent in ((1, None), (2, 1), (3, 2), (4, 1), (5, None)):
        state.add(attrs.evolve(RECORD, handle=handle, name=f"layer-{handle}", parent=parent))
    for handle, expected in ((3, [3, 2, 1]), (4, [4, 1]), (5, [5])):
        line = state.line(handle)
        assert [record.handle for record in line] == expected
        assert line[0] == state.by_handle(handle)


def test_a_name_is_taken_once(state: State) -> None:
    state.add(RECORD)
    with pytest.raises(LayerExists):
        state.add(attrs.evolve(RECORD, handle=2))
    assert state.count() == 1


def test_a_filling_layer_has_its_name_but_is_not_seen(state: State) -> None:
    state.add(attrs.evolve(RECORD, phase="filling"))
    assert state.layer("base") is None
    assert state.is_taken("base")
    assert state.layers() == []
    state.publish(1, 20, {})
    found = state.layer("base")
    assert found is not None
    assert (found.created, found.labels) == (20, {})


def test_a_doomed_layer_gives_its_name_free(state: State) -> None:
    state.add(RECORD)
    state.doom(1)
    assert not state.is_taken("base")
    assert [record.handle for record in state.unfinished()] == [1]
    state.forget(1)
    assert state.unfinished() == []
    state.put("anything", "next change")
    assert state.by_handle(1) is None


def test_what_is_forgotten_goes_at_the_latest_when_the_records_are_closed(tmp_path: Path, state: State) -> None:
    state.add(RECORD)
    state.doom(1)
    state.forget(1)
    state.close()
    again = State(tmp_path / "store.db")
    assert again.unfinished() == []
    again.close()


def test_a_transaction_holds_wholly_or_not_at_all(state: State) -> None:
    with pytest.raises(ZeroDivisionError), state.transaction():
        state.add(RECORD)
        state.put("a", "b")
        raise ZeroDivisionError
    assert state.layers() == []
    assert state.get("a") is None
    with state.transaction():
        state.add(RECORD)
        assert state.layer("base") == RECORD
    assert state.layer("base") == RECORD


def test_what_must_be_durable_now_stays_when_the_transaction_does_not(state: State) -> None:
    with pytest.raises(ZeroDivisionError), state.transaction():
        state.put_now({"intent": "7"})
        state.add(RECORD)
        raise ZeroDivisionError
    assert state.get("intent") == "7"
    assert state.layers() == []


def test_a_committed_copy_replaces_the_active_layer(state: State) -> None:
    state.add(attrs.evolve(RECORD, name="job", kind=Kind.ACTIVE))
    state.commit_copy(attrs.evolve(RECORD, handle=2, name="done"), 1)
    assert [record.name for record in state.layers()] == ["done"]
    assert [record.handle for record in state.unfinished()] == [1]


def test_handles_are_reserved_before_use_and_never_named_twice(state: State) -> None:
    first = state.allot()
    assert state.allot() == first
    assert next(state.unnamed()) == first
    state.add(attrs.evolve(RECORD, handle=first))
    assert state.allot() == first + 1
    state.doom(first)
    state.forget(first)
    assert state.allot() == first + 1
    state.skip(first + 1)
    assert state.allot() == first + 2


def test_children_are_found_by_the_number_of_their_parent_s_storage(state: State) -> None:
    state.add(RECORD)
    for handle in (2, 3):
        state.add(attrs.evolve(RECORD, handle=handle, name=f"child-{handle}", parent=1))
    assert state.offspring(1) == [2, 3]
    state.doom(2)
    assert state.offspring(1) == [3]
    assert [state.is_named(handle) for handle in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_driver_s_own_storage_is_no_layer(state: State) -> None:
    handle = state.allot()
    state.claim(handle, {"base": str(handle)})
    assert state.layers() == []
    assert state.unfinished() == []
    assert handle not in set(state.unnamed())


def test_handles_start_again_when_all_were_used(state: State) -> None:
    state.add(RECORD)
    state.put("next_handle", str(HANDLE_LIMIT))
    state.put("reserved_handle", str(HANDLE_LIMIT))
    assert state.allot() == 2


def test_a_child_process_reads_with_a_connection_of_its_own(state: State) -> None:
    state.add(RECORD)
    child = os.fork()
    if child == 0:
        os._exit(0 if state.layer("base") == RECORD else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert state.layer("base") == RECORD


@pytest.mark.usefixtures("state")
def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "store.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateError, match="schema version 99"):
        State(tmp_path / "store.db")


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "other.db")
    database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(StateError, match="not a thinpool database"):
        State(tmp_path / "other.db")


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match="damaged"):
        State(tmp_path / "bad.db")
