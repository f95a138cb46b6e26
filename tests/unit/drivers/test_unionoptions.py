"""The options of the overlay and aufs drivers."""

import pytest

from thinpool.drivers.aufs import TYPE as AUFS
from thinpool.drivers.overlay import TYPE as OVERLAY
from thinpool.drivers.unionoptions import UnionOptions
from thinpool.errors import ConfigError
from thinpool.filesystem.syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID


def test_what_is_read_is_shown_again_the_same() -> None:
    given = {"overlay.mountopt": " volatile,,nodev , xino=on,volatile,nosuid", "overlay.size": "1536M"}
    options = UnionOptions.parse(given, "overlay")
    assert options.in_force() == {"overlay.mountopt": "volatile,nodev,xino=on,nosuid", "overlay.size": "1536M"}
    assert UnionOptions.parse(options.in_force(), "overlay") == options
    assert options.volatile
    assert not options.userxattr
    assert options.attributes == MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
    assert options.super_options == ("volatile", "xino=on")
    assert UnionOptions.parse({}, "overlay").in_force() == {}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("overlay.mountopt", "redirect_dir=on", "not 'redirect_dir=on'"),
        ("overlay.mountopt", "lowerdir=/etc", "not 'lowerdir=/etc'"),
        ("overlay.mountopt", "xino=on,xino=off", "xino twice"),
        ("overlay.size", "small", "overlay.size='small' is not accepted"),
        ("overlay.size", "1K", "at least 64K"),
        ("overlay.sise", "1G", "unknown option 'overlay.sise'"),
        ("dm.basesize", "1G", "one of the devicemapper driver, not of overlay"),
        ("btrfs.min_space", "1G", "one of the btrfs driver, not of overlay"),
    ],
)
def test_what_is_not_accepted_is_named(key: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OVERLAY.check({key: value})
    assert said in caught.value.message
    assert key in caught.value.message


def test_aufs_has_no_options() -> None:
    AUFS.check({})
    with pytest.raises(ConfigError, match="one of the overlay driver, not of aufs"):
        AUFS.check({"overlay.size": "1G"})
    with pytest.raises(ConfigError, match=r"unknown option 'aufs.x'"):
        AUFS.check({"aufs.x": "1"})


def test_what_a_later_open_may_change() -> None:
    options = UnionOptions.parse({"overlay.mountopt": "nodev", "overlay.size": "1G"}, "overlay")
    assert options.replaced_by({}, "overlay") == options
    assert options.replaced_by({"overlay.size": "2G"}, "overlay").size == 2 << 30
    assert options.replaced_by({"overlay.size": ""}, "overlay").size == 0
    assert options.replaced_by({"overlay.mountopt": "volatile"}, "overlay").mountopt == ("volatile",)
    with pytest.raises(ConfigError, match=r"overlay.size is 1G in this store, and 512M was given; it can only grow"):
        options.replaced_by({"overlay.size": "512M"}, "overlay")
    with pytest.raises(ConfigError, match=r"overlay.mountopt is nodev in this store, and userxattr was given"):
        options.replaced_by({"overlay.mountopt": "userxattr"}, "overlay")
