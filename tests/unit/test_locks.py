import os
import threading
from pathlib import Path

from thinpool.locks import LockFile


def test_a_layer_s_lock_excludes_threads_and_is_given_back(tmp_path: Path) -> None:
    locks = LockFile(tmp_path / "lock")
    with locks.layer(7):
        assert locks.try_layer(7) is None
        other = locks.try_layer(8)
        assert other is not None
        os.close(other)
    free = locks.try_layer(7)
    assert free is not None
    os.close(free)


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    locks = LockFile(tmp_path / "lock")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locks.writer() as mark:
            mark.begin()
            os.write(writing, b"x")
            os.kill(os.getpid(), 9)
    os.read(reading, 1)
    os.waitpid(child, 0)
    with locks.writer() as mark:
        assert mark.left_at_work()
        mark.end()
    with locks.writer() as mark:
        assert not mark.left_at_work()
    os.close(reading)
    os.close(writing)


def test_writers_take_turns(tmp_path: Path) -> None:
    locks = LockFile(tmp_path / "lock")
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with locks.writer():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_layer_counts_as_used_while_anybody_uses_it(tmp_path: Path) -> None:
    locks = LockFile(tmp_path / "lock")
    with locks.use(7):
        with locks.use(7):
            assert locks.is_used(7)
        assert locks.is_used(7)
        assert not locks.is_used(8)
        with locks.layer(7):
            pass
    assert not locks.is_used(7)


def test_the_mark_is_found_while_it_is_kept_in_memory(tmp_path: Path) -> None:
    locks, others = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    with locks.writer() as mark:
        mark.begin()
    for each in (locks, others):
        with each.writer() as mark:
            assert mark.left_at_work()
    with others.writer() as mark:
        mark.end()
    with locks.writer() as mark:
        assert not mark.left_at_work()
    locks.close()
    others.close()
