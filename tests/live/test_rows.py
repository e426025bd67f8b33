"""What was handed off and stands at the same place shares a row: each client still gets what is its own."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.live.load import APP, ENV, KEY, address
from tests.live.test_resources import inspect
from tests.servers import Gunicorn, wait_until

SLOW = "tests.live.apps.slow:application"


@pytest.fixture
def worker(tmp_path: Path) -> Gunicorn:
    return Gunicorn(tmp_path, APP, ENV)


def publish(server: Gunicorn, channel: str, *data: object) -> list[str]:
    """Their ids."""
    ids = []
    for item in data:
        answer = client.publish(server.url, channel, item, key=KEY)
        assert answer.status == 201
        ids += answer.json()["ids"]
    return ids


def subscribers(server: Gunicorn, count: int) -> None:
    wait_until(lambda: inspect(server)["subscribers"] == count, what=f"{count} subscribers")


class Connection:
    """Kept alive: what is asked for is sent at once, and its answers are read when they are wanted."""

    def __init__(self, server: Gunicorn) -> None:
        self.sock = socket.create_connection(address(server.url), 10)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, path: str, *lines: str, version: str = "1.1", body: str = "") -> None:
        head = "".join(f"{line}\r\n" for line in ("Host: localhost", *lines))
        self.sock.sendall(f"GET {path} HTTP/{version}\r\n{head}\r\n{body}".encode())

    def poll(self, place: str, *lines: str, timeout: int = 20, query: str = "", **options: Any) -> None:
        names = "&".join(f"channel={entry.partition('=')[0]}" for entry in place.split("~"))
        self.ask(f"/sse/poll?{names}&timeout={timeout}&last_event_id={place}{query}", *lines, **options)

    def answer(self, timeout: float = 10) -> client.Answer:
        self.sock.settimeout(timeout)
        response = HTTPResponse(self.sock)
        response.begin()
        return client.Answer(response.status, response.headers, response.read())

    def is_closed(self, timeout: float = 5) -> bool:
        self.sock.settimeout(timeout)
        return self.sock.recv(1) == b""


def told(answer: client.Answer) -> list[str]:
    assert answer.status == 200
    return [event["data"] for event in answer.json()["events"]]


# Held polls


def test_the_body_of_a_poll_s_request_is_never_taken_for_the_next_request(worker: Gunicorn) -> None:
    inner = "GET /sse/poll?channel=inner&timeout=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
    with worker:
        (place,) = publish(worker, "a", "first")
        for line, body in ((f"Content-Length: {len(inner)}", inner), ("Transfer-Encoding: chunked", chunked)):
            with Connection(worker) as one:
                one.poll(place, line)
                subscribers(worker, 1)
                one.sock.sendall(body.encode())
                time.sleep(0.1)
                (place,) = publish(worker, "a", "second")
                assert told(one.answer()) == ["second"]
                one.ask("/sse/poll?channel=next&timeout=0")
                assert one.answer().json()["last_event_id"] == "next=0-0"


def test_polls_that_the_app_holds_up_while_others_are_answered_are_answered_too(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, SLOW, ENV) as server, contextlib.ExitStack() as stack:
        (place,) = publish(server, "a", "first")
        waiting, *late = [stack.enter_context(Connection(server)) for _ in range(41)]
        waiting.poll(place)
        subscribers(server, 1)
        for number, one in enumerate(late):  # some come between the first one's event and its answer
            one.poll(place, query=f"&linger={0.3 + 0.002 * number}")
        subscribers(server, 41)
        time.sleep(0.25)
        publish(server, "a", "second")
        for one in (waiting, *late):
            assert told(one.answer(3)) == ["second"]
        subscribers(server, 0)


def test_at_sigterm_a_request_that_came_after_a_poll_is_served_to_its_end(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, SLOW, ENV) as server, Connection(server) as one:
        (place,) = publish(server, "a", "first")
        one.poll(place)
        subscribers(server, 1)
        publish(server, "a", "second")
        assert told(one.answer()) == ["second"]
        one.ask("/slow?seconds=1.5")
        time.sleep(0.2)
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        assert one.answer().body == b"done"
        server.process.wait(5)
        server.process = None
