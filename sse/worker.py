"""gunicorn's worker class: a stub, which becomes `sse.server.worker.Worker` in each new process.

gunicorn's master imports this file and `sse/__init__` once, and has them across reloads. So nothing but what is needed
there stands here, and this file never changes: the releases before and after a reload both run with it.
"""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches
from typing import Any

from gevent import monkey
from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, in the master; in its own process, a `sse.server.worker.Worker`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # If the app was imported in the master, as by preload_app, its version of sse is the one for all workers.
        self._held = any(name.startswith("sse.") and name != "sse.worker" for name in sys.modules)
        if self._held:
            import_module("sse.server.worker")

    def init_process(self) -> None:
        """Import this package anew, after gevent's patches, and go on as the worker that it has."""
        monkey.patch_all()
        if not self._held:
            for name in [name for name in sys.modules if name == "sse" or name.startswith("sse.")]:
                del sys.modules[name]
            invalidate_caches()
        Worker.__bases__ = (import_module("sse.server.worker").Worker,)
        super().init_process()
