"""Warns of a WSGI server that cannot hold streams. The environ of a request tells which server runs the app."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Literal

from sse.log import warn_once

_DEVELOPMENT: Final = "Werkzeug/"
_WORKER: Final = 'worker_class = "sse.worker.Worker"'
_ONE_AT_A_TIME: Final = (
    "%s answers one request at a time in each process: while a stream is open, or a poll waits, that process answers "
    "nobody else: %s"
)
_FEW_THREADS: Final = (
    "%s has a fixed number of threads, and each stream that is open, or poll that waits, holds one: when all of them "
    "are held, the site answers nobody: %s"
)


Holds = Literal["many", "threads", "one"]
"""How many streams a process holds at a time: thousands, as many as it has threads, or one."""


def streams_held(environ: Mapping[str, Any]) -> Holds:
    """Return how many streams the server that passed this request can hold in each process.

    It holds many in three cases: a server in which a waiting request holds a greenlet only, such as gunicorn's gevent
    worker and ours; `flask run`, which has a thread for each request; and a test client, which is no server.
    """
    if time.sleep.__module__ != "time":  # gevent or eventlet has replaced all functions that wait
        return "many"
    server, is_threaded = _server(environ), environ.get("wsgi.multithread")
    if not server or (is_threaded and server.startswith(_DEVELOPMENT)):
        return "many"
    return "threads" if is_threaded else "one"


def warn_of_server(environ: Mapping[str, Any]) -> None:
    """Warn once in each process if the server that passed this request can hold no streams, or only a few."""
    held = streams_held(environ)
    if held == "many":
        return
    server = _server(environ)
    if server.startswith("gunicorn/"):
        remedy = f"set {_WORKER}"
    elif server.startswith(_DEVELOPMENT):
        remedy = "leave out --without-threads"
    else:
        remedy = f"use gunicorn with {_WORKER}"
    if held == "threads":
        warn_once(_FEW_THREADS, server, f"{remedy}, or have more threads than streams and polls at a time")
    else:
        warn_once(_ONE_AT_A_TIME, server, remedy)


def _server(environ: Mapping[str, Any]) -> str:
    return environ.get("SERVER_SOFTWARE") or ("uWSGI" if "uwsgi.version" in environ else "")
