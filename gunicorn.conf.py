"""gunicorn's settings: `gunicorn -c gunicorn.conf.py wsgi:application`.

Nothing of the app is imported here: the worker patches the standard library first, and a reload has to find new code.
"""

import errno
import gc
import logging
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from gunicorn.http import message  # type: ignore[import-untyped]

# BIND is host:port or unix:/path. A platform that gives a PORT expects all interfaces.
_port = os.environ.get("PORT")
bind = os.environ.get("BIND") or (f"0.0.0.0:{_port}" if _port else "127.0.0.1:8000")
worker_class = "sse.worker.Worker"  # gevent's, with streams handed off; it imports nothing of the app either
# The memory store is for one process; with several workers on it the app refuses, and says why.
_shared = os.environ.get("SSE_REDIS_URL") or os.environ.get("REDIS_URL")
workers = int(os.environ.get("WEB_CONCURRENCY") or (_shared and os.cpu_count()) or 1)
# As long as the kernel allows, net.core.somaxconn: gunicorn's own default is half of Linux' 4,096. A unix socket whose
# queue is full refuses clients at once, and nginx then tells them `busy`.
backlog = 65_535
# Longer than nginx keeps an idle upstream connection, so that it is never nginx that finds one closed. It also bounds
# the silence between two requests; a new connection has 20 s for its first.
keepalive = 75


def _whole(name: str, default: int) -> int:
    """A setting of the service that is needed here already; the app refuses a bad one, and says why."""
    given = os.environ.get(name, "").strip()
    return int(given) if re.fullmatch("[0-9]{1,9}", given) else default


send_buffer = _whole("SSE_SEND_BUFFER", 16_384)
drain = _whole("SSE_DRAIN", 0)
# For streams to be closed, and for requests to end; what is left is cut, and its clients go on elsewhere.
graceful_timeout = drain + 2
max_requests = 0  # it would cut streams
control_socket_disable = True
# No header stands for a part of the request. gunicorn would take SCRIPT_NAME from a local proxy, which passes on what
# its client sent: /x/sse/publish would then be our /sse/publish, past a proxy's rule for that path. X-Forwarded-Proto
# counts as ever, from the proxies in FORWARDED_ALLOW_IPS.
forwarder_headers = ""
# For who turns the access log on: as usual, but for the query and the Referer, which may have a ticket.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(a)s"'

# A last event id of 4 KB and its channels, percent-encoded in a query, make a request line of up to 24 KB. gunicorn
# stops at 8,190 whatever is set, or, set to 0, nowhere; so its own ceiling is moved to what nginx.conf allows.
message.MAX_REQUEST_LINE = limit_request_line = 32_768
# Other apps' cookies on the same host; the 431 for one that is longer would end an EventSource for good.
limit_request_field_size = 32_768


# Queries, tokens and tickets, and keys; and what gunicorn quotes of a request that it cannot read.
_SECRETS = re.compile(r"\?(?!\W*(?:\s|$))\S*|\beyJ[\w.-]+|\bbearer\s.*", re.IGNORECASE)
_QUOTED = re.compile(r"(?<=^Invalid request from )([^'\"]*)['\"].*", re.DOTALL)
_OWN_FILES = 50  # at most: listeners, logs, Redis, the event loop, and what the app has open for a moment


def when_ready(server: Any) -> None:
    """Have the kernel bound what a peer that does not read may leave with us, and cut those that have vanished."""
    for listener in server.LISTENERS:
        if listener.sock.family != socket.AF_UNIX:
            # Accepted sockets inherit both. What is unsent is bounded, not what is on its way, as SO_SNDBUF would.
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, send_buffer)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


def post_fork(_server: Any, _worker: Any) -> None:
    """Filter what a worker logs. The master's log would have this very filter for ever, whatever a reload changes."""
    for name in ("gunicorn.error", "sse"):
        logging.getLogger(name).addFilter(_is_news)


def nworkers_changed(server: Any, workers: int, before: int | None) -> None:
    """Refuse the second worker that SIGTTIN asks for, where the store is one process's memory."""
    if not _shared and before and workers > before:
        server.log.warning("the memory store is for one process: set SSE_REDIS_URL to have more workers")
        server.num_workers = before  # comes back here, as a decrease


def post_worker_init(worker: Any) -> None:
    """Let in as many subscribers as there are files for, and always the requests of others."""
    _spare_the_collector()
    if worker.app.callable is None:
        return  # with --reload, a page says that the app cannot be loaded; the next worker tries again
    from sse.log import follow_gunicorn  # not in the master, which would have it for ever, whatever a reload changes
    from sse.service import living

    is_ours = getattr(type(worker), "hands_off", False)
    if not is_ours:  # ours has done it before it loaded the app
        follow_gunicorn(worker.log, worker.cfg)
    services = living()
    _share_files(worker, services, is_ours)
    for service in services:
        if service.shared:
            service.hub.start()  # the log tells at once what ails Redis, not first when someone subscribes
        if not is_ours:
            _drain_at_end(worker, service)
    if worker.age == 1:  # once, not for every worker and its successors
        _tell_what_counts_elsewhere(worker, services)
        _tell_first_look()


def _share_files(worker: Any, services: Sequence[Any], is_ours: bool) -> None:
    """Bound the subscribers of each service, and what else connects, by what the limit on open files allows."""
    wanted = sum(service.config.max_subscribers for service in services)
    files = _allow_files()
    connections = max(files - _OWN_FILES, 10)
    others = min(1000, connections // 5)  # with a greenlet, and as many again between two requests
    allowed = min(wanted, connections - 2 * others)
    for service in services:
        service.hub.max_subscribers = allowed * service.config.max_subscribers // wanted
    # What was handed off is not counted by gunicorn, what stays with a greenlet is.
    greenlets = worker.cfg.is_ssl or not is_ours
    worker.worker_connections = min(allowed + 1000, connections if greenlets else (connections - allowed) // 2)
    apps = f" in {len(services)} apps together" if len(services) > 1 else ""
    if worker.age > 1:
        return
    if not services:
        worker.log.warning(
            "the app has no SSE, or makes it later, so no room is kept for its streams: if it has one, "
            "call SSE(app) when the app is imported, not at the first request"
        )
    elif allowed < wanted:
        worker.log.warning(
            "%d open files: only %d subscribers a worker%s, not %d: raise LimitNOFILE, `ulimit -Hn` or the like",
            *(files, allowed, apps, wanted),
        )
    else:
        worker.log.info("%d open files: up to %d subscribers a worker%s", files, allowed, apps)


def _tell_what_counts_elsewhere(worker: Any, services: Sequence[Any]) -> None:
    if any((service.config.send_buffer, service.config.drain) != (send_buffer, drain) for service in services):
        worker.log.warning("SSE_SEND_BUFFER and SSE_DRAIN count in the environment alone: gunicorn has to know them")


def _tell_first_look() -> None:
    key = os.environ.get("FIRST_LOOK_KEY")  # from `make run`: made for this run alone, so that it may be shown
    if key:
        url = f"http://{bind}"
        print(
            f"\n  open {url}/"
            f"\n  curl -N '{url}/sse/stream?channel=demo/hello'"
            f"\n  curl -H 'Authorization: Bearer {key}' -d 'hello' {url}/sse/publish/demo/hello\n",
            flush=True,
        )


def _drain_at_end(worker: Any, service: Any) -> None:
    """Have the streams of one of gunicorn's own workers told `drain` when it ends, before gunicorn cuts them.

    In a thread, because the sync worker is held by its stream, and because a signal's handler could not take a lock.
    """

    def watch() -> None:
        while worker.alive:
            time.sleep(0.1)
        service.hub.drain(drain)

    threading.Thread(target=watch, name="drain-at-end", daemon=True).start()


def _spare_the_collector() -> None:
    """Have Python's cyclic collector pass over what stands now, and look seldom at what comes.

    A full collection walks over all objects and stops everything meanwhile, for a tenth of a second with 5,000 streams,
    and bursts of new streams bring it about. A request leaves some 8 small objects to it; the rest needs no collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the traceback that gunicorn logs for each peer that the kernel has cut; blank what a request may hide."""
    error = record.exc_info[1] if record.exc_info else None
    if record.name != "sse" and isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
        return False
    record.msg, record.args = _SECRETS.sub("[…]", _QUOTED.sub(r"\1[…]", record.getMessage())), ()
    if record.exc_info:
        record.exc_text = _SECRETS.sub("[…]", logging.Formatter().formatException(record.exc_info))
    return True


def _allow_files() -> int:
    """Raise this process's limit on open files, as far as that goes; the limit that holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):  # never so on Linux
        return sys.maxsize if soft == hard else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
