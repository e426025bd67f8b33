"""gunicorn's worker class: a stub for gunicorn's master, which becomes `sse.server.worker.Worker` in each new process.

The master reads gunicorn's settings, forks, and goes on across reloads. It keeps nothing of this package, so that each
process runs one version of it: the one that is there when the process begins. Only this file may be older, so it does
not change.
"""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches
from typing import Any

from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, in the master; in its own process, a `sse.server.worker.Worker`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # in the master, before the fork
        if "sse.service" not in sys.modules:
            for name in [name for name in sys.modules if name == "sse" or name.startswith("sse.")]:
                del sys.modules[name]
        elif "sse.server.worker" not in sys.modules:  # the master has an app with SSE: all workers have that version
            import_module("sse.server.worker")
            self.log.warning(
                "gunicorn's master has imported the app (by preload_app, or in gunicorn's settings), so a reload "
                "brings no new code: restart instead"
            )

    def init_process(self) -> None:
        """Import the worker's code, and go on with it."""
        invalidate_caches()
        Worker.__bases__ = (import_module("sse.server.worker").Worker,)
        super().init_process()
