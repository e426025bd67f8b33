"""gunicorn's settings: `gunicorn -c gunicorn.conf.py wsgi:application`.

Nothing of the app is imported here: the worker patches the standard library first, and a reload has to find new code.
"""

import errno
import logging
import os
import resource
import socket
from typing import Any

from gunicorn.http import message  # type: ignore[import-untyped]

# BIND is host:port or unix:/path. A platform that gives a PORT expects all interfaces.
_port = os.environ.get("PORT")
bind = os.environ.get("BIND") or (f"0.0.0.0:{_port}" if _port else "127.0.0.1:8000")
worker_class = "sse.worker.Worker"  # gevent's, with streams handed off; it imports nothing of the app either
# The memory store is for one process; with several workers on it the app refuses, and says why.
_shared = os.environ.get("SSE_REDIS_URL") or os.environ.get("REDIS_URL")
workers = int(os.environ.get("WEB_CONCURRENCY") or (_shared and os.cpu_count()) or 1)
# Longer than nginx keeps an idle upstream connection, so that it is never nginx that finds one closed. It also bounds
# the wait for a request's head: 0 would be no bound.
keepalive = 75
# Streams would hold a stopping worker for as long as it lets them. Their clients go on elsewhere, from the same place.
graceful_timeout = 2
max_requests = 0  # it would cut streams
control_socket_disable = True

# A last event id of 4 KB and its channels, percent-encoded in a query, make a request line of up to 24 KB. gunicorn
# stops at 8,190 whatever is set, or, set to 0, nowhere; so its own ceiling is moved to what nginx.conf allows.
message.MAX_REQUEST_LINE = limit_request_line = 32_768
# Other apps' cookies on the same host; the 431 for one that is longer would end an EventSource for good.
limit_request_field_size = 32_768


def when_ready(server: Any) -> None:
    """Have the kernel cut peers that never read or have vanished."""
    server.log.error_log.addFilter(_is_news)
    for listener in server.LISTENERS:
        # Accepted sockets inherit it: one whose peer acknowledges nothing for so long is closed, a stream's too.
        if listener.sock.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


def nworkers_changed(server: Any, workers: int, before: int | None) -> None:
    """Refuse the second worker that SIGTTIN asks for, where the store is one process's memory."""
    if not _shared and before and workers > before:
        server.log.warning("the memory store is for one process: set SSE_REDIS_URL to have more workers")
        server.num_workers = before  # comes back here, as a decrease


def post_worker_init(worker: Any) -> None:
    """Leave room above the limit that the app answers for, so that health and publishing get through at it."""
    service = worker.app.wsgi().extensions["sse"]
    if service.shared:
        service.hub.start()  # the log tells at once what ails Redis, not first when someone subscribes
    subscribers = service.config.max_subscribers
    worker.worker_connections = subscribers + 1000
    allowed = _allow_files(worker.worker_connections + 100)
    first = worker.age == 1  # once, not for every worker and its successors
    if first and allowed <= subscribers:
        worker.log.warning(
            "%d open files are allowed, SSE_MAX_SUBSCRIBERS is %d: raise LimitNOFILE or `ulimit -Hn`, or lower it",
            allowed,
            subscribers,
        )
    key = os.environ.get("FIRST_LOOK_KEY")  # from `make run`: made for this run alone, so that it may be shown
    if first and key:
        url = f"http://{bind}"
        print(
            f"\n  open {url}/"
            f"\n  curl -N '{url}/sse/stream?channel=demo/hello'"
            f"\n  curl -H 'Authorization: Bearer {key}' -d 'hello' {url}/sse/publish/demo/hello\n",
            flush=True,
        )


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the traceback that gunicorn logs for each peer that the kernel has cut."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, OSError) and error.errno == errno.ETIMEDOUT)


def _allow_files(wanted: int) -> int:
    """Raise this process's limit on open files, as far as that goes; the limit that holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard):
        soft = max(soft, min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
