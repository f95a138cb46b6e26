"""Reading a pool that moves on meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.metadata.image import BLOCK, Devices, Image, MemorySource, Shape
from thinpool.errors import PoolFailed
from thinpool.metadata.books import Books, read_books


class Pool:
    """An image in a file that the test commits to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = 0

    def commit(self, devices: Devices, *, held: bool = False) -> None:
        image = Image()
        roots = image.devices(devices, {}, Shape())
        self.commits += 1
        self._write(image.finish(roots, roots if held else None, transaction_id=self.commits))

    def _write(self, source: MemorySource) -> None:
        with self.path.open("wb") as file:
            for block, data in source.data.items():
                file.seek(block * BLOCK)
                file.write(data)
            file.truncate(source.blocks * BLOCK)

    def damage(self) -> None:
        with Books.open(self.path) as books:
            root = books.mapping_root(1)
        with self.path.open("r+b") as file:
            file.seek(root * BLOCK + 50)
            file.write(b"!!")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = Pool(tmp_path / "metadata")
    pool.commit({1: {0: 0}})
    return pool


def exclusive(books: Books) -> int:
    return books.exclusive_blocks(1)


def test_a_quiet_pool_is_read_once(pool: Pool) -> None:
    assert read_books(pool.path, exclusive) == 1


def test_a_commit_in_between_means_reading_again(pool: Pool) -> None:
    seen: list[int] = []

    def work(books: Books) -> int:
        seen.append(books.superblock.transaction_id)
        if len(seen) < 3:
            pool.commit({1: dict.fromkeys(range(len(seen)), 5)})
        return books.mapped_blocks(1)

    assert read_books(pool.path, work) == 2
    assert seen == [1, 2, 3]


def test_an_error_counts_only_if_nothing_was_committed_meanwhile(pool: Pool) -> None:
    def work(books: Books) -> int:
        if books.superblock.transaction_id == 1:
            pool.commit({1: {}})
            raise PoolFailed("read in the middle of a commit")
        return books.exclusive_blocks(1)

    assert read_books(pool.path, work) == 0
    pool.damage()
    with pytest.raises(PoolFailed, match="is damaged"):
        read_books(pool.path, exclusive, pinned=refuse)


@contextmanager
def refuse() -> Iterator[None]:
    raise AssertionError("no need to pin anything")
    yield


def test_a_restless_pool_is_pinned_or_given_up(pool: Pool) -> None:
    def work(books: Books) -> int:
        if books.roots is books.superblock:
            pool.commit({1: {1: 2}})
        return books.exclusive_blocks(1)

    @contextmanager
    def pinned() -> Iterator[None]:
        pool.commit({1: {1: 2, 3: 4}}, held=True)
        yield
        pool.commit({})

    with pytest.raises(PoolFailed, match="changed each time"):
        read_books(pool.path, work)
    assert pool.commits == 4
    assert read_books(pool.path, work, pinned=pinned) == 2
    with Books.open(pool.path) as books:
        assert not list(books.devices())


def test_a_write_without_a_commit_of_its_own_is_noticed(pool: Pool) -> None:
    with Books.open(pool.path) as books:
        assert books.unchanged()
        pool.path.touch()
        assert not books.unchanged()


def test_a_commit_is_noticed_where_the_kernel_counts_no_writes() -> None:
    def source(transaction_id: int) -> MemorySource:
        image = Image()
        return image.finish(image.devices({1: {0: 0}}, {}, Shape()), transaction_id=transaction_id)

    first = source(1)
    with Books(first) as books:
        assert books.unchanged()
        first.data = source(2).data
        assert not books.unchanged()


def test_no_superblock_is_an_error(pool: Pool) -> None:
    pool.path.write_bytes(bytes(BLOCK * 4))
    with pytest.raises(PoolFailed, match="all zeros"):
        read_books(pool.path, exclusive)


def test_what_is_not_there(pool: Pool) -> None:
    with Books.open(pool.path) as books:
        assert 2 not in books
        assert "1" not in books
        for question in (books.details, books.mapping_root, books.exclusive_blocks, books.mapped_blocks):
            with pytest.raises(PoolFailed, match="no thin device 2"):
                question(2)
    with pytest.raises(PoolFailed, match="no metadata snapshot"):
        Books.open(pool.path, held=True)
