"""Which driver serves a root. Probing needs root, as storage does."""

from pathlib import Path

import pytest

from thinpool import Store
from thinpool.drivers import selection
from thinpool.errors import ConfigError, DriverUnsupported


def has_device_mapper() -> bool:
    return "device-mapper" in Path("/proc/misc").read_text()


def test_drivers_are_shown_in_the_order_of_selection(tmp_path: Path) -> None:
    reports = selection.probe_all(tmp_path)
    assert [report.name for report in reports] == ["aufs", "btrfs", "devicemapper", "overlay"]
    assert all(report.supported == (report.reason is None) for report in reports)
    assert sum(report.selected for report in reports) <= 1


def test_a_kernel_without_device_mapper_is_told_with_a_reason_a_driver(tmp_path: Path) -> None:
    if has_device_mapper():
        assert selection.choose(tmp_path) == "devicemapper"
        return
    with pytest.raises(DriverUnsupported, match="device-mapper") as caught:
        Store.open(tmp_path / "root")
    assert set(caught.value.reasons) == {"aufs", "btrfs", "devicemapper"}
    with pytest.raises(DriverUnsupported, match="device-mapper"):
        Store.open(tmp_path / "root", "devicemapper")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_driver_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aufs, btrfs, devicemapper, overlay"):
        selection.choose(tmp_path, "zfs")


def test_state_of_two_drivers_names_both(tmp_path: Path) -> None:
    (tmp_path / "btrfs").mkdir()
    (tmp_path / "overlay").mkdir()
    with pytest.raises(ConfigError, match="btrfs and overlay"):
        selection.choose(tmp_path)


def test_prior_state_decides_and_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "devicemapper").mkdir()
    with pytest.raises(ConfigError, match="devicemapper"):
        selection.choose(tmp_path, "overlay")
