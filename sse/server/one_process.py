"""Refuses to start several of gunicorn's workers with the memory store, of which each would see its own events only."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sse.service import Service

_BOOT_ERROR: Final = 3  # gunicorn's code for a worker that cannot boot: its master then ends with this code
_WAIT: Final = 5.0  # seconds
_STEP: Final = 0.05


def check_workers(worker: Any, services: Sequence[Service]) -> None:
    """Return if each service may be in a worker of gunicorn; else log the remedy, and end this process.

    :raises SystemExit: with gunicorn's code for a worker that cannot boot, or 0 if its master is ending.
    """
    if worker.cfg.workers < 2 or all(service.shared for service in services):
        return
    if worker.age > 1 and _is_told_to_end(worker):
        sys.exit(0)
    worker.log.critical(
        "Throughline does not start: the memory store is for one process, and gunicorn has %d workers: set "
        "SSE_REDIS_URL, or WEB_CONCURRENCY=1",
        worker.cfg.workers,
    )
    sys.exit(_BOOT_ERROR)


def _is_told_to_end(worker: Any) -> bool:
    """Wait until the master has seen the first worker fail, and return True; return False if it does not end.

    If the second worker failed while the master ended, the master would log a traceback and end with another code.
    """
    end = time.monotonic() + _WAIT
    while worker.alive and time.monotonic() < end:
        time.sleep(_STEP)
    return not worker.alive
