"""Streams that were handed off: what each receives, how it ends, and which streams keep a greenlet instead."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, KEY, address, inspect
from tests.servers import Gunicorn, wait_until


@pytest.fixture
def worker(tmp_path: Path) -> Gunicorn:
    return Gunicorn(tmp_path, APP, ENV)


def connect(server: Gunicorn, channel: str, version: str = "1.1") -> socket.socket:
    sock = socket.create_connection(address(server.url), 10)
    sock.sendall(f"GET /sse/stream?channel={channel} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
    return sock


def test_at_sigterm_every_stream_is_told_and_the_process_is_gone_at_once(worker: Gunicorn) -> None:
    with worker:
        socks = [connect(worker, f"end/{number % 7}") for number in range(300)]
        wait_until(lambda: inspect(worker)["subscribers"] == 300)
        process = worker.process
        assert process
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        for sock in socks:
            body = client.read_all(sock)
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
            head, _, body = client.read_all(sock).partition(b"\r\n\r\n")
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
    for app, lane, greenlets in ((APP, "on", 0), ("tests.live.apps.wrapped_bodies:application", "auto", 20)):
        with Gunicorn(tmp_path, app, ENV | {"SSE_LANE": lane}) as server:
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
