"""sysup: a process supervisor for Linux that lives inside systemd.

For programs that steer it: `Client` and, for asyncio, `AsyncClient`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sysup.aio import AsyncClient
    from sysup.client import Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]

_HOMES = {"AsyncClient": "sysup.aio", "Client": "sysup.client"}


def __getattr__(name: str) -> Any:
    """The clients, which the daemon itself does not load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sysup' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
