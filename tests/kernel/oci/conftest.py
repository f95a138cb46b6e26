"""One store for the tests of a module, as to make one takes longer than most of them; each leaves it empty."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.oci.stacks import remove_all
from thinpool import Store

_OPTIONS = {"dm.loopdatasize": "2G", "dm.loopmetadatasize": "64M", "dm.basesize": "512M"}


@pytest.fixture(scope="module")
def shared_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("LAB_SCRATCH")) as folder:
        root = Path(folder) / "root"
        Store.open(root, "devicemapper", _OPTIONS).close()
        yield root
        with Store.open(root) as store:
            store.down()
        metadata = root / "devicemapper" / "metadata"
        loop = subprocess.run(
            ["losetup", "--read-only", "--find", "--show", metadata], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        try:
            subprocess.run(["thin_check", loop], check=True)
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.fixture
def store(shared_root: Path) -> Iterator[Store]:
    with Store.open(shared_root) as store:
        yield store
        remove_all(store)
