"""Workers that end by a reload or at max_requests.

Every request is answered, and no publish is stored in part.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Self

import pytest

from tests import client
from tests.live.load import APP, ENV, KEY, address
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until

RELOADS = int(os.environ.get("RELOADS", "3"))
PAUSES = (0, 0.001, 0.02)


class Visitor:
    """A client in a loop: it connects or keeps its connection, waits a moment, asks, and reads the answer."""

    def __init__(self, where: str | tuple[str, int], pause: float, *, keeps: bool, body: bytes = b"") -> None:
        self.where, self.pause, self.keeps, self.body = where, pause, keeps, body
        self.outcomes: Counter[str] = Counter()
        self._sock: socket.socket | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for _ in range(100_000):
            if self._stop.is_set():
                break
            try:
                self.outcomes[str(self._visit())] += 1
            except (OSError, HTTPException) as error:
                self.outcomes[type(error).__name__] += 1
                self._drop()
        self._drop()

    def _visit(self) -> int:
        if self._sock is None:
            self._sock = connect(self.where)
        time.sleep(self.pause)
        head = "POST /sse/publish/reload" if self.body else "GET /healthz"
        lines = [f"{head} HTTP/1.1", "Host: localhost", f"Connection: {'keep-alive' if self.keeps else 'close'}"]
        if self.body:
            lines += [f"Authorization: Bearer {KEY}", "Content-Type: text/plain", f"Content-Length: {len(self.body)}"]
        self._sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        if self.body:
            time.sleep(0.05)
            self._sock.sendall(self.body)
        answer = HTTPResponse(self._sock)
        answer.begin()
        answer.read()
        if answer.will_close:
            self._drop()
        return answer.status

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def connect(where: str | tuple[str, int]) -> socket.socket:
    if isinstance(where, tuple):
        return socket.create_connection(where, 10)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(where)
    return sock


@contextlib.contextmanager
def visitors(*wheres: str | tuple[str, int], bodies: Sequence[bytes] = (b"",)) -> Iterator[list[Visitor]]:
    """Return a visitor for each pause, with and without keep-alive, at each address."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Visitor(where, pause, keeps=keeps, body=body))
            for where in wheres
            for body in bodies
            for pause in PAUSES
            for keeps in (False, True)
        ]


def reload(server: Gunicorn) -> None:
    """Replace the workers, and wait until the old ones are gone."""
    before = set(server.worker_pids())
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: server.worker_pids() and not before & set(server.worker_pids()), 20, what="new workers alone")


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "nginx"])
def test_no_request_is_lost_at_a_reload(tmp_path: Path, proxied: bool) -> None:
    bind = f"unix:{tmp_path}/socket" if proxied else None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Gunicorn(tmp_path, APP, ENV, bind=bind))
        where: tuple[str, int] = address(server.url) if not proxied else ("", 0)
        if proxied:
            front = Nginx(tmp_path, server.bind, {"return 308 https://$server_name$request_uri;": ""})
            where = "127.0.0.1", stack.enter_context(front).http_port
        with visitors(where) as clients:
            for _ in range(RELOADS):
                time.sleep(0.5)
                reload(server)
            time.sleep(0.5)
        for one in clients:
            assert one.outcomes.keys() == {"200"}, (one.pause, one.keeps, one.outcomes)
        assert "Traceback" not in server.logs()


def test_connections_that_wait_to_be_accepted_are_answered_though_nobody_listens_after_the_worker(
    tmp_path: Path,
) -> None:
    """In a stop, the master no longer listens, and the kernel would reset them when the worker ceases to listen."""
    with Gunicorn(tmp_path, APP, ENV) as server, contextlib.ExitStack() as stack:
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        socks = [stack.enter_context(connect(address(server.url))) for _ in range(200)]
        for number, sock in enumerate(socks):
            target = "/healthz" if number % 2 else "/sse/stream?channel=a"
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.3)  # the master closes its listener, and passes the signal on
        os.kill(worker, signal.SIGCONT)
        answers = [client.read_all(sock) for sock in socks]
    assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
    assert sum(b'event: sse.close\ndata: {"reason":"drain"' in answer for answer in answers) == 100


def test_every_stream_has_its_goodbye_though_the_worker_had_no_time_for_the_drain(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_DRAIN": "2"}) as server, contextlib.ExitStack() as stack:
        [worker] = server.worker_pids()
        streams = [stack.enter_context(client.Stream(server.url, {"channel": "a"})) for _ in range(50)]
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(4)
        os.kill(worker, signal.SIGCONT)
        assert [list(stream.events(10))[-1].event for stream in streams] == ["sse.close"] * 50


def test_a_worker_goes_on_until_its_successors_have_loaded_the_app(tmp_path: Path) -> None:
    """Else all who come meanwhile would wait, and be served at once in the end."""
    slow = tmp_path / "slow"
    with Gunicorn(tmp_path, "tests.live.apps.loads_slowly:application", ENV | {"SLOW": str(slow)}) as server:
        [old] = server.worker_pids()
        slow.write_text("5")
        with client.Stream(server.url, {"channel": "a"}) as stream:
            began = time.monotonic()
            os.kill(server.pid, signal.SIGHUP)
            wait_until(lambda: len(server.worker_pids()) == 2)
            while time.monotonic() < began + 2:
                assert client.request(server.url, "GET", "/healthz", timeout=3).headers["X-Worker"] == str(old)
                time.sleep(0.1)
            ends = [(event.event, time.monotonic() - began) for event in stream.events(20)]
        assert ends[-1][0] == "sse.close"
        assert ends[-1][1] > 5
        wait_until(lambda: old not in server.worker_pids(), 15)
        assert client.request(server.url, "GET", "/healthz").headers["X-Worker"] != str(old)


def test_a_worker_whose_successor_dies_while_it_loads_goes_on_no_longer(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    with Gunicorn(tmp_path, "tests.live.apps.loads_slowly:application", ENV | {"SLOW": str(slow)}) as server:
        [old] = server.worker_pids()
        slow.write_text("60")
        began = time.monotonic()
        os.kill(server.pid, signal.SIGHUP)
        [new] = set(wait_until(lambda: [pid for pid in server.worker_pids() if pid != old]))
        slow.write_text("0")  # for the next one, which replaces it
        time.sleep(0.5)
        os.kill(new, signal.SIGKILL)
        wait_until(lambda: old not in server.worker_pids(), 15)
        assert time.monotonic() - began < 8


def test_no_request_is_lost_at_max_requests(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV, arguments=["--max-requests", "300"]) as server:
        pids: set[int] = set()
        with visitors(address(server.url)) as clients:
            deadline = time.monotonic() + 60
            while len(pids) < 1 + RELOADS and time.monotonic() < deadline:
                pids |= set(server.worker_pids())
                time.sleep(0.05)
        assert len(pids) >= 1 + RELOADS
        for one in clients:
            assert one.outcomes.keys() == {"200"}, (one.pause, one.keeps, one.outcomes)


def test_a_body_that_comes_late_is_stored_whole_or_not_at_all_at_a_reload(tmp_path: Path) -> None:
    body = b"whole " * 20
    with Gunicorn(tmp_path, APP, ENV) as server, visitors(address(server.url), bodies=[body]) as clients:
        for _ in range(RELOADS):
            time.sleep(0.3)
            url = "/sse/poll?channel=reload&timeout=0&replay=1000"
            stored = client.request(server.url, "GET", url).json()["events"]
            assert {event["data"] for event in stored} <= {body.decode()}
            reload(server)
    for one in clients:
        assert one.outcomes.keys() == {"201"}, (one.pause, one.keeps, one.outcomes)


@pytest.mark.parametrize("arrives", ["head", "part of the head", "part of the body"])
def test_a_request_that_has_begun_is_read_for_as_long_as_there_is_time(tmp_path: Path, arrives: str) -> None:
    body = b"slowly but surely"
    request = (
        f"POST /sse/publish/slow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    cut = {"head": len(request) - len(body), "part of the head": 30, "part of the body": len(request) - 5}[arrives]
    with Gunicorn(tmp_path, APP, ENV) as server, connect(address(server.url)) as sock:
        sock.sendall(request[:cut])
        time.sleep(0.2)
        [old] = server.worker_pids()
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: len(server.worker_pids()) == 2 or old not in server.worker_pids())
        time.sleep(0.7)
        sock.sendall(request[cut:])
        answer = HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("Connection")) == (201, "close")


def test_a_body_that_does_not_end_in_time_is_cut_unanswered_and_nothing_is_stored(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    env = ENV | {"SSE_REDIS_URL": redis_server.url}
    with Gunicorn(tmp_path, APP, env) as server, connect(address(server.url)) as sock:
        head = f"POST /sse/publish/never HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        sock.sendall(f"{head}Content-Type: text/plain\r\nContent-Length: 1000\r\n\r\nonly so much".encode())
        time.sleep(0.2)
        reload(server)
        assert sock.recv(100) == b""
        assert client.request(server.url, "GET", "/sse/poll?channel=never&timeout=0&replay=9").json()["events"] == []
        assert "1 requests are cut" in server.logs()
