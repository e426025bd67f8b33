"""gunicorn's settings: `gunicorn -c gunicorn.conf.py wsgi:application`.

Nothing of the app is imported here, because the worker patches the standard library first, and because a reload has to
load new code.
"""

import errno
import gc
import logging
import mmap
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from gunicorn.http import message  # type: ignore[import-untyped]

# BIND is host:port or unix:/path. A platform that gives a PORT expects all interfaces.
_port = os.environ.get("PORT")
bind = os.environ.get("BIND") or (f"0.0.0.0:{_port}" if _port else "127.0.0.1:8000")
worker_class = "sse.worker.Worker"  # gevent's worker that hands off streams; it imports nothing of the app either
# The memory store is for one process. Several workers with it do not start, and the log says why.
_shared = os.environ.get("SSE_REDIS_URL") or os.environ.get("REDIS_URL")
workers = int(os.environ.get("WEB_CONCURRENCY") or (_shared and os.cpu_count()) or 1)
# As long as the kernel allows, net.core.somaxconn: gunicorn's own default is half of Linux' 4,096. A unix socket whose
# queue is full refuses clients at once, and nginx then tells them `busy`.
backlog = 65_535
# Longer than nginx keeps an idle upstream connection, so that nginx never sends a request on a closed one. It is also
# the longest time between two requests of a connection; a new connection has 20 s for its first.
keepalive = 75


def _whole(name: str, default: int) -> int:
    """Return a setting of the service that is needed here already. The app refuses a bad value, and says why."""
    given = os.environ.get(name, "").strip()
    return int(given) if re.fullmatch("[0-9]{1,9}", given) else default


send_buffer = _whole("SSE_SEND_BUFFER", 16_384)
drain = _whole("SSE_DRAIN", 0)
drain_delay = _whole("SSE_DRAIN_DELAY", 0)
run_grace = _whole("SSE_RUN_GRACE", 25)
# Seconds for streams to be closed and for requests to end. The rest is cut, and its clients go on elsewhere.
_request_seconds = drain_delay + drain + 2
# Seconds for which a worker that a reload ends goes on while its successors load the app.
_loading_seconds = 10
# Seconds after which gunicorn kills a worker. One whose runs have not ended may take so long.
graceful_timeout = drain_delay + max(drain, run_grace) + 2 + _loading_seconds
max_requests = 0  # it would cut streams
control_socket_disable = True
# No header may replace a part of the request. gunicorn would take SCRIPT_NAME from a local proxy, which passes on what
# its client sent: /x/sse/publish would then be our /sse/publish, past a proxy's rule for that path. X-Forwarded-Proto
# still counts, from the proxies in FORWARDED_ALLOW_IPS.
forwarder_headers = ""
# The format if the access log is turned on: as usual, without the query and the Referer, which may have a ticket.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(a)s"'

# A last event id of 4 KB and its channels, percent-encoded in a query, make a request line of up to 24 KB. gunicorn
# stops at 8,190 whatever is set, or nowhere if 0 is set. So its own ceiling is raised to the one of nginx.conf.
message.MAX_REQUEST_LINE = limit_request_line = 32_768
# Room for other apps' cookies on the same host: a 431 for a longer header would end an EventSource for good.
limit_request_field_size = 32_768


# Queries, tokens, tickets and keys; and the part of a request that gunicorn quotes when it cannot read it.
_SECRETS = re.compile(r"\?(?!\W*(?:\s|$))\S*|\beyJ[\w.-]+|\bbearer\s.*", re.IGNORECASE)
_QUOTED = re.compile(r"(?<=^Invalid request from )([^'\"]*)['\"].*", re.DOTALL)
# What would begin another line of a log, or be an order to the terminal that shows it. %(U)s has the path decoded.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OWN_FILES = 50  # at most: listeners, logs, Redis, the event loop, and what the app has open for a moment


def _board(server: Any) -> mmap.mmap:
    """Return memory that the master and all workers share, over all reloads.

    Its first byte counts the reloads. Each other byte belongs to a worker, by its age, and is 1 while the worker loads
    the app.
    """
    if not hasattr(server, "board"):
        server.board = mmap.mmap(-1, 4096)
    board: mmap.mmap = server.board
    return board


def on_reload(server: Any) -> None:
    """Count the reloads where the workers can see it. A worker that ends by a reload has a successor already."""
    board = _board(server)
    board[0] = (board[0] + 1) % 256


def _note(server: Any, worker: Any, is_loading: int) -> None:
    board = _board(server)
    board[1 + worker.age % (len(board) - 1)] = is_loading


def pre_fork(server: Any, worker: Any) -> None:
    """Note that a worker loads the app. A worker that a reload ends waits for that."""
    _note(server, worker, 1)
    worker.has_loaded = partial(_note, server, worker, 0)


def worker_exit(server: Any, worker: Any) -> None:
    """Note, in a worker that ends, that it does not load the app."""
    _note(server, worker, 0)


def child_exit(server: Any, worker: Any) -> None:
    """Note the same in the master, for a worker that was killed."""
    _note(server, worker, 0)


def when_ready(server: Any) -> None:
    """Have the kernel bound the unsent bytes of a peer that does not read, and cut peers that have vanished."""
    for listener in server.LISTENERS:
        if listener.sock.family != socket.AF_UNIX:
            # Accepted sockets inherit both. This bounds the unsent bytes; SO_SNDBUF would bound those on their way too.
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, send_buffer)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


def post_fork(server: Any, worker: Any) -> None:
    """Tell a worker of reloads, and filter its log. In the master's log, the filter would stay for ever."""
    board = _board(server)
    at_birth = board[0]
    worker.is_reloaded = lambda: board[0] != at_birth
    worker.successors_load = lambda: board.find(b"\1", 1) >= 0
    for name in ("gunicorn.error", "sse"):
        logging.getLogger(name).addFilter(_is_news)
    logging.getLogger("gunicorn.access").addFilter(_on_one_line)


def nworkers_changed(server: Any, workers: int, before: int | None) -> None:
    """Refuse a second worker, for which SIGTTIN asks, if the store is one process's memory."""
    if not _shared and before and workers > before:
        server.log.warning("the memory store is for one process: set SSE_REDIS_URL to have more workers")
        server.num_workers = before  # this calls the hook again, with a decrease


def post_worker_init(worker: Any) -> None:
    """Admit as many subscribers as there are open files for, and keep room for other requests."""
    _spare_the_collector()
    is_ours = getattr(type(worker), "hands_off", False)
    if not is_ours:  # our worker says so itself, when it takes clients
        worker.has_loaded()
    if worker.app.callable is None:
        return  # with --reload, a page says that the app cannot be loaded; the next worker tries again
    from sse.log import follow_gunicorn  # not in the master, which would keep the old code after a reload
    from sse.server.one_process import check_workers
    from sse.service import living

    if not is_ours:  # our worker has done it before it loaded the app
        follow_gunicorn(worker.log, worker.cfg)
    if worker.cfg.graceful_timeout == graceful_timeout and is_ours:
        worker.request_seconds = _request_seconds
        worker.loading_seconds = _loading_seconds
    elif worker.cfg.graceful_timeout == graceful_timeout:
        worker.cfg.set("graceful_timeout", _request_seconds)  # for requests; runs go on in a thread, see _drain_at_end
    services = living()
    if not is_ours:
        check_workers(worker, services)
    _share_files(worker, services, is_ours)
    for service in services:
        if service.shared:
            service.hub.start()  # so that the log names a fault of Redis at once, and not only when a client subscribes
        if not is_ours:
            _drain_at_end(worker, service)
    if worker.age == 1:  # once, not for each worker and its successors
        _tell_what_counts_elsewhere(worker, services)
        _tell_first_look()


def _share_files(worker: Any, services: Sequence[Any], is_ours: bool) -> None:
    """Bound the subscribers of each service, and other connections, by the limit on open files."""
    wanted = sum(service.config.max_subscribers for service in services)
    files = _allow_files()
    connections = max(files - _OWN_FILES, 10)
    others = min(1000, connections // 5)  # with a greenlet, and as many again that are parked
    allowed = min(wanted, connections - 2 * others)
    for service in services:
        service.hub.max_subscribers = allowed * service.config.max_subscribers // wanted
    # gunicorn counts only connections that keep a greenlet. A connection that was handed off is not counted.
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
    known = (send_buffer, drain, drain_delay, run_grace)
    configs = [service.config for service in services]
    if any((config.send_buffer, config.drain, config.drain_delay, config.run_grace) != known for config in configs):
        worker.log.warning(
            "SSE_SEND_BUFFER, SSE_DRAIN, SSE_DRAIN_DELAY and SSE_RUN_GRACE count in the environment alone: "
            "gunicorn has to know them"
        )


def _tell_first_look() -> None:
    key = os.environ.get("FIRST_LOOK_KEY")  # made by `make run` for this run alone, so it may be shown
    if key:
        url = f"http://{bind}"
        print(
            f"\n  open {url}/"
            f"\n  curl -N '{url}/sse/stream?channel=demo/hello'"
            f"\n  curl -H 'Authorization: Bearer {key}' -d 'hello' {url}/sse/publish/demo/hello\n",
            flush=True,
        )


def _drain_at_end(worker: Any, service: Any) -> None:
    """Close the streams of one of gunicorn's own workers with `drain` when it ends, before gunicorn cuts them.

    A thread does this, because a stream occupies the sync worker, and because a signal's handler cannot take a lock.
    The exit of the process waits for the thread, which gives runs their time.
    """

    def watch() -> None:
        while worker.alive and threading.main_thread().is_alive():
            time.sleep(0.1)
        service.is_ending = True
        threading.Thread(target=service.hub.drain, args=(drain,), name="drain-streams", daemon=True).start()
        service.finish(run_grace)

    threading.Thread(target=watch, name="drain-at-end").start()


def _spare_the_collector() -> None:
    """Have Python's cyclic collector ignore the objects that exist now, and run seldom for new ones.

    A full collection visits all objects and stops everything meanwhile: a tenth of a second with 5,000 streams. Bursts
    of new streams would start one. A request leaves some 8 small objects to the collector; all others need none.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the traceback that gunicorn logs for each peer that the kernel has cut, and blank secrets of requests."""
    error = record.exc_info[1] if record.exc_info else None
    if record.name != "sse" and isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
        return False
    record.msg, record.args = _SECRETS.sub("[…]", _QUOTED.sub(r"\1[…]", record.getMessage())), ()
    if record.exc_info:
        record.exc_text = _SECRETS.sub("[…]", logging.Formatter().formatException(record.exc_info))
    return True


def _on_one_line(record: logging.LogRecord) -> bool:
    """Escape the control characters of a request in the access log, as nginx does."""
    record.msg, record.args = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", record.getMessage()), ()
    return True


def _allow_files() -> int:
    """Raise this process's limit on open files as far as possible. Return the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard):  # on Linux it never is
        return sys.maxsize if soft == hard else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
