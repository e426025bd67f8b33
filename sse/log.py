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


def warn(message: str, *args: object, exc_info: bool = False) -> None:
    """Log a warning, unless one with the same `message`, whatever its `args`, was logged in the last 10 seconds.

    :param exc_info: log an error, and where the exception that is being handled comes from.
    """
    now = time.monotonic()
    with _lock:
        at, held = _told.get(message, (now - _EVERY, 0))
        due = now - at >= _EVERY
        _told[message] = (now, 0) if due else (at, held + 1)
    level = logging.ERROR if exc_info else logging.WARNING
    if due and held:
        _log.log(level, f"{message} (and %d more like it)", *args, held, exc_info=exc_info)
    elif due:
        _log.log(level, message, *args, exc_info=exc_info)
