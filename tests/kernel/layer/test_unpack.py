"""The import on archives that were made to lead out of the root, or just badly; a canary lies outside."""

import io
import os
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.kernel.layer.trees import opened, survey
from tests.unit.layer.tars import archive, base256, entry, header, padded, pax
from thinpool.errors import ArchiveError, UnsafeArchive
from thinpool.layer.limits import Limits
from thinpool.layer.unpack import UnpackResult, unpack_layer

pytestmark = pytest.mark.kernel


@attrs.frozen
class Arena:
    """A layer's root, and beside it what must stay as it is.

    Attributes:
        root: the layer.
        outside: the canary.
    """

    root: Path
    outside: Path

    def unpack(self, *entries: bytes, limits: Limits | None = None, devices: bool = True) -> UnpackResult:
        with opened(self.root) as fd:
            return unpack_layer(io.BytesIO(archive(*entries)), fd, limits=limits, devices=devices)

    def refuse(self, *entries: bytes, limits: Limits | None = None) -> str:
        with pytest.raises(ArchiveError) as caught:
            self.unpack(*entries, limits=limits)
        assert "\n" not in caught.value.message
        return caught.value.message

    def files(self) -> list[str]:
        """All paths in the layer."""
        return sorted(os.fsdecode(path)[1:] for path in survey(self.root) if path != b"/")


@pytest.fixture
def arena(scratch: Path) -> Iterator[Arena]:
    arena = Arena(scratch / "root", scratch / "outside")
    arena.root.mkdir()
    (arena.outside / "folder").mkdir(parents=True)
    (arena.outside / "file").write_text("canary")
    (arena.outside / "folder" / "inner").write_text("canary")
    before = survey(arena.outside)
    yield arena
    assert survey(arena.outside) == before


def links_out(arena: Arena) -> list[tuple[bytes, bytes]]:
    """Symbolic links that lead to the canary where the layer's root is not taken for the root."""
    outside = bytes(arena.outside)
    return [
        (b"absolute", outside),
        (b"relative", b"../../outside"),
        (b"far", b"../" * 40 + outside.lstrip(b"/")),
        (b"odd", b"/./../" + outside.lstrip(b"/") + b"/."),
        (b"self", b"/proc/self/root" + outside),
        (b"descriptor", b"/proc/self/fd/0/.."),
        (b"two", b"absolute"),
    ]


# -- leading out


@pytest.mark.parametrize("made_by", ["parent layer", "archive"])
@pytest.mark.parametrize(
    "below",
    [
        pytest.param([entry(b"%s/file", data=b"evil")], id="file"),
        pytest.param([entry(b"%s/new/file", data=b"evil")], id="deeper"),
        pytest.param([entry(b"%s/folder/", b"5", mode=0o777)], id="directory"),
        pytest.param([entry(b"%s/file", b"2", link=b"x")], id="symlink"),
        pytest.param([entry(b"%s/file", b"6")], id="fifo"),
        pytest.param([entry(b"stolen", b"1", link=b"%s/file")], id="hard link from"),
        pytest.param([entry(b"own"), entry(b"%s/file", b"1", link=b"own")], id="hard link to"),
        pytest.param([entry(b"%s/.wh.file")], id="whiteout"),
        pytest.param([entry(b"%s/.wh.folder")], id="whiteout of a directory"),
        pytest.param([entry(b"%s/.wh..wh..opq")], id="opaque"),
        pytest.param([entry(b"%s/folder/.wh..wh..opq")], id="opaque deeper"),
    ],
)
def test_links_lead_nowhere_but_into_the_root(arena: Arena, made_by: str, below: list[bytes]) -> None:
    canary = survey(arena.outside)[b"/file"].what
    for number, (name, _) in enumerate(links_out(arena)):
        inside = Arena(arena.root / str(number), arena.outside)
        inside.root.mkdir()
        entries = []
        for link, target in links_out(inside):
            if made_by == "parent layer":
                os.symlink(target, bytes(inside.root) + b"/" + link)
            else:
                entries.append(pax({b"linkpath": target}) + entry(link, b"2"))
        entries += [rebuilt(template[:512], name) + template[512:] for template in below]
        try:
            inside.unpack(*entries)
        except ArchiveError as error:
            complaint = error.message
        else:
            complaint = "link to nowhere"
        assert "link to nowhere" in complaint or "cannot be unpacked" in complaint or "hard link" in complaint
        assert canary not in [found.what for found in survey(inside.root).values()]


def rebuilt(block: bytes, name: bytes) -> bytes:
    """A header with `%s` replaced in its names."""
    fields = [block[:100], block[157:257]]
    first, second = (field.rstrip(b"\0").replace(b"%s", name) for field in fields)
    return header(first, block[156:157], link=second, size=int(block[124:135], 8), mode=int(block[100:107], 8))


def test_a_link_within_the_root_is_followed_as_in_the_mounted_layer(arena: Arena) -> None:
    (arena.root / "usr" / "lib").mkdir(parents=True)
    (arena.root / "lib").symlink_to("usr/lib")
    (arena.root / "abs").symlink_to("/usr/lib")
    (arena.root / "up").symlink_to("../../../usr/lib")
    arena.unpack(entry(b"lib/one"), entry(b"abs/two"), entry(b"up/new/three"))
    assert arena.files() == ["abs", "lib", "up", "usr", "usr/lib", "usr/lib/new", "usr/lib/new/three", "usr/lib/one",
                             "usr/lib/two"]  # fmt: skip


def test_directories_that_become_links_meanwhile(arena: Arena) -> None:
    """A directory that is known and open is replaced by a link that leads out."""
    outside = bytes(arena.outside)
    message = arena.refuse(
        entry(b"d/", b"5"), entry(b"d/a"), entry(b"d", b"2", link=outside), entry(b"d/file", data=b"evil")
    )
    assert "link to nowhere" in message


def test_a_hidden_directory_made_a_link(arena: Arena) -> None:
    (arena.root / "d" / "e").mkdir(parents=True)
    arena.refuse(
        entry(b"d/e/a"),
        entry(b".wh.d"),
        entry(b"d/e", b"2", link=bytes(arena.outside)),
        entry(b"d/e/file", data=b"evil"),
    )


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"..", b"a/..", b"/..", b"./../x", b"a/../b"])
def test_names_with_two_dots_are_refused(arena: Arena, name: bytes) -> None:
    assert "'..' part" in arena.refuse(entry(name))
    assert "'..' part" in arena.refuse(entry(b"f"), entry(b"l", b"1", link=name))
    assert "'..' part" in arena.refuse(pax({b"path": name}), entry(b"f"))


def test_absolute_names_count_from_the_root(arena: Arena) -> None:
    arena.unpack(entry(b"/a"), entry(b"//b//c"), entry(b"././/d/."), entry(b"/e", b"1", link=b"/a"))
    assert arena.files() == ["a", "b", "b/c", "d", "e"]
    assert arena.unpack(entry(bytes(arena.outside) + b"/file", data=b"inside")).entries == 1


@pytest.mark.parametrize("name", [b".", b"/", b"./", b"//."])
@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"6"])
def test_the_root_stays_a_directory(arena: Arena, name: bytes, flag: bytes) -> None:
    assert "place of the root" in arena.refuse(entry(name, flag, link=b"x"))


def test_the_root_gets_its_own_entry(arena: Arena) -> None:
    arena.unpack(entry(b"a"), entry(b"./", b"5", mode=0o2711, uid=5, gid=6, mtime=1000), entry(b"b"))
    status = arena.root.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o2711, 5, 6, 1000)


def test_what_is_there_is_replaced_not_followed(arena: Arena) -> None:
    for name in ("file", "directory", "fifo"):
        (arena.root / name).symlink_to(arena.outside / ("folder" if name == "directory" else "file"))
    arena.unpack(entry(b"file", data=b"new"), entry(b"directory/", b"5", mode=0o700), entry(b"fifo", b"6"))
    assert (arena.root / "file").read_text() == "new"
    assert not (arena.root / "file").is_symlink()
    assert not (arena.root / "directory").is_symlink()
    assert (arena.root / "fifo").is_fifo()


def test_a_hard_link_to_a_link_is_a_link_again(arena: Arena) -> None:
    (arena.root / "s").symlink_to(arena.outside / "file")
    arena.unpack(entry(b"h", b"1", link=b"s"))
    assert os.readlink(arena.root / "h") == str(arena.outside / "file")
    assert (arena.root / "h").lstat().st_ino == (arena.root / "s").lstat().st_ino


def test_a_file_of_a_parent_layer_is_replaced_not_written_to(arena: Arena) -> None:
    (arena.root / "a").write_text("old")
    os.link(arena.root / "a", arena.root / "b")
    arena.unpack(entry(b"a", data=b"new"))
    assert (arena.root / "b").read_text() == "old"


@pytest.mark.parametrize("target", [b"missing", b"d", b"d/missing", b"/", b"."])
def test_hard_links_to_what_cannot_be(arena: Arena, target: bytes) -> None:
    assert "hard link" in arena.refuse(entry(b"d/", b"5"), entry(b"f"), entry(b"l", b"1", link=target))


def test_a_hard_link_to_itself_changes_nothing(arena: Arena) -> None:
    arena.unpack(entry(b"f", data=b"x"), entry(b"f", b"1", link=b"f"))
    assert (arena.root / "f").read_text() == "x"


# -- later entries replace earlier ones

KINDS = {
    "file": (entry(b"x", data=b"content"), stat.S_ISREG),
    "directory": (entry(b"x/", b"5"), stat.S_ISDIR),
    "full directory": (entry(b"x/y/z", data=b"1") + entry(b"x/l", b"2", link=b"y"), stat.S_ISDIR),
    "link": (entry(b"x", b"2", link=b"gone"), stat.S_ISLNK),
    "hard link": (entry(b"x", b"1", link=b"other"), stat.S_ISREG),
    "fifo": (entry(b"x", b"6"), stat.S_ISFIFO),
    "character device": (entry(b"x", b"3", major=1, minor=3), stat.S_ISCHR),
    "block device": (entry(b"x", b"4", major=7, minor=200), stat.S_ISBLK),
}


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_later_entry_counts(arena: Arena, first: str, second: str, layers: int) -> None:
    before = [entry(b"other", data=b"other"), KINDS[first][0]]
    if layers == 2:
        arena.unpack(*before)
        before = []
    if second == "full directory" and "directory" not in first:
        before.append(entry(b"x/", b"5"))  # what is no directory is not replaced by what is below it
    arena.unpack(*before, KINDS[second][0])
    assert KINDS[second][1]((arena.root / "x").lstat().st_mode)
    assert (arena.root / "other").read_text() == "other"
    if first == second == "full directory":
        assert (arena.root / "x" / "y" / "z").read_text() == "1"


def test_an_entry_below_a_file_is_refused(arena: Arena) -> None:
    assert "no directory" in arena.refuse(entry(b"f"), entry(b"f/x"))
    assert "no directory" in arena.refuse(entry(b"f"), entry(b"f/x/y"))


# -- what entries are given


def test_everything_that_an_entry_says(arena: Arena) -> None:
    stamp = b"1700000000.123456789"
    records = {b"mtime": stamp, b"uid": b"4000000000", b"gid": b"3000000000", b"SCHILY.xattr.trusted.a%3D": b"\0v"}
    names = {b"f": b"0", b"d": b"5", b"p": b"6", b"c": b"3"}
    arena.unpack(*(pax(records) + entry(name, flag, mode=0o7751, major=5, minor=9) for name, flag in names.items()))
    for name in names:
        path = bytes(arena.root) + b"/" + name
        status = os.lstat(path)
        assert stat.S_IMODE(status.st_mode) == 0o7751
        assert (status.st_uid, status.st_gid) == (4_000_000_000, 3_000_000_000)
        assert status.st_mtime_ns == 1_700_000_000_123_456_789
        assert os.getxattr(path, "trusted.a=") == b"\0v"
    assert os.lstat(bytes(arena.root) + b"/c").st_rdev == os.makedev(5, 9)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_the_mask_of_the_process_does_not_matter(arena: Arena, mask: int) -> None:
    old = os.umask(mask)
    try:
        modes = (0o644, 0o666, 0o777, 0o000, 0o600)
        for mode in modes:
            name = b"%o" % mode
            arena.unpack(
                entry(name, mode=mode), entry(name + b"d/", b"5", mode=mode), entry(name + b"p", b"6", mode=mode)
            )
        arena.unpack(entry(b"implied/x"))
    finally:
        os.umask(old)
    for mode in modes:
        for suffix in ("", "d", "p"):
            assert stat.S_IMODE((arena.root / f"{mode:o}{suffix}").stat().st_mode) == mode
    assert stat.S_IMODE((arena.root / "implied").stat().st_mode) == 0o755


def test_nothing_is_inherited_from_a_directory(arena: Arena) -> None:
    """Neither a set-group-id bit nor a default access list of a directory tells what is in it."""
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *each)
        for each in ((1, 7, 2**32 - 1), (2, 7, 5), (4, 7, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1))
    )
    parent = arena.root / "parent"
    parent.mkdir()
    os.chown(parent, 0, 7)
    parent.chmod(0o2755)
    os.setxattr(parent, "system.posix_acl_default", acl)
    inside: list[Callable[[bytes], bytes]] = [
        lambda name: entry(name + b"/file", mode=0o644),
        lambda name: entry(name + b"/directory/", b"5", mode=0o755),
        lambda name: entry(name + b"/directory/deeper", mode=0o644),
        lambda name: entry(name + b"/fifo", b"6", mode=0o644),
        lambda name: entry(name + b"/link", b"2", link=b"x"),
        lambda name: entry(name + b"/implied/file", mode=0o644),
    ]
    own = [pax({b"SCHILY.xattr.system.posix_acl_default": acl}) + entry(b"own/", b"5", mode=0o2755, gid=7)]
    arena.unpack(*own, *(make(name) for make in inside for name in (b"parent", b"own")))
    for name in ("parent", "own"):
        for path in (arena.root / name).rglob("*"):
            status = path.lstat()
            assert status.st_gid == 0, path
            if not path.is_symlink():
                assert stat.S_IMODE(status.st_mode) == (0o755 if path.is_dir() else 0o644), path
                assert not [each for each in os.listxattr(path) if "acl" in each], path
    assert os.getxattr(arena.root / "own", "system.posix_acl_default") == acl


def test_attributes_that_are_not_a_layers_own_are_left_out(arena: Arena) -> None:
    foreign = [b"trusted.overlay.redirect", b"user.overlay.opaque", b"trusted.overlay.opaque", b"security.selinux"]
    records = {b"SCHILY.xattr." + name: b"y" for name in [*foreign, b"trusted.mine"]}
    arena.unpack(pax(records) + entry(b"d/", b"5"), pax(records) + entry(b"f"))
    assert os.listxattr(arena.root / "d") == os.listxattr(arena.root / "f") == ["trusted.mine"]


def test_attributes_of_a_directory_that_was_there_are_those_of_its_entry(arena: Arena) -> None:
    (arena.root / "d").mkdir()
    os.setxattr(arena.root / "d", "trusted.old", b"1")
    os.setxattr(arena.root / "d", "trusted.both", b"1")
    arena.unpack(pax({b"SCHILY.xattr.trusted.both": b"2"}) + entry(b"d/", b"5"))
    assert os.listxattr(arena.root / "d") == ["trusted.both"]
    assert os.getxattr(arena.root / "d", "trusted.both") == b"2"


def test_an_attribute_that_the_file_system_does_not_take_is_told(arena: Arena) -> None:
    result = arena.unpack(pax({b"SCHILY.xattr.user.k": b"v"}) + entry(b"l", b"2", link=b"x"))
    assert result.warnings == ("'l': the file system takes no extended attribute 'user.k' here",)


def test_times_of_directories_are_set_last(arena: Arena) -> None:
    arena.unpack(
        entry(b"d/", b"5", mtime=1000),
        entry(b"d/e/", b"5", mtime=2000),
        entry(b"d/e/f", mtime=3000),
        entry(b"d/late", mtime=4000),
        entry(b"implied/x", mtime=5000),
    )
    times = {path: int((arena.root / path).stat().st_mtime) for path in ("d", "d/e", "implied")}
    assert times == {"d": 1000, "d/e": 2000, "implied": 5000}


def test_times_of_directories_that_were_replaced_go_nowhere(arena: Arena) -> None:
    arena.unpack(
        entry(b"d/", b"5", mtime=1000),
        entry(b"e/", b"5", mtime=1000),
        entry(b"d", data=b"a file now", mtime=2000),
        entry(b"e", b"2", link=b"other", mtime=2000),
        entry(b"other/", b"5", mtime=3000),
    )
    times = {path: int((arena.root / path).lstat().st_mtime) for path in ("d", "e", "other")}
    assert times == {"d": 2000, "e": 2000, "other": 3000}


def test_devices_only_if_wanted(arena: Arena) -> None:
    entries = (entry(b"c", b"3", major=1, minor=3), entry(b"b", b"4"), entry(b"p", b"6"))
    result = arena.unpack(*entries, devices=False)
    assert result.warnings == ("left out 'c': a device", "left out 'b': a device")
    assert arena.files() == ["p"]


def test_zeros_become_holes(arena: Arena) -> None:
    data = bytes(1 << 20) + b"data" + bytes(3 << 20) + b"end" + bytes((1 << 20) - 7)
    arena.unpack(entry(b"f", data=data), entry(b"small", data=bytes(5000)))
    assert (arena.root / "f").read_bytes() == data
    assert (arena.root / "f").stat().st_blocks * 512 < 1 << 19


@pytest.mark.parametrize("uid", [base256(2**32 - 1, 8), base256(2**32, 8), base256(2**48, 8)])
def test_owners_beyond_32_bits(arena: Arena, uid: bytes) -> None:
    assert "beyond 32 bits" in arena.refuse(entry(b"f", uid=uid))
    assert "beyond 32 bits" in arena.refuse(entry(b"f", gid=uid))


@pytest.mark.parametrize("mtime", [-(2**62), 2**62, 2**63 - 1, -1, 2**40])
def test_times_that_no_file_system_has_are_brought_into_range(arena: Arena, mtime: int) -> None:
    arena.unpack(entry(b"f", mtime=base256(mtime, 12)), entry(b"d/", b"5", mtime=base256(mtime, 12)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(b"n" * 99 + b"/" + b"", data=b"")], ""),
        ([pax({b"path": b"n" * 256}), entry(b"f")], "File name too long"),
        ([entry(b"l", b"2", link=b"")], "cannot be unpacked"),
        ([pax({b"linkpath": b"n" * 5000}), entry(b"l", b"2")], "File name too long"),
        ([entry(b"", data=b"x")], "without a name"),
        ([pax({b"SCHILY.xattr.user.k": b"v" * 70_000}), entry(b"f")], "cannot be unpacked"),
        ([pax({b"SCHILY.xattr.nonsense": b"v"}), entry(b"f")], ""),
        ([header(b"f", size=base256(1 << 39, 12)) + b"cut"], "cut short"),
    ],
)
def test_what_the_kernel_refuses_is_an_error_with_the_name(arena: Arena, entries: list[bytes], message: str) -> None:
    if message:
        assert message in arena.refuse(*entries)
    else:
        arena.unpack(*entries)


# -- whiteouts


@pytest.fixture
def layered(arena: Arena) -> Arena:
    """A parent layer with files, directories and links."""
    arena.unpack(
        entry(b"a/", b"5"), entry(b"a/one", data=b"1"), entry(b"a/two", data=b"2"), entry(b"a/sub/three", data=b"3"),
        entry(b"b", data=b"b"), entry(b"c", b"2", link=b"a"),
    )  # fmt: skip
    return arena


def test_a_whiteout_removes_what_the_parent_layers_have(layered: Arena) -> None:
    layered.unpack(entry(b"a/.wh.one"), entry(b"a/.wh.sub"), entry(b".wh.c"), entry(b".wh.missing"), entry(b"no/.wh.x"))
    assert layered.files() == ["a", "a/two", "b"]


def test_a_whiteout_removes_a_whole_tree(layered: Arena) -> None:
    layered.unpack(entry(b".wh.a"))
    assert layered.files() == ["b", "c"]


def test_an_opaque_directory_hides_what_the_parent_layers_have(layered: Arena) -> None:
    layered.unpack(entry(b"a/", b"5"), entry(b"a/.wh..wh..opq"), entry(b"a/new"))
    assert layered.files() == ["a", "a/new", "b", "c"]


def test_the_root_can_be_opaque(layered: Arena) -> None:
    layered.unpack(entry(b"new"), entry(b".wh..wh..opq"))
    assert layered.files() == ["new"]


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_whiteout_spares_what_the_archive_itself_has(layered: Arena, order: str) -> None:
    marks = [entry(b".wh.a"), entry(b".wh.b"), entry(b"e/.wh..wh..opq"), entry(b".wh.e")]
    own = [entry(b"a/", b"5"), entry(b"a/two", data=b"new"), entry(b"a/deep/er", data=b"new"), entry(b"b", data=b"new"),
           entry(b"e/x"), entry(b"e/y", b"1", link=b"e/x")]  # fmt: skip
    layered.unpack(*(marks + own if order == "first" else own + marks))
    assert layered.files() == ["a", "a/deep", "a/deep/er", "a/two", "b", "c", "e", "e/x", "e/y"]
    assert (layered.root / "a" / "two").read_text() == "new"
    assert (layered.root / "b").read_text() == "new"


def test_a_new_name_of_a_parent_layers_file_is_the_archives_own(layered: Arena) -> None:
    """A rename, said with a hard link and a whiteout."""
    layered.unpack(entry(b"n/moved", b"1", link=b"b"), entry(b".wh.b"), entry(b"n/.wh..wh..opq"), entry(b".wh.n"))
    assert layered.files() == ["a", "a/one", "a/sub", "a/sub/three", "a/two", "c", "n", "n/moved"]


def test_bookkeeping_of_aufs_is_ignored(layered: Arena) -> None:
    before = layered.files()
    layered.unpack(
        entry(b".wh..wh.aufs"),
        entry(b".wh..wh.plnk/", b"5"),
        entry(b".wh..wh.plnk/12.34", data=b"x"),
        entry(b".wh..wh.orph/", b"5"),
        entry(b"a/.wh..wh.anything", b"2", link=b"/"),
    )
    assert layered.files() == before


@pytest.mark.parametrize("flag", [b"0", b"1", b"2", b"3", b"5", b"6"])
def test_a_whiteout_is_one_whatever_its_type_and_data(layered: Arena, flag: bytes) -> None:
    layered.unpack(entry(b".wh.b", flag, data=b"data" if flag == b"0" else b"", link=b"a/one", mode=0), entry(b"z"))
    assert "b" not in layered.files()
    assert "z" in layered.files()


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh..", b"a/.wh...", b"a/sub/.wh.../"])
def test_whiteouts_of_nothing_and_of_directories_above(layered: Arena, name: bytes) -> None:
    before = layered.files()
    with pytest.raises(UnsafeArchive, match="without the name of what it removes"):
        layered.unpack(entry(name))
    assert layered.files() == before


def test_an_entry_below_a_whiteout_is_refused(layered: Arena) -> None:
    assert "below a whiteout" in layered.refuse(entry(b".wh.a/x"))


def test_a_directory_becomes_a_file_and_back(layered: Arena) -> None:
    layered.unpack(entry(b"a", data=b"file"))
    layered.unpack(entry(b"a/", b"5"), entry(b"a/x"))
    assert layered.files() == ["a", "a/x", "b", "c"]


# -- depth and size


def test_depth_and_long_names(arena: Arena) -> None:
    """1,000 directories below one another, with the longest names, made, hidden and made again."""
    parts = [b"%03d" % number + b"n" * 252 for number in range(1000)]
    path = b"/".join(parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        arena.unpack(pax({b"path": path + b"/file"}), entry(b"f", data=b"deep"))
        arena.unpack(pax({b"path": path + b"/file"}), entry(b"f", data=b"again"))
        arena.unpack(
            pax({b"path": path + b"/.wh.file"}), entry(b"f"), pax({b"path": path + b"/new/"}), entry(b"f", b"5")
        )
        arena.unpack(pax({b"path": b"/".join(parts[:2])}), entry(b"f", data=b"cut off"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(arena.files()) == 2


def test_links_in_a_path_that_the_kernel_does_not_take_are_not_followed(arena: Arena) -> None:
    (arena.root / "real").mkdir()
    (arena.root / "link").symlink_to("real")
    path = b"link/" + b"/".join([b"n" * 255] * 20)
    assert "no directory" in arena.refuse(pax({b"path": path + b"/f"}), entry(b"f"))


_MEASURED = """
import io, os, sys
from thinpool.errors import ArchiveError
from thinpool.layer.unpack import unpack_layer
def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])
before = peak()
try:
    unpack_layer(sys.stdin.buffer, os.open(sys.argv[1], os.O_PATH))
except ArchiveError as error:
    print(error)
print(peak() - before, peak())
"""


def many_directories() -> Iterator[bytes]:
    for number in range(10_000):
        yield entry(b"d%d/" % number, b"5")


def large_headers() -> Iterator[bytes]:
    attributes = {b"SCHILY.xattr.trusted.%d" % number: b"" for number in range(20_000)}
    yield pax(attributes, b"g")
    for number in range(20):
        yield pax(attributes) + entry(b"w/.wh.%d" % number)


def many_links() -> Iterator[bytes]:
    yield entry(b"f")
    for number in range(10_000):
        yield entry(b"l%d" % number, b"1", link=b"f")


def sparse_maps() -> Iterator[bytes]:
    lines = padded(b"60000\n" + b"".join(b"%d\n0\n" % number for number in range(60_000)))
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"60000"}
    yield pax(records) + entry(b"f", data=lines)


@pytest.mark.parametrize("make", [many_directories, large_headers, many_links, sparse_maps])
@pytest.mark.parametrize("layers", [1, 2])
def test_memory_is_bounded_whatever_the_archive_says(arena: Arena, make: object, layers: int) -> None:
    assert callable(make)
    if layers == 2:
        (arena.root / "parent").mkdir()
    command = [sys.executable, "-c", _MEASURED, str(arena.root)]
    data = archive(*make())
    done = subprocess.run(command, input=data, check=True, capture_output=True, timeout=120)
    grown, total = done.stdout.split()[-2:]
    assert int(grown) < 30_000, done.stdout
    assert int(total) < 100_000
