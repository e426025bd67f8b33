"""Throughline: server push that gets through, for Flask."""

from sse.errors import (
    Busy,
    ConfigError,
    IdempotencyConflict,
    InvalidEvent,
    SSEError,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from sse.event import Event
from sse.extension import SSE
from sse.version import __version__ as __version__

__all__ = [
    "SSE",
    "Busy",
    "ConfigError",
    "Event",
    "IdempotencyConflict",
    "InvalidEvent",
    "SSEError",
    "StoreUnavailable",
    "TooLarge",
    "Unavailable",
]
