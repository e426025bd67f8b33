"""The warning that a process publishes into its own memory, but serves no clients, so no client gets its events.

Such a process may be a script beside the server, in which SSE_REDIS_URL is not set.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from _thread import RLock  # never patched by gevent, so that real threads can publish, too
from typing import Any, Final

_log = logging.getLogger("sse")

_PATIENCE: Final = 10.0  # seconds from the first write in which a process may begin to serve
_SERVERS: Final = (  # modules that only a process which serves has loaded
    *("bjoern", "cheroot.wsgi", "eventlet.wsgi", "gevent.pywsgi", "granian", "gunicorn.arbiter", "hypercorn"),
    *("mod_wsgi", "tornado.httpserver", "twisted.web.wsgi", "uvicorn", "uwsgi", "waitress", "wsgiref.simple_server"),
    "pytest",  # a test client serves the app under test
)
_WERKZEUG: Final = "WERKZEUG_SERVER_FD"  # set by werkzeug's run_simple, for `flask run` and `app.run`


class Unheard:
    """Warns, once in each process, that the events in its own memory reach nobody.

    It warns if no app that published in this process has served a request, no such app is under test (TESTING), no
    server's module is loaded, and werkzeug's server has not been started. Because the process may be about to serve, it
    checks this only later: at each write from 10 s after the first one, and when the process ends.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._apps: weakref.WeakSet[Any] = weakref.WeakSet()
        self._since: float | None = None  # when the first write was, by the monotonic clock
        self._settled = False  # it has warned, or never will

    def note_write(self, app: Any) -> None:
        """Note that an app has published or revoked in the memory of this process, and warn if it is time."""
        if self._settled:
            return
        now = time.monotonic()
        with self._lock:
            is_first = self._since is None
            since = self._since = now if self._since is None else self._since
            self._apps.add(app)
        if is_first:
            atexit.register(self.look)
        elif now - since >= _PATIENCE:
            self.look()

    def look(self) -> None:
        """Warn if this process serves nobody. It decides only once."""
        with self._lock:
            apps = [] if self._settled else list(self._apps)
            if not apps:
                return
            self._settled = True
            if _is_served(apps):
                return
        _log.warning(
            "this process publishes into its own memory and has served no request, so nobody gets its events: set "
            "SSE_REDIS_URL to the same Redis here and in the process that serves, or publish over HTTP"
        )

    def forget(self) -> None:
        """Begin anew in a forked process."""
        self._lock = RLock()
        self._since = None
        self._apps.clear()


def _is_served(apps: list[Any]) -> bool:
    # Flask has no public attribute for the first request. An app without the private one counts as served.
    return (
        any(getattr(app, "_got_first_request", True) or app.testing for app in apps)
        or _WERKZEUG in os.environ
        or any(name in sys.modules for name in _SERVERS)
    )


unheard: Final = Unheard()
os.register_at_fork(after_in_child=unheard.forget)
