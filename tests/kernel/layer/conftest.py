"""Scratch places for trees."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.layer.images import Images


@pytest.fixture
def images() -> Iterator[Images]:
    images = Images(Path(tempfile.mkdtemp(prefix="images-", dir=os.environ.get("LAB_SCRATCH"))))
    yield images
    images.close()
