"""gunicorn's worker class: a stub for gunicorn's master, which becomes `sse.server.worker.Worker` in each new process.

gunicorn's master reads its settings, forks, and lives on across reloads. It keeps no other module of this package, so
each worker process imports the version that is installed when the process begins. This file alone may come from an
older version, so its code does not change.
"""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches
from typing import Any

from gunicorn.workers.ggevent import GeventWorker  # type: ignore[import-untyped]


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's worker class, under which a stream or a waiting poll holds a file descriptor and no greenlet.

    Name it in gunicorn's configuration, or by `-k sse.worker.Worker`. It needs gevent, as `gunicorn[gevent]` brings it.
    The class is gunicorn's own gevent worker in gunicorn's master. In each worker process, it becomes
    `sse.server.worker.Worker`.

    >>> from gunicorn.config import Config
    >>> settings = Config()
    >>> settings.set("worker_class", "sse.worker.Worker")    # as -k does
    >>> settings.worker_class
    <class 'sse.worker.Worker'>
    """

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
        """Import the worker's code in its own process, and continue with it."""
        invalidate_caches()
        Worker.__bases__ = (import_module("sse.server.worker").Worker,)
        super().init_process()
