"""All of the aufs driver up to the mount call."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from thinpool.drivers import differing, selection
from thinpool.drivers.aufs import Aufs, mount_data
from thinpool.drivers.branches import Branches
from thinpool.drivers.marks import AufsMarks
from thinpool.drivers.stacking import Stack
from thinpool.layer.scope import Place

_REST = ",xino=/dev/shm/x.xino,plink,udba=none,dirperm1,acl"


def test_branches_are_named_the_topmost_first() -> None:
    stack = Stack("thinpool-x:3", ["2", "1+", "1"], upper="3")
    assert mount_data(stack, "/dev/shm/x.xino") == [f"br:3=rw:2=ro+wh:1+=ro+wh:1=ro+wh{_REST}"]
    assert mount_data(Stack("s", ["1"]), "/dev/shm/x.xino") == [f"br:1=ro+wh{_REST}"]


@given(
    names=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=130),
    upper=st.one_of(st.none(), st.just("up")),
    page=st.integers(100, 400),
)
def test_what_does_not_fit_a_page_is_appended_in_order(names: list[str], upper: str | None, page: int) -> None:
    first, *more = mount_data(Stack("s", names, upper=upper), "/dev/shm/x.xino", page)
    assert len(first) < page
    assert first.endswith(_REST)
    named = first.removeprefix("br:").removesuffix(_REST).split(":")
    assert all(len(data) < page for data in more)
    appended = [option for data in more for option in data.split(",")]
    assert all(option.startswith("append:") for option in appended)
    named += [option.removeprefix("append:") for option in appended]
    expected = [f"{name}=ro+wh" for name in names]
    assert named == ([f"{upper}=rw", *expected] if upper else expected)
    calls = [named[: len(named) - len(appended)], *(data.split(",") for data in more)]
    for data, words, following in zip([first, *more], calls, calls[1:], strict=False):
        next_one = following[0].removeprefix("append:") if data is first else following[0]
        assert len(words) == 48 or len(data) + 1 + len(next_one) >= page


def test_the_kernels_books_tell_who_writes(tmp_path: Path) -> None:
    directory = tmp_path / "a b"
    (directory / "d" / "1").mkdir(parents=True)
    (directory / "d" / "2").mkdir()
    books = tmp_path / "books"
    books.mkdir()
    aufs = Aufs(books=books)
    assert not aufs.is_writing(directory, "1")
    instance = books / "si_1a2b"
    instance.mkdir()
    escaped = str(directory).replace(" ", "\\040")
    (instance / "br0").write_text(f"{escaped}/d/1=rw\n")
    (instance / "br1").write_text(f"{escaped}/d/2=ro+wh\n")
    (instance / "brid0").write_text("64\n")
    (instance / "xi_path").write_text("/dev/shm/x\n")
    assert aufs.is_writing(directory, "1")
    assert not aufs.is_writing(directory, "2")


def test_a_kernel_without_aufs_is_told(tmp_path: Path) -> None:
    reason = selection.reason_against("aufs", tmp_path)
    if "aufs" in Path("/proc/filesystems").read_text().split():  # then the conformance suite runs for it
        return
    assert reason is not None
    assert "aufs" in reason or "root" in reason
    assert list(tmp_path.iterdir()) == []


def test_where_layers_may_differ(tmp_path: Path) -> None:
    Branches.make(tmp_path)
    branches = Branches(tmp_path, AufsMarks(), 126, lambda _: -1)
    common, upper = tmp_path / "d" / "1", tmp_path / "d" / "2"
    for directory in (common, common / "dir", common / "opaque", upper, upper / "dir", upper / "opaque"):
        directory.mkdir()
    (common / "dir" / "one").touch()
    os.link(common / "dir" / "one", common / "another")
    (common / "gone").touch()
    for name in (".wh..wh.aufs", ".wh.gone", "opaque/.wh..wh..opq", "opaque/new", "dir/one"):
        (upper / name).touch()
    (upper / ".wh..wh.plnk").mkdir()
    fd = os.open(common, os.O_PATH)
    try:
        scope = differing.scope([branches.opened("2")], fd, branches, ["1"], AufsMarks())
    finally:
        os.close(fd)
        branches.close()
    places: dict[str, Place] = scope.root.children
    assert sorted(places) == ["another", "dir", "gone", "opaque"]
    assert list(places["dir"].children) == ["one"]
    assert places["gone"].whole
    assert places["opaque"].whole
    assert not places["dir"].whole
    assert not scope.root.whole
    assert not scope.same_inodes
