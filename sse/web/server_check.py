"""Warns of a WSGI server that cannot hold streams. The environ of a request tells which server runs the app."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from sse.log import warn_once

_WORKER: Final = 'worker_class = "sse.worker.Worker"'
_ONE_AT_A_TIME: Final = (
    "%s answers one request at a time in each process: while a stream is open, or a poll waits, that process answers "
    "nobody else: %s"
)
_FEW_THREADS: Final = (
    "%s has a fixed number of threads, and each stream that is open, or poll that waits, holds one: when all of them "
    "are held, the site answers nobody: %s"
)


def warn_of_server(environ: Mapping[str, Any]) -> None:
    """Warn once in each process if the server that passed this request can hold no streams, or only a few.

    There is no warning for three cases: a server in which a waiting request holds a greenlet only, such as gunicorn's
    gevent worker and ours; `flask run`, which has a thread for each request; and a test client, which is no server.
    """
    if time.sleep.__module__ != "time":  # gevent or eventlet has replaced all functions that wait
        return
    server = environ.get("SERVER_SOFTWARE") or ("uWSGI" if "uwsgi.version" in environ else "")
    is_threaded = environ.get("wsgi.multithread")
    is_development = server.startswith("Werkzeug/")
    if not server or (is_threaded and is_development):
        return
    if server.startswith("gunicorn/"):
        remedy = f"set {_WORKER}"
    elif is_development:
        remedy = "leave out --without-threads"
    else:
        remedy = f"use gunicorn with {_WORKER}"
    if is_threaded:
        warn_once(_FEW_THREADS, server, f"{remedy}, or have more threads than streams and polls at a time")
    else:
        warn_once(_ONE_AT_A_TIME, server, remedy)
