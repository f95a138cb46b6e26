"""The life of a thin pool: options, what it lies on, creation, activation, growth, health."""

from thinpool.pool.health import PoolStatus
from thinpool.pool.identity import PoolIdentity
from thinpool.pool.options import PoolOptions, reconcile
from thinpool.pool.pool import ThinPool
from thinpool.pool.thins import ThinIdTaken

__all__ = ["PoolIdentity", "PoolOptions", "PoolStatus", "ThinIdTaken", "ThinPool", "reconcile"]
