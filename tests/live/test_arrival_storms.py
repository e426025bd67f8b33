"""A worker serves very many clients that connect at the same moment, as after a restart or a network outage."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.load import Load
from bench.peers import get
from tests.live.load import ENV
from tests.servers import Gunicorn, Nginx, children, open_fds, wait_until

SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())
MANY = 2_500  # over gunicorn's own default for the queue of a listener


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    """A server on a Unix socket. There, a client is refused at once if the queue is full, while TCP tries again."""
    env = {name: value for name, value in ENV.items() if name != "SSE_HEARTBEAT"} | {"SSE_REDIS_URL": redis_url}
    with Gunicorn(tmp_path, "tests.live.apps.busy_view:app", env, request.param, f"unix:{tmp_path}/sock") as server:
        yield server


def queue(server: Gunicorn, count: int, stack: ExitStack) -> list[socket.socket]:
    """Return clients that have sent a request, and wait in the queue of a server that is stopped."""
    sockets = []
    for _ in range(count):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)
        sock.connect(server.bind.removeprefix("unix:"))  # BlockingIOError where the queue is full
        sock.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        sockets.append(sock)
    return sockets


@pytest.mark.skipif(SOMAXCONN < MANY, reason="the kernel allows no such queue here")
def test_the_queue_of_a_listener_is_as_long_as_the_kernel_allows(server: Gunicorn) -> None:
    with ExitStack() as stack:
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGSTOP)
        assert len(queue(server, MANY, stack)) == MANY
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(SOMAXCONN < MANY, reason="the kernel allows no such queue here")
def test_clients_are_let_in_far_ahead_of_their_being_served(server: Gunicorn) -> None:
    """Else the queue of the listener, which is short, would have to hold them all."""
    with ExitStack() as stack:
        before = server.fds()
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGSTOP)
        sockets = queue(server, 2_000, stack)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGCONT)

        def ahead() -> int:
            let_in = sum(open_fds(pid) for pid in children(server.pid)) - before
            served = sum(1 for sock in sockets if _has_answer(sock))
            return let_in - served

        # Of 2,000; with gunicorn's defaults, 100 are let in at a time, or one, between any 50 that are served.
        wait_until(lambda: ahead() >= 1_600, 10, 0, "1,600 are let in before they are served")


def _has_answer(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


@pytest.mark.skipif(SOMAXCONN < MANY, reason="the kernel allows no such queue here")
def test_behind_nginx_nobody_is_told_busy_who_comes_while_the_worker_is_held_up(tmp_path: Path) -> None:
    with ExitStack() as stack:
        env = {name: value for name, value in ENV.items() if name != "SSE_HEARTBEAT"}
        server = stack.enter_context(Gunicorn(tmp_path, env=env, bind=f"unix:{tmp_path}/sock"))
        nginx = stack.enter_context(Nginx(tmp_path, server.bind, {"return 308 https://$server_name$request_uri;": ""}))
        load = stack.enter_context(Load("127.0.0.1", nginx.http_port))
        load.set("stream", get("/sse/stream?channel=a"))
        load.set("again", get("/sse/stream?channel=a"))
        load("own", MANY)  # which tells how often `busy` was heard
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        timer = threading.Timer(1, os.kill, (worker, signal.SIGCONT))
        timer.start()
        opened = load("open", MANY, MANY, 1)
        timer.join()
        assert (opened["open"], opened["busy"]) == (MANY, 0)
        assert " 502" not in nginx.access_log.read_text()
