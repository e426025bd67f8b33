"""Warnings that a storm of the same kind cannot fill the log with."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

_log = logging.getLogger("sse")

_EVERY: Final = 10.0
_lock = threading.Lock()
_told: dict[str, tuple[float, int]] = {}  # by message: when it was last logged, and how many were held back since


def warn(message: str, *args: object) -> None:
    """Log a warning, unless one with the same `message`, whatever its `args`, was logged in the last 10 seconds."""
    now = time.monotonic()
    with _lock:
        at, held = _told.get(message, (now - _EVERY, 0))
        due = now - at >= _EVERY
        _told[message] = (now, 0) if due else (at, held + 1)
    if due and held:
        _log.warning(f"{message} (and %d more like it)", *args, held)
    elif due:
        _log.warning(message, *args)
