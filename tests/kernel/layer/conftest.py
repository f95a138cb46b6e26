"""Scratch places for trees."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.layer.images import Images


@pytest.fixture(scope="module")
def images() -> Iterator[Images]:
    """Loop devices that all tests of a module share; none uses what another left in them."""
    images = Images.open(Path(tempfile.mkdtemp(prefix="images-", dir=os.environ.get("LAB_SCRATCH"))))
    yield images
    images.close()
