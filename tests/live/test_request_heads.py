"""Request heads are bounded in bytes, lines and time.

Reading a head costs the worker the same, however slowly it arrives.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import client
from tests.live.app_servers import SecureGunicorn
from tests.live.load import APP, ENV, KEY, has_whole_lane, inspect
from tests.servers import Gunicorn, wait_until

ASK = "GET /sse/poll?channel=a&timeout=0 HTTP/1.1\r\nHost: a\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c%b\x7f\0\0\x01\0\x01\0\x02"


@pytest.fixture(scope="module", params=["on", "off"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """The service with the fast lane, and without it."""
    with Gunicorn(tmp_path_factory.mktemp("heads"), APP, ENV | {"SSE_LANE": request.param}) as server:
        assert has_whole_lane(server) == (server.environment()["SSE_LANE"] == "on")
        yield server


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with SecureGunicorn(tmp_path_factory.mktemp("secure")) as server:
        yield server


def cpu(server: Gunicorn) -> float:
    """Return the seconds of CPU that the worker has used."""
    (pid,) = server.worker_pids()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def drip(sock: socket.socket, data: bytes, size: int = 1, pause: float = 0) -> None:
    with contextlib.suppress(OSError):  # it may have been answered already, and closed
        for start in range(0, len(data), size):
            sock.sendall(data[start : start + size])
            time.sleep(pause)


def test_a_byte_of_a_long_head_costs_as_little_as_one_of_a_short_head(server: Gunicorn) -> None:
    def cost(length: int) -> float:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client.connect(server.url)) for _ in range(30)]  # below the bound of all heads
            for sock in socks:
                sock.sendall(ASK.encode())
                for start in range(0, length, 30_000):
                    sock.sendall(b"X: " + b"\r" * min(30_000, length - start) + b"\r\n")
                sock.sendall(b"X: ")
            client.request(server.url, "GET", "/healthz")
            time.sleep(0.2)
            before = cpu(server)
            for _ in range(67):
                for sock in socks:
                    sock.sendall(b"\r")
                assert client.request(server.url, "GET", "/healthz", timeout=5).status == 200  # meanwhile
            return cpu(server) - before

    cost(1000)
    short = min(cost(1000) for _ in range(2))
    assert min(cost(110_000) for _ in range(2)) < 3 * short


@pytest.mark.parametrize("piece", [1 << 20, 3000])
@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Cookie: " + "x" * 29_000] * 3 + ["X: " + "x" * 29_000], 200),
        (["X: " + "x" * 29_000] * 5, 431),
        (["X: " + "x" * 32_000] * 99, 431),
        (["X: x"] * 98, 200),
        (["X: x"] * 120, 431),
        (["_: x"] * 120, 431),  # which gunicorn drops without counting
        (["_:"] * 30_000, 431),
    ],
    ids=["116 KB", "145 KB", "3 MB", "98 fields", "120 fields", "120 dropped fields", "30,000 dropped fields"],
)
def test_a_head_of_more_than_128_kb_or_100_fields_is_refused(
    server: Gunicorn, lines: list[str], status: int, piece: int
) -> None:
    with client.connect(server.url) as sock:
        drip(sock, "".join([ASK, "Connection: close\r\n", *(f"{line}\r\n" for line in lines), "\r\n"]).encode(), piece)
        assert client.statuses(sock) in ([status], [] if status == 431 else [status])  # a reset may overtake the answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("GET /healthz HTTP/1.1\nHost: a\n\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\n\n", 400),
        ("\r\n\r\nGET /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz?" + "x" * 33_000, 414),
        (ASK + "X: " + "x" * 140_000, 431),
    ],
    ids=["bare LF", "bare LF later", "two empty lines", "long line", "long head"],
)
def test_a_head_at_fault_is_answered_before_its_end(server: Gunicorn, sent: str, status: int) -> None:
    with client.connect(server.url) as sock:
        drip(sock, sent.encode(), 8000)
        assert client.statuses(sock) == [status]


def test_requests_that_come_byte_by_byte_or_all_at_once_are_answered_in_order(
    server: Gunicorn, secure: Gunicorn
) -> None:
    publish = f"POST /sse/publish/b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: text/plain\r\n"
    parts = [
        f"{ASK}\r\n",
        f"{publish}Content-Length: 4\r\n\r\n\r\n\r\n",
        f"\r\n{ASK}\r\n",
        f"{publish}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
        f"{ASK}\r\n",
        "GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    data = "".join(parts).encode()
    for url, size in itertools.product((server.url, secure.url), (1, 2, 100, len(data))):
        with client.connect(url) as sock:
            drip(sock, data, size)
            assert client.statuses(sock) == [200, 201, 200, 201, 200, 404]


def test_the_header_of_the_proxy_protocol_may_come_before_it_in_any_pieces(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV, arguments=("--proxy-protocol", "auto")) as server:
        asked = b"GET /inspect HTTP/1.1\r\nHost: a\r\n"  # which is for 127.0.0.1 alone
        for before, status in (
            (b"", 200),
            (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", 200),
            (b"PROXY TCP4 10.0.0.1 127.0.0.1 1 2\r\n", 404),
            (V2 % b"\x7f\0\0\x01", 200),
            (V2 % b"\x0a\0\0\x01", 404),
        ):
            for size in (1, 1000):
                with client.connect(server.url) as sock:
                    drip(sock, before + asked + b"Connection: close\r\n\r\n", size)
                    assert client.statuses(sock) == [status]
        with client.connect(server.url) as sock:
            drip(sock, b"PROXY " + b"x" * 140_000, 8000)
            assert client.statuses(sock) in ([431], [])


def test_what_follows_a_chunked_body_is_bounded(server: Gunicorn) -> None:
    head = (
        f"POST /sse/publish/b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with client.connect(server.url) as sock:
        drip(sock, f"{head}0\r\nX: {'x' * 30_000}".encode(), 8000)
        assert client.statuses(sock)[0] == 400


@pytest.mark.parametrize("server", ["on"], indirect=True)  # the other way, gunicorn reads it, as it does with TLS
def test_a_head_has_20_seconds_from_its_first_byte_to_its_last(server: Gunicorn, secure: Gunicorn) -> None:
    def seconds(at: Gunicorn, before: str, slowly: str, most: float) -> float:
        """Return how long the connection stays open after the answer to the bytes before."""
        with client.connect(at.url) as sock:
            sock.sendall(before.encode())
            if "GET" in before:
                assert sock.recv(65_536).startswith(b"HTTP/1.1 200 ")
            began = time.monotonic()
            sock.settimeout(0.5)
            for byte in slowly.ljust(500):
                if time.monotonic() > began + most:
                    break
                with contextlib.suppress(TimeoutError):
                    try:
                        if byte != " ":
                            sock.sendall(byte.encode())
                        assert sock.recv(1) == b"", "it is closed without an answer"
                    except ConnectionError:
                        pass
                    return time.monotonic() - began
            return most

    cases = [
        (server, "", "GET /" + "x" * 500),
        (server, f"{ASK}\r\n", "GET /" + "x" * 500),
        (server, "", "\r\nGET /healthz"),
        (server, "", f"GET /healthz HTTP/1.1\r\nX: {'y' * 500}"),
        (secure, "", "GET /" + "x" * 500),
    ]
    with ThreadPoolExecutor(len(cases) + 2) as threads:
        closed = [threads.submit(seconds, *case, 40) for case in cases]
        # An empty line is not yet a head.
        waiting = [threads.submit(seconds, server, before, "\r\n", 25) for before in ("", f"{ASK}\r\n")]
        assert all(19 < one.result() < 30 for one in closed), [one.result() for one in closed]
        assert [one.result() for one in waiting] == [25, 25]
    wait_until(lambda: inspect(server)["subscribers"] == 0)
