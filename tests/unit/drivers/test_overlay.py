"""What overlay is asked for, as text."""

from thinpool.drivers.branches import name_of
from thinpool.drivers.overlay import Overlay
from thinpool.drivers.stacking import Stack
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.drivers.uses import Uses
from thinpool.filesystem.mounts import parse_mountinfo


def test_five_hundred_of_the_longest_names_fit_a_page() -> None:
    names = [f"{name_of(2**24 - 1 - number)}{'+' if number % 9 == 0 else ''}" for number in range(500)]
    options = UnionOptions.parse({"overlay.mountopt": "volatile,userxattr,xino=auto"}, "overlay")
    overlay = Overlay(options)
    stack = Stack("source", names, upper=name_of(2**24 - 1))
    text = ",".join([f"lowerdir={':'.join(overlay.lowers(stack))}", *overlay.mount_options(stack)])
    assert len(text) < 4096


def test_handles_have_names_of_their_own() -> None:
    assert len({name_of(handle) for handle in range(1, 100_000)}) == 99_999
    assert all(int(name_of(handle), 36) == handle for handle in (1, 35, 36, 1295, 1296, 2**24 - 1))
    assert name_of(0) == "0"


def test_something_is_always_below() -> None:
    overlay = Overlay()
    assert overlay.lowers(Stack("s", [], "1")) == ["0"]
    assert overlay.lowers(Stack("s", ["1"])) == ["1", "0"]
    assert overlay.lowers(Stack("s", ["2", "1"])) == ["2", "1"]


def test_options_say_what_must_not_be_left_to_the_kernels_defaults() -> None:
    options = UnionOptions.parse({"overlay.mountopt": "volatile,nodev,userxattr"}, "overlay")
    writable = Overlay(options).mount_options(Stack("s", ["1"], "2"))
    assert writable == [
        "redirect_dir=nofollow", "metacopy=off", "index=off", "upperdir=2", "workdir=../w/2/w", "volatile", "userxattr",
    ]  # fmt: skip
    assert Overlay(options).mount_options(Stack("s", ["1"])) == [
        "redirect_dir=nofollow", "metacopy=off", "index=off", "userxattr",
    ]  # fmt: skip


def test_a_mount_tells_its_layer() -> None:
    uses = Uses("thinpool-abc", "overlay")
    line = b"43 42 0:29 / /mnt/x rw,noatime - %s %s rw,lowerdir=0"

    def told(fs_type: bytes, source: bytes) -> int | None:
        return uses.handle_of(parse_mountinfo(line % (fs_type, source)))

    assert told(b"overlay", uses.source(77).encode()) == 77
    assert told(b"ext4", uses.source(77).encode()) is None
    assert told(b"overlay", b"thinpool-abd:77") is None
    assert told(b"overlay", b"thinpool-abc:") is None
    assert told(b"overlay", b"thinpool-abc") is None
    assert told(b"overlay", b"overlay") is None
