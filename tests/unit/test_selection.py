"""Which driver serves a root. Probing needs root, as storage does."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
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


class Brought:
    """What another package might bring."""

    name = "brought"

    def probe(self, root: Path) -> str | None:
        return f"not below {root.name}"

    def check(self, given: object) -> None:
        pass

    def create(self, context: object) -> None:
        pass

    def open(self, context: object) -> None:
        pass


class Raising(Brought):
    """Its probe fails."""

    name = "raising"

    def probe(self, root: Path) -> str | None:
        raise KeyError(root.name)


BROUGHT = Brought()
RAISING = Raising()


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = {
        "brought": "BROUGHT",
        "raising": "RAISING",
        "missing": "NO_SUCH_THING",
        "other": "BROUGHT",
        "btrfs": "BROUGHT",
    }
    found = [EntryPoint(name, f"{__name__}:{value}", selection.GROUP) for name, value in names.items()]
    found.append(EntryPoint("broken", "no_such_module_anywhere:TYPE", selection.GROUP))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: found)
    selection._others.cache_clear()
    yield
    selection._others.cache_clear()


@pytest.mark.usefixtures("others")
def test_what_other_packages_bring_is_found_and_shown_with_its_faults(tmp_path: Path) -> None:
    reports = {report.name: report for report in selection.probe_all(tmp_path)}
    assert list(reports) == [
        "aufs", "btrfs", "devicemapper", "overlay", "broken", "brought", "missing", "other", "raising",
    ]  # fmt: skip
    assert reports["brought"].reason == f"not below {tmp_path.name}"
    assert "no_such_module_anywhere:TYPE cannot be loaded: ModuleNotFoundError" in str(reports["broken"].reason)
    assert "NO_SUCH_THING" in str(reports["missing"].reason)
    assert "no driver type of that name" in str(reports["other"].reason)
    assert f"its probe failed: KeyError: '{tmp_path.name}'" in str(reports["raising"].reason)
    assert not any(report.supported for report in list(reports.values())[4:])


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("name", ["broken", "missing", "other", "raising", "brought"])
def test_a_driver_that_cannot_be_used_is_refused_when_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DriverUnsupported, match=f"driver {name} cannot be used") as caught:
        selection.choose(tmp_path, name)
    assert set(caught.value.reasons) == {name}


@pytest.mark.usefixtures("others")
def test_state_of_a_driver_that_was_brought_is_known(tmp_path: Path) -> None:
    (tmp_path / "brought").mkdir()
    (tmp_path / "mnt").mkdir()
    assert selection.held(tmp_path) == ["brought"]
    with pytest.raises(ConfigError, match="of the brought driver, not of overlay"):
        selection.choose(tmp_path, "overlay")
