"""Units written for a store, and taken away again."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.conftest import DiskFactory
from thinpool import systemd
from thinpool.cli import app
from thinpool.units import MIB

from .conftest import SMALL, Cli

pytestmark = pytest.mark.kernel


def test_units_are_shown_written_and_removed(with_base: Cli, scratch: Path) -> None:
    service = systemd.instance(with_base.root)
    told = with_base.json("systemd", "install", "--directory", str(scratch))
    assert told == {"service": service, "files": [str(scratch / systemd.TEMPLATE)], "enabled": False}
    text = (scratch / systemd.TEMPLATE).read_text()
    assert with_base.json("systemd", "show") == {"service": service, "units": {systemd.TEMPLATE: text}}
    assert text in with_base("systemd", "show")
    assert f"to enable it: systemctl enable '{service}'" in with_base("systemd", "install", "--directory", str(scratch))
    assert os.listdir(scratch) == [systemd.TEMPLATE]
    (scratch / "multi-user.target.wants").mkdir()
    (scratch / "multi-user.target.wants" / "thinpool@other.service").touch()
    with_base("systemd", "uninstall", "--directory", str(scratch))
    assert (scratch / systemd.TEMPLATE).exists()
    (scratch / "multi-user.target.wants" / "thinpool@other.service").unlink()
    with_base("systemd", "uninstall", "--directory", str(scratch))
    assert os.listdir(scratch) == ["multi-user.target.wants"]


def test_a_store_on_devices_waits_for_them(empty: Cli, scratch: Path, scratch_disk: DiskFactory) -> None:
    data, metadata = scratch_disk(1024 * MIB), scratch_disk(16 * MIB)
    devices = (f"dm.datadev={data}", f"dm.metadatadev={metadata}")
    options = [word for device in devices for word in ("--storage-opt", device)]
    assert app.run(["--root", str(empty.root), "-s", "devicemapper", *options, *SMALL, "init"]) == 0
    empty.capture()
    empty("systemd", "install", "--directory", str(scratch / "units"))
    service = systemd.instance(empty.root)
    own = (scratch / "units" / f"{service}.d" / systemd.DROP_IN).read_text()
    assert f"After=dev-{data.name}.device dev-{metadata.name}.device\n" in own
    copy = scratch / "units" / service
    copy.write_text((scratch / "units" / systemd.TEMPLATE).read_text())
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    copy.unlink()
    empty("systemd", "uninstall", "--directory", str(scratch / "units"))
    assert os.listdir(scratch / "units") == []
    assert empty("down") == ""
