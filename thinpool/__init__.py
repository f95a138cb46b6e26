"""Copy-on-write root file systems for container and microVM runtimes.

The public face is `Store`, the value types of `thinpool.model` and the errors of `thinpool.errors`. Names are
imported on first use, so that `import thinpool` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinpool.errors import *  # noqa: F403 - the whole error tree is public
    from thinpool.layer.limits import Limits
    from thinpool.model import Change, Kind, Layer, Usage, Volume
    from thinpool.priority import background
    from thinpool.store import Store

__version__ = "0.1.0"

_HOMES = {"background": "priority", "Limits": "layer.limits", "Store": "store"} | dict.fromkeys(
    ("Change", "Kind", "Layer", "Usage", "Volume"), "model"
)

__all__ = ["Change", "Kind", "Layer", "Limits", "Store", "Usage", "Volume", "__version__", "background"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name.startswith("__"):
        raise AttributeError(name)
    module = import_module(f"thinpool.{_HOMES.get(name, 'errors')}")
    try:
        value = getattr(module, name)
    except AttributeError:
        raise AttributeError(f"module 'thinpool' has no attribute {name!r}") from None
    globals()[name] = value
    return value
