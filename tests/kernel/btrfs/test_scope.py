"""What the transaction numbers say that changed, against the walk over everything and a simple-minded account."""

import itertools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel.layer.trees import Mutator, Step, examples, expected_changes, makings, steps, survey
from thinpool import Store
from thinpool.filesystem import syscalls

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    image = tmp_path_factory.mktemp("disk") / "image"
    with image.open("wb") as file:
        file.truncate(4 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", str(image)], check=True)
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    loop = Path(done.stdout.strip())
    yield loop
    subprocess.run(["losetup", "--detach", str(loop)], check=True)


@pytest.fixture(scope="module")
def host(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("host")
    syscalls.mount(str(disk), str(place), "btrfs")
    yield place
    syscalls.umount(str(place))


class Family:
    """A store of random layers; after some steps its file system is mounted anew, so that inode numbers come again."""

    def __init__(self, disk: Path, host: Path, number: int) -> None:
        self.disk = disk
        self.host = host
        self.root = host / f"root-{number}"
        self.store = Store.open(self.root, "btrfs")

    def mount_anew(self) -> None:
        self.store.close()
        syscalls.umount(str(self.host))
        syscalls.mount(str(self.disk), str(self.host), "btrfs")
        self.store = Store.open(self.root)

    def grow(self, name: str, parent: str | None, work: Sequence[Step], *, commit: bool) -> None:
        self.store.prepare(f"{name}-work" if commit else name, parent)
        with self.store.mount(f"{name}-work" if commit else name) as tree:
            Mutator(tree).run(work)
        if commit:
            self.store.commit(name, f"{name}-work")

    def check(self, name: str, base: str) -> None:
        with self.store.mount(base) as older, self.store.mount(name) as newer:
            expected = expected_changes(survey(older), survey(newer))
        walked = self.store.changes(name, base, method="walk")
        assert list(walked) == expected, (name, base)
        fast = self.store.changes(name, base, method="fast")
        assert fast.method == "fast"
        assert list(fast) == expected, (name, base)

    def close(self) -> None:
        for layer in sorted(self.store.walk(), key=lambda layer: layer.created, reverse=True):
            self.store.remove(layer.name)
        self.store.close()


numbers = itertools.count()


@examples(60)
@given(makings, steps, steps, steps, steps, st.booleans())
def test_fast_is_the_walk(
    disk: Path,
    host: Path,
    first: Sequence[Step],
    second: Sequence[Step],
    third: Sequence[Step],
    fourth: Sequence[Step],
    fifth: Sequence[Step],
    anew: bool,
) -> None:
    family = Family(disk, host, next(numbers))
    try:
        family.grow("base", None, first, commit=True)
        family.grow("child", "base", second, commit=True)
        if anew:
            family.mount_anew()
        family.grow("grandchild", "child", third, commit=True)
        family.grow("sibling", "base", fourth, commit=True)
        if anew:
            family.mount_anew()
        family.grow("active", "sibling", fifth, commit=False)
        for name, base in (
            ("child", "base"), ("grandchild", "base"), ("grandchild", "child"), ("base", "grandchild"),
            ("grandchild", "sibling"), ("active", "sibling"), ("active", "grandchild"),
        ):  # fmt: skip
            family.check(name, base)
    finally:
        family.close()
