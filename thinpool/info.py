"""What a store tells of itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from thinpool.pool.health import PoolStatus


@attrs.frozen
class StoreInfo:
    """What `info` shows.

    Attributes:
        root: the store's root directory.
        driver: the driver's name.
        options: the driver's options in force.
        layers: how many layers there are.
        pool: the thin pool, or None where the driver has none.
        warnings: for people.
    """

    root: Path
    driver: str
    options: Mapping[str, str]
    layers: int
    pool: PoolStatus | None
    warnings: Sequence[str]
