"""Throughline: server push that gets through, for Flask."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sse.errors import (
        Busy,
        ConfigError,
        IdempotencyConflict,
        InvalidEvent,
        NotFound,
        SSEError,
        StoreUnavailable,
        TooLarge,
        Unavailable,
    )
    from sse.extension import SSE, Event
    from sse.version import __version__ as __version__

__all__ = [
    "SSE",
    "Busy",
    "ConfigError",
    "Event",
    "IdempotencyConflict",
    "InvalidEvent",
    "NotFound",
    "SSEError",
    "StoreUnavailable",
    "TooLarge",
    "Unavailable",
]
_HOMES = {"SSE": "sse.extension", "Event": "sse.extension", "__version__": "sse.version"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `sse.worker` has to patch the standard library before the rest."""
    if name not in __all__ and name not in _HOMES:
        raise AttributeError(f"module 'sse' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "sse.errors")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES})
