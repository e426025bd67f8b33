"""A client that has closed frees its seat within two heartbeats, whatever its request looked like."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import client
from tests.live.app_servers import SecureGunicorn
from tests.live.load import APP, ENV, HEARTBEAT, KEY, RESET_ON_CLOSE, inspect
from tests.publishing import publish
from tests.servers import Gunicorn, wait_until

WRAPPED = "tests.live.apps.wrapped_bodies:application"
BODY_MOST = 16_384
CHUNKED = "Transfer-Encoding: chunked\r\n"
NEXT = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
# By name: lines of the head, what comes behind it, and the version; each takes a seat.
WHOLE = {
    "plain": ("", "", "1.1"),
    "a body": ("Content-Length: 5\r\n", "hello", "1.1"),
    "a large body": (f"Content-Length: {BODY_MOST}\r\n", "x" * BODY_MOST, "1.1"),
    "an empty body": ("Content-Length: 0\r\n", "", "1.1"),
    "a length with a zero before it": ("Content-Length: 00\r\n", "", "1.1"),
    "chunks": (CHUNKED, "5\r\nhello\r\n0\r\n\r\n", "1.1"),
    "chunks of the largest": (CHUNKED, f"{BODY_MOST:x}\r\n{'x' * BODY_MOST}\r\n0\r\n\r\n", "1.1"),
    "chunks with trailers": (CHUNKED, "5\r\nhello\r\n0\r\nX: y\r\n\r\n", "1.1"),
    "a body that was announced": ("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello", "1.1"),
    "a request behind it": ("", NEXT, "1.1"),
    "half a request behind it": ("", NEXT[:20], "1.1"),
    "a body, and a request behind it": ("Content-Length: 5\r\n", f"hello{NEXT}", "1.1"),
    "many requests behind it": ("", NEXT * 200, "1.1"),
    "HTTP/1.0": ("", "", "1.0"),
    "HTTP/1.0, kept alive": ("Connection: keep-alive\r\n", NEXT, "1.0"),
    "an upgrade": ("Connection: Upgrade\r\nUpgrade: other/1.0\r\n", "", "1.1"),
    "an upgrade to HTTP/2": ("Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n", "", "1.1"),
    "to be closed": ("Connection: close\r\n", "", "1.1"),
}  # fmt: skip
# These requests are incomplete, and get no seat before the rest has come.
PARTLY = {
    "no body yet": ("Content-Length: 1\r\n", ""),
    "half a body": ("Content-Length: 5\r\n", "he"),
    "half a chunk": (CHUNKED, "5\r\nhe"),
    "no last chunk": (CHUNKED, "5\r\nhello\r\n"),
    "half an announced body": ("Expect: 100-continue\r\nContent-Length: 5\r\n", "he"),
}


@pytest.fixture(scope="module", params=["plain", "wrapped", "tls"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    folder: Path = tmp_path_factory.mktemp("gone")
    with (
        SecureGunicorn(folder)
        if request.param == "tls"
        else Gunicorn(folder, WRAPPED if request.param == "wrapped" else APP, ENV) as server
    ):
        yield server


@pytest.fixture
def place(server: Gunicorn) -> str:
    """Return the position at which a poll waits for the next event."""
    answer = client.publish(server.url, "a", "before", key=KEY)
    return str(answer.json()["ids"][0])


def ask(server: Gunicorn, target: str, lines: str = "", behind: str = "", version: str = "1.1") -> socket.socket:
    sock = client.connect(server.url)
    sock.sendall(f"GET {target} HTTP/{version}\r\nHost: a\r\n{lines}\r\n{behind}".encode())
    return sock


def targets(place: str) -> tuple[str, str]:
    return f"/sse/poll?channel=a&timeout=60&last_event_id={place}", "/sse/stream?channel=a"


def seats(server: Gunicorn, count: int, timeout: float = 10) -> None:
    wait_until(lambda: inspect(server)["subscribers"] == count, timeout, 0.1, f"{count} seats are taken")


def leave(sock: socket.socket, how: str) -> None:
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    elif how == "half":
        sock.shutdown(socket.SHUT_WR)
    sock.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_its_seat_is_free_within_two_heartbeats(server: Gunicorn, place: str, how: str) -> None:
    base = inspect(server)
    with contextlib.ExitStack() as stack:
        both = targets(place)
        socks = [stack.enter_context(ask(server, target, *shape)) for target in both for shape in WHOLE.values()]
        seats(server, len(socks))
        socks += [stack.enter_context(ask(server, target, *shape)) for target in both for shape in PARTLY.values()]
        time.sleep(0.3)
        assert inspect(server)["subscribers"] == 2 * len(WHOLE)
        for sock in socks:
            leave(sock, how)
    seats(server, 0, 2 * HEARTBEAT + 1)
    wait_until(lambda: inspect(server)["greenlets"] <= base["greenlets"] + 1, 3, what="no greenlet is left")


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_it_holds_no_greenlet_while_it_waits(server: Gunicorn, place: str) -> None:
    base = inspect(server)["greenlets"]
    with contextlib.ExitStack() as stack:
        for target in targets(place):
            for shape in WHOLE.values():
                stack.enter_context(ask(server, target, *shape))
        seats(server, 2 * len(WHOLE))
        assert inspect(server)["greenlets"] <= base + 2


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_what_came_early_behind_a_poll_is_answered_after_it_and_in_order(server: Gunicorn, place: str) -> None:
    early = f"{NEXT}GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n{NEXT[:30]}"
    rest = f"{NEXT[30:]}GET /sse/nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for lines, body in (("", ""), ("Content-Length: 5\r\n", "hello"), (CHUNKED, "5\r\nhello\r\n0\r\n\r\n")):
        with ask(server, targets(place)[0], lines, body + early) as sock:
            seats(server, 1)
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            assert client.publish(server.url, "a", "after", key=KEY).status == 201
            sock.settimeout(5)
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
            for _ in range(3):  # a client whose request is incomplete keeps no other client waiting
                assert client.request(server.url, "GET", "/healthz", timeout=3).status == 200
            sock.sendall(rest.encode())
            assert client.statuses(sock) == [200, 404, 200, 404]
        place = client.poll(server.url, ["a"], timeout=0).json()["last_event_id"]
        with ask(server, targets(place)[0], f"{lines}Connection: close\r\n", body + early) as sock:
            seats(server, 1)
            assert client.publish(server.url, "a", "after", key=KEY).status == 201
            assert client.statuses(sock) == [200]
        place = client.poll(server.url, ["a"], timeout=0).json()["last_event_id"]


@pytest.mark.parametrize("server", ["plain"], indirect=True)
@pytest.mark.parametrize("count", [1, 16, 17, 24, 60])
def test_all_that_came_behind_a_poll_is_answered_wherever_a_read_of_it_ends(
    server: Gunicorn, place: str, count: int
) -> None:
    behind = NEXT.replace("\r\n\r\n", f"\r\nX: {'x' * (512 - len(NEXT) - 5)}\r\n\r\n").encode()
    assert len(behind) == 512  # so that 16 of them are what is kept, and what one read takes
    with ask(server, targets(place)[0]) as sock:
        seats(server, 1)
        sock.sendall(behind * count)
        time.sleep(0.2)
        assert client.publish(server.url, "a", "after", key=KEY).status == 201
        sock.settimeout(5)
        data = b""
        while data.count(b"HTTP/1.1 200 ") < count + 1:
            more = sock.recv(65_536)
            assert more, data
            data += more
        sock.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert 404 in client.statuses(sock)


def test_two_polls_in_one_go_wait_one_after_the_other(server: Gunicorn, place: str) -> None:
    poll = targets(place)[0]
    with ask(server, poll, "", f"GET {poll} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as sock:
        seats(server, 1)
        assert client.publish(server.url, "a", "after", key=KEY).status == 201
        assert client.statuses(sock) == [200, 200]  # the second is behind, and need not wait
    seats(server, 0)


@pytest.mark.parametrize("path", ["/sse/poll?channel=a&timeout=0", "/sse/stream?channel=a"])
@pytest.mark.parametrize("size", [BODY_MOST, BODY_MOST + 1, 3_000_000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_a_body_over_16_kb_is_too_large(server: Gunicorn, path: str, size: int, method: str, kind: str) -> None:
    body = b"x" * size
    lines = f"Content-Length: {size}\r\n"
    if kind == "chunks":
        lines, body = CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    status = 200 if size <= BODY_MOST else 413
    with client.connect(server.url) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\n{lines}\r\n".encode())
        sock.sendall(body)
        data = b""
        while b"\r\n\r\n" not in data or (status == 413 and method == "GET" and not data.endswith(b"}")):
            more = sock.recv(65_536)
            assert more, data
            data += more
        head, _, told = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nAccess-Control-Allow-Origin: https://a.example" in head
        if status == 413 and method == "GET":
            assert json.loads(told)["error"]["code"] == "too_large"
    # A greenlet notices at a write that its client has gone, so there is something to write.
    wait_until(lambda: publish(server, "a", "again") and inspect(server)["subscribers"] == 0, interval=0.1)


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_a_body_that_hardly_comes_is_not_waited_for(server: Gunicorn, place: str) -> None:
    def answered(request: str) -> tuple[float, list[int]]:
        with client.connect(server.url) as sock:
            sock.sendall(request.encode())
            began = time.monotonic()
            sock.settimeout(1)
            for _ in range(60):
                with contextlib.suppress(TimeoutError):
                    data = sock.recv(65_536)
                    return time.monotonic() - began, [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b"1")  # more of the body, or of the size of a chunk
            return 60, []

    poll, stream = targets(place)
    publish = f"POST /sse/publish/b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: text/plain\r\n"
    requests = [
        f"{start}{shape}"
        for start in (f"GET {poll} HTTP/1.1\r\nHost: a\r\n", f"GET {stream} HTTP/1.1\r\nHost: a\r\n", publish)
        for shape in ("Content-Length: 100\r\n\r\nhe", f"{CHUNKED}\r\n000000000")
    ] + [f"{publish}Content-Length: 1000000\r\n\r\nx"]
    with ThreadPoolExecutor(len(requests)) as threads:
        for request, (took, got) in zip(requests, threads.map(answered, requests), strict=True):
            assert 19 < took < 50, (request, took)
            assert got == [400], request
    seats(server, 0)


def test_after_a_poll_nobody_is_taken_for_another_by_a_header_of_the_proxy_protocol(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV, arguments=("--proxy-protocol", "v1")) as server:
        [place] = publish(server, "a", "before")
        with client.connect(server.url) as sock:
            head = "GET {} HTTP/1.1\r\nHost: a\r\n\r\n"
            sock.sendall(f"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n{head.format(targets(place)[0])}".encode())
            seats(server, 1)
            assert client.publish(server.url, "a", "after", key=KEY).status == 201
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
            with contextlib.suppress(ConnectionError):
                sock.sendall(f"PROXY TCP4 127.0.0.1 10.0.0.2 1 2\r\n{head.format('/inspect')}".encode())
            assert 200 not in client.statuses(sock)


def flood(sock: socket.socket) -> None:
    """Send requests until the kernel's buffers are full, or the server has closed."""
    sock.settimeout(0.3)
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(2000):
            sock.sendall(NEXT.encode() * 500)


def test_a_client_that_closes_behind_more_than_anybody_reads_is_noticed_too(server: Gunicorn, place: str) -> None:
    """The kernel's buffers are full, so that even the client's end cannot reach the server."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(ask(server, target)) for target in targets(place) for _ in range(3)]
        seats(server, 6)
        for sock in socks:
            flood(sock)
    seats(server, 0, 2 * HEARTBEAT + 1)


@pytest.mark.parametrize("server", ["plain", "wrapped"], indirect=True)
def test_a_client_that_sends_very_much_behind_a_poll_is_answered_all_of_it(server: Gunicorn, place: str) -> None:
    with ask(server, targets(place)[0]) as sock:
        seats(server, 1)
        asked = 1
        data = b""
        sock.settimeout(0.3)
        for _ in range(40):
            with contextlib.suppress(TimeoutError):
                sock.sendall(NEXT.encode() * 20)
                asked += 20
            with contextlib.suppress(TimeoutError):
                while data.count(b"HTTP/1.1 200 ") < asked and (more := sock.recv(1 << 20)):
                    data += more
        assert data.count(b"HTTP/1.1 200 ") == asked > 500
    seats(server, 0)
