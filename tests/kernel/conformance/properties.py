"""Scenarios about what is no content: permissions, owners, times, attributes, links, special files, strange names."""

import os
import shutil
import stat
import struct
from pathlib import Path

from tests.kernel.conformance.scenarios import SOME_TIME_NS, Scenario, scenario
from tests.kernel.layer.trees import CAPABILITY

_LONG_AGO_NS = -1_500_000_000_123_456_789
_FAR_AHEAD_NS = 4_000_000_000_987_654_321


def acl(user: int, permissions: int) -> bytes:
    """An access control list that grants one more user something (include/uapi/linux/posix_acl_xattr.h)."""
    entries = ((1, 7, -1), (2, permissions, user), (4, 5, -1), (16, 7, -1), (32, 5, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@scenario
def permissions_alone(root: Path) -> Scenario:
    (root / "d").mkdir()
    (root / "d/f").write_text("f")
    (root / "nobody").write_text("n")
    root = yield
    (root / "d/f").chmod(0o4755)
    (root / "nobody").chmod(0)
    root = yield
    (root / "d").chmod(0o1777)
    root = yield
    (root / "d").chmod(0o2750)


@scenario
def owners_alone(root: Path) -> Scenario:
    (root / "d").mkdir()
    (root / "d/f").write_text("f")
    (root / "link").symlink_to("d/f")
    os.mkfifo(root / "fifo")
    root = yield
    os.chown(root / "d/f", 1000, 65_534)
    os.chown(root / "link", 1, 2, follow_symlinks=False)
    os.chown(root / "fifo", 4_294_967_294, 2_097_152)
    root = yield
    os.chown(root / "d", 5, 5)


@scenario
def permissions_of_a_removed_owner_survive(root: Path) -> Scenario:
    """A change of owner clears the setuid bit, and what is set again afterwards stays."""
    (root / "tool").write_text("tool")
    (root / "tool").chmod(0o4755)
    root = yield
    os.chown(root / "tool", 7, 7)
    root = yield
    (root / "tool").chmod(0o6755)


@scenario
def times(root: Path) -> Scenario:
    for name in ("past", "future", "zero", "d"):
        (root / name).mkdir() if name == "d" else (root / name).write_text(name)
    (root / "link").symlink_to("past")
    os.utime(root / "past", ns=(0, _LONG_AGO_NS))
    os.utime(root / "future", ns=(0, _FAR_AHEAD_NS))
    os.utime(root / "zero", ns=(0, 0))
    os.utime(root / "link", ns=(0, _LONG_AGO_NS), follow_symlinks=False)
    os.utime(root / "d", ns=(0, _FAR_AHEAD_NS))
    root = yield
    os.utime(root / "past", ns=(0, _LONG_AGO_NS + 1))
    os.utime(root / "zero", ns=(0, 1))
    os.utime(root / "d", ns=(0, _LONG_AGO_NS))
    os.utime(root / "link", ns=(0, _FAR_AHEAD_NS), follow_symlinks=False)


@scenario
def extended_attributes(root: Path) -> Scenario:
    (root / "d").mkdir()
    for name in ("f", "d/f"):
        (root / name).write_text(name)
    for path in (root / "f", root / "d"):
        os.setxattr(path, "user.k", b"value")
        os.setxattr(path, "user.eq=ual %3D", b"\0\xff")
        os.setxattr(path, "trusted.t", b"x" * 300)
    root = yield
    os.setxattr(root / "f", "user.k", b"other")
    os.removexattr(root / "d", "trusted.t")
    os.setxattr(root / "d/f", "user.new", b"")


@scenario
def access_control_lists(root: Path) -> Scenario:
    (root / "d").mkdir()
    (root / "f").write_text("f")
    os.setxattr(root / "f", "system.posix_acl_access", acl(1000, 6))
    os.setxattr(root / "d", "system.posix_acl_default", acl(1000, 7))
    (root / "d/inherits").write_text("i")
    root = yield
    os.setxattr(root / "f", "system.posix_acl_access", acl(1001, 6))
    (root / "d/inherits too").write_text("i")
    (root / "d/sub").mkdir()
    root = yield
    os.removexattr(root / "d", "system.posix_acl_default")
    os.removexattr(root / "f", "system.posix_acl_access")


@scenario
def capabilities(root: Path) -> Scenario:
    for name in ("ping", "plain"):
        (root / name).write_text(name)
    os.setxattr(root / "ping", "security.capability", CAPABILITY)
    root = yield
    os.removexattr(root / "ping", "security.capability")
    os.setxattr(root / "plain", "security.capability", CAPABILITY)


@scenario
def the_root_directory_itself(root: Path) -> Scenario:
    (root / "f").write_text("f")
    root = yield
    root.chmod(0o1711)
    os.chown(root, 33, 44)
    root = yield
    os.setxattr(root, "user.root", b"yes")
    os.setxattr(root, "system.posix_acl_default", acl(1000, 7))
    root = yield
    os.removexattr(root, "user.root")
    root.chmod(0o755)


# -- links


@scenario
def hard_links(root: Path) -> Scenario:
    (root / "d").mkdir()
    (root / "a").write_text("linked")
    (root / "b").hardlink_to(root / "a")
    (root / "d/c").hardlink_to(root / "a")
    (root / "single").write_text("single")
    root = yield
    (root / "second").hardlink_to(root / "single")
    root = yield
    (root / "second").unlink()


@scenario
def a_file_with_two_names_written_through_one(root: Path) -> Scenario:
    """Where a copy is made for the write, the other name may keep the old content; whatever is seen must stay."""
    (root / "a").write_text("linked")
    (root / "b").hardlink_to(root / "a")
    root = yield
    with (root / "a").open("a") as file:
        file.write(" and written to")


@scenario
def a_file_with_three_names_written_through_two(root: Path) -> Scenario:
    """Be it one file all the time, or two of which each was copied for its write: no write fails, nothing is mixed."""
    (root / "sub").mkdir()
    (root / "a").write_text("linked")
    for name in ("b", "sub/c"):
        (root / name).hardlink_to(root / "a")
    root = yield
    for name in ("a", "sub/c"):
        with (root / name).open("a") as file:
            file.write(f" and written to as {name}")
    assert (root / "a").read_text().startswith("linked and written to as a")
    assert (root / "sub/c").read_text().endswith(" and written to as sub/c")
    root = yield
    (root / "a").unlink()


@scenario
def hard_links_broken_and_joined(root: Path) -> Scenario:
    for name in ("a", "c"):
        (root / name).write_text("same")
        os.utime(root / name, ns=(0, SOME_TIME_NS))
    (root / "b").hardlink_to(root / "a")
    root = yield
    (root / "b").unlink()
    shutil.copy2(root / "a", root / "b")
    (root / "c").unlink()
    (root / "c").hardlink_to(root / "a")


@scenario
def hard_links_of_what_is_no_file(root: Path) -> Scenario:
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("somewhere")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    root = yield
    for name in ("fifo", "link", "device"):
        os.link(root / name, root / f"{name} again", follow_symlinks=False)


@scenario
def symbolic_links(root: Path) -> Scenario:
    for name, target in (("a", "/etc/passwd"), ("b", "../../.."), ("long", "t" * 1000), ("self", "self")):
        (root / name).symlink_to(target)
    os.symlink(b"\xff\n", os.fsencode(root / "bytes"))
    root = yield
    for name in ("a", "long"):
        (root / name).unlink()
        (root / name).symlink_to("elsewhere")


# -- what is neither file nor directory, and strange names


@scenario
def devices_fifos_and_sockets(root: Path) -> Scenario:
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 100_000))
    root = yield
    (root / "null").unlink()
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (root / "disk").chmod(0o600)
    (root / "socket").unlink()


@scenario
def names_of_all_bytes(root: Path) -> Scenario:
    top = os.fsencode(root)
    longest = b"n" * os.statvfs(root).f_namemax
    named = [b"new\nline", b"\xff\xfe", longest, b" ", b"\\", b"-rf", b"*", b"\x01\x7f", "\u00e9".encode()]
    for name in named:
        os.mkdir(top + b"/" + name)
        with open(top + b"/" + name + b"/" + name, "wb") as file:
            file.write(name)
    root = yield
    top = os.fsencode(root)
    os.unlink(top + b"/new\nline/new\nline")
    shutil.rmtree(top + b"/\xff\xfe")
    os.chmod(top + b"/" + longest + b"/" + longest, 0o600)


@scenario
def names_in_the_order_of_bytes(root: Path) -> Scenario:
    for name in ("a", "a-b", "a.b", "ab", "B"):
        (root / name).mkdir()
        (root / name / "f").write_text(name)
    root = yield
    for name in ("a", "a-b", "a.b", "ab", "B"):
        (root / name / "f").write_text("new")
        (root / f"{name}!").write_text("new")
