"""No token, ticket or key is logged, neither in access logs nor in gunicorn's lines about faulty requests.

Nor can a request write lines of its own there.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, GREENLETS, KEY, address
from tests.servers import Gunicorn, wait_until
from tests.tokens import SECRET, claims, signed

TOKEN = signed(claims(exp=int(time.time()) + 7200))  # longer than the tests take that come before
SIGNATURE = TOKEN.rpartition(".")[2]


@pytest.fixture(scope="module", params=["handed off", "greenlets"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    env = {"SSE_PUBLIC": "open", "SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY}
    arguments = ["--access-logfile", "-", "--log-level", "debug", *(GREENLETS if request.param == "greenlets" else ())]
    with Gunicorn(tmp_path_factory.mktemp("logs"), APP, env, arguments=arguments) as server:
        yield server


def exchange(server: Gunicorn, *lines: str, body: str = "") -> bytes:
    """Send these lines of a request, and return the answer."""
    with socket.create_connection(address(server.url), 5) as sock, contextlib.suppress(ConnectionResetError):
        sock.sendall("\r\n".join([*lines, "Connection: close", "", body]).encode())
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while len(received) < 100_000 and (more := sock.recv(65_536)):
            received += more
        return received
    return b""


def check(log: Path, before: int) -> str:
    """Check the lines that were logged since, and return them."""
    text = log.read_text(errors="replace")[before:]
    assert not [secret for secret in ("eyJ", SIGNATURE, KEY, SECRET) if secret in text]
    return text


@pytest.mark.parametrize(
    "lines",
    [
        (f"GET /sse/poll?channel=a&timeout=0&token={TOKEN} HTTP/1.1", "Host: x"),
        (f"GET /sse/poll?channel=a&token={TOKEN} HTTP/9x", "Host: x"),
        (f"GET /sse/poll?channel=a b&token={TOKEN} HTTP/1.1", "Host: x"),
        (f"G\x01T /sse/poll?token={TOKEN} HTTP/1.1", "Host: x"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Authorization Bearer {TOKEN}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Authorization Bearer {KEY}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Authorization : Bearer {TOKEN}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Cookie sse_token={TOKEN}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Authorization {KEY}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Authorization Bearer\t{KEY}"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Expect: {KEY}"),
        (f"GET /sse/poll?channel=a &token={KEY} HTTP/1.1", "Host: x"),
        (f"{KEY} /sse/poll HTTP/1.1", "Host: x"),
        ("GET /sse/poll?channel=a HTTP/1.1", "Host: x", f"Referer: http://x/?token={TOKEN}"),
        (f"POST /sse/publish/a?token={TOKEN} HTTP/1.1", "Host: x", "Content-Length: x", f"Authorization: Bearer {KEY}"),
    ],
)
def test_a_request_at_fault_leaves_no_secret(server: Gunicorn, lines: tuple[str, ...]) -> None:
    before = server.log.stat().st_size
    assert exchange(server, *lines)[:10] in (b"HTTP/1.1 4", b"HTTP/1.0 4")
    wait_until(lambda: check(server.log, before), 3)


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
@pytest.mark.parametrize(
    "body", ["zz\r\nabc\r\n\r\n", "5\r\nabc", "3\r\nabcd\r\n0\r\n\r\n", "3;\x01=\r\nabc\r\n0\r\n\r\n"]
)
def test_a_body_that_is_chunked_badly_is_the_client_s_fault(server: Gunicorn, path: str, body: str) -> None:
    before = server.log.stat().st_size
    kind = "application/json" if path == "/sse/publish" else "text/plain"
    head = ("Host: x", f"Content-Type: {kind}", "Transfer-Encoding: chunked", f"Authorization: Bearer {KEY}")
    assert exchange(server, f"POST {path} HTTP/1.1", *head, body=body).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in check(server.log, before)


def test_the_access_log_has_requests_without_their_queries(server: Gunicorn) -> None:
    before = server.log.stat().st_size
    headers = {"Authorization": f"Bearer {TOKEN}"}
    ticket = client.request(server.url, "POST", "/sse/ticket", {"channel": "a"}, headers=headers).json()["ticket"]
    with Stream(server.url, {"channel": "a", "token": ticket}) as stream:
        stream.until("sse.open")
    answer = client.request(server.url, "GET", "/sse/poll", {"channel": "a", "timeout": "0", "token": ticket})
    assert answer.status == 200
    wait_until(lambda: '"GET /sse/poll HTTP/1.1" 200' in check(server.log, before), 5)


def test_a_request_has_one_line_of_the_access_log_whatever_its_path(server: Gunicorn) -> None:
    before = server.log.stat().st_size
    exchange(server, "GET /x%0a127.0.0.1%20forged%0d%1b%5b31m%7f%c2%9b31m HTTP/1.1", "Host: x")
    wait_until(lambda: "127.0.0.1 forged" in check(server.log, before), 5)
    [line] = [line for line in check(server.log, before).split("\n") if "127.0.0.1 forged" in line]
    assert r'"GET /x\x0a127.0.0.1 forged\x0d\x1b[31m\x7f' in line
    assert line.isprintable()
