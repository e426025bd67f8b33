"""Streams that were handed off: who gets what, how they end, and what stays with a greenlet."""

from __future__ import annotations

import random
import selectors
import signal
import socket
import time
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, KEY, Storm, address
from tests.live.test_resources import inspect
from tests.servers import Gunicorn, wait_until


@pytest.fixture
def worker(tmp_path: Path) -> Gunicorn:
    return Gunicorn(tmp_path, APP, ENV)


def connect(server: Gunicorn, channel: str, version: str = "1.1") -> socket.socket:
    sock = socket.create_connection(address(server.url), 10)
    sock.sendall(f"GET /sse/stream?channel={channel} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    return sock


def read_to_the_end(sock: socket.socket) -> bytes:
    body = b""
    while data := sock.recv(65536):
        body += data
    return body


def test_at_sigterm_every_stream_is_told_and_the_process_is_gone_at_once(worker: Gunicorn) -> None:
    with worker:
        socks = [connect(worker, f"end/{number % 7}") for number in range(300)]
        wait_until(lambda: inspect(worker)["subscribers"] == 300)
        process = worker.process
        assert process
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        for sock in socks:
            body = read_to_the_end(sock)
            assert b'data: {"reason":"drain",' in body
            assert body.endswith(b"\n\n\r\n0\r\n\r\n")  # a clean end of the chunked body
            sock.close()
        process.wait(5)
        assert time.monotonic() - asked < 3
        worker.process = None


def test_a_client_of_http_1_0_gets_the_body_as_it_is_and_its_end(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_STREAM_LIFETIME": "5"}) as server:
        with connect(server, "old", "1.0") as sock:
            wait_until(lambda: inspect(server)["subscribers"] == 1)
            assert client.publish(server.url, "old", "hello", key=KEY).status == 201
            head, _, body = read_to_the_end(sock).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        events = client.Parser().feed(body)
        assert [event.event for event in events] == [
            "sse.open",
            "sse.heartbeat",
            "message",
            "sse.heartbeat",
            "sse.close",
        ]


def test_a_stream_holds_no_greenlet_unless_the_app_is_wrapped(tmp_path: Path) -> None:
    for app, greenlets in ((APP, 0), ("tests.live.apps.wrapped:application", 20)):
        with Gunicorn(tmp_path, app, ENV) as server:
            with Stream(server.url, {"channel": "a"}) as warm:
                warm.until("sse.heartbeat")
                wait_until(lambda: inspect(server)["subscribers"] == 1)
                base = inspect(server)["greenlets"]
                socks = [connect(server, "a") for _ in range(20)]
                wait_until(lambda: inspect(server)["subscribers"] == 21)
                time.sleep(0.1)
                assert inspect(server)["greenlets"] - base == greenlets
                assert client.publish(server.url, "a", "hello", key=KEY).status == 201
                assert warm.take(1)[0].data == "hello"
                for sock in socks:
                    sock.close()


def test_in_a_storm_of_comings_and_goings_each_gets_its_own_bytes_only(
    worker: Gunicorn, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(pytestconfig.getoption("hypothesis_seed"))
    channels = [f"own/{number}" for number in range(10)]
    with worker, selectors.DefaultSelector() as selector:
        wait_until(lambda: inspect(worker)["subscribers"] == 0)
        base = inspect(worker)["fds"]
        opened = heard = 0
        with Storm(worker.url, channels, 0.002):
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline:
                while len(selector.get_map()) < 60:
                    channel = rng.choice(channels)
                    sock = connect(worker, channel)
                    sock.setblocking(False)
                    selector.register(sock, selectors.EVENT_READ, [channel, client.Parser(), b""])
                    opened += 1
                for key, _ in selector.select(0.05):
                    sock, held = key.fileobj, key.data
                    assert isinstance(sock, socket.socket)
                    data = sock.recv(65536)
                    assert data, "nobody ends these"
                    held[2] += data
                    for block in held[2].split(b"\n\n")[:-1]:
                        ids = [line for line in block.splitlines() if line.startswith(b"id: ")]
                        assert all(line.startswith(f"id: {held[0]}=".encode()) for line in ids), (held[0], block)
                        heard += len(ids)
                    held[2] = held[2].rpartition(b"\n\n")[2]
                    if rng.random() < 0.2:
                        selector.unregister(sock)
                        sock.close()
            for key in list(selector.get_map().values()):
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        assert opened > 500
        assert heard > opened
        wait_until(lambda: inspect(worker)["subscribers"] == 0)
        wait_until(lambda: inspect(worker)["fds"] <= base + 2, 15, 0.2, "the files are closed")
