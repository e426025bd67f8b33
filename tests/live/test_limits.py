"""Requests at the limits of size, over a real connection."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers import Gunicorn

KEY = "k" * 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    folder: Path = tmp_path_factory.mktemp("limits")
    with Gunicorn(folder, env={"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY}) as server:
        yield server


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_body_that_is_too_large_is_answered_and_not_reset(server: Gunicorn, connection: str) -> None:
    client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {KEY}", "Connection": connection, "Content-Type": "text/plain"}
    for _ in range(2):
        client.request("POST", "/sse/publish/a", b"x" * 3_000_000, headers)
        with client.getresponse() as response:
            assert response.status == 413
            assert json.loads(response.read())["error"]["code"] == "too_large"
    client.close()


def test_the_longest_request_line_and_header_are_taken_and_longer_ones_are_not(server: Gunicorn) -> None:
    def status(line: int, header: int) -> int:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            query = f"/sse/poll?channel=a&timeout=0&unknown={'x' * line}"
            head = f"GET {query} HTTP/1.1\r\nHost: a\r\nCookie: {'c' * header}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            return int(connection.makefile("rb").readline().split()[1])

    assert status(24_000, 9_000) == 200
    assert status(40_000, 10) == 414
    assert status(10, 40_000) == 431
