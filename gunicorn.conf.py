"""gunicorn's settings: `gunicorn -c gunicorn.conf.py wsgi:application`.

Nothing of the app is imported before the worker has patched the standard library.
"""

import os
import resource
import socket
from typing import Any

from gunicorn.http import message  # type: ignore[import-untyped]

# BIND is host:port or unix:/path. Platforms that give a PORT expect all interfaces.
bind = os.environ.get("BIND") or (f"0.0.0.0:{os.environ['PORT']}" if "PORT" in os.environ else "127.0.0.1:8000")
worker_class = "gevent"
# The memory store is for one process; with several workers on it the app refuses, and says why.
_shared = os.environ.get("SSE_REDIS_URL") or os.environ.get("REDIS_URL")
workers = int(os.environ.get("WEB_CONCURRENCY") or (_shared and os.cpu_count()) or 1)
# Longer than nginx keeps an idle upstream connection, so that it is never nginx that finds one closed.
keepalive = 75
# Streams would hold a stopping worker for ever. Their clients go on elsewhere, from the same place.
graceful_timeout = 2
max_requests = 0  # it would cut streams
control_socket_disable = True

# A last event id of 4 KB and its channels, percent-encoded in a query, make a request line of up to 24 KB. gunicorn
# stops at 8,190 whatever is set, or, set to 0, nowhere.
message.MAX_REQUEST_LINE = limit_request_line = 32_768

_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))


def when_ready(server: Any) -> None:
    """Cut peers that never read, and show a first look's next steps."""
    for listener in server.LISTENERS:
        # Accepted sockets inherit it: one whose peer acknowledges nothing for so long is closed, a stream's too.
        if listener.sock.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    if os.environ.get("DEMO"):
        url, key = server.LISTENERS[0], os.environ.get("SSE_PUBLISH_KEYS", "KEY")
        print(
            f"\n  open {url}/"
            f"\n  curl -N '{url}/sse/stream?channel=demo/hello'"
            f"\n  curl -H 'Authorization: Bearer {key}' -d 'hello' {url}/sse/publish/demo/hello\n",
            flush=True,
        )


def post_worker_init(worker: Any) -> None:
    """Leave room above the limit that the app answers for, so that health and publishing get through at it."""
    subscribers = worker.wsgi.extensions["sse"].config.max_subscribers
    worker.worker_connections = subscribers + 1000
    files = worker.worker_connections + 100
    if 0 <= _hard < files:
        worker.log.warning(
            "%d file descriptors allowed, %d subscribers want %d: raise the limit", _hard, subscribers, files
        )
