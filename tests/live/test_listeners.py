"""Streams and polls work over a Unix socket and over TLS as over plain TCP, handed off and with greenlets."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, GREENLETS, inspect
from tests.publishing import publish, storm
from tests.servers import Gunicorn, make_certificate, wait_until

HOW = ["tcp", "tcp, greenlets", "unix", "unix, greenlets", "tls"]


class Listening(Gunicorn):
    """A server that clients reach at `at`. `url` leads to the same worker."""

    def __init__(self, directory: Path, how: str) -> None:
        super().__init__(directory, APP, ENV)
        self.at = self.url
        arguments: Sequence[str] = GREENLETS if "greenlets" in how else ()
        if how.startswith("unix"):
            self.at = f"unix:{directory}/sock"
            arguments = (*arguments, "-b", self.bind, "-b", self.at)
        elif how == "tls":
            certificate, key = directory / "certificate", directory / "key"
            make_certificate(certificate, key)
            self.at = self.url = f"https://{self.bind}"
            arguments = ("--certfile", str(certificate), "--keyfile", str(key))
        self.arguments = arguments


@pytest.fixture(scope="module", params=HOW)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    with Listening(tmp_path_factory.mktemp("listening"), request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def nobody_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """A greenlet notices an end when it writes, so there is something to write."""
    yield
    if "server" in request.fixturenames:
        server: Listening = request.getfixturevalue("server")
        with storm(server.url, ["a", "b", "c", "d"], 0.1):
            wait_until(lambda: inspect(server)["subscribers"] == 0)


def test_an_event_reaches_streams_and_waiting_polls_and_resumes(server: Listening) -> None:
    top = client.poll(server.at, ["a"], timeout=5).json()["last_event_id"]
    with ThreadPoolExecutor(2) as threads, Stream(server.at, {"channel": "a"}) as stream:
        stream.until("sse.heartbeat")
        polls = [threads.submit(client.poll, server.at, ["a"], top, timeout=10) for _ in range(2)]
        wait_until(lambda: inspect(server)["subscribers"] == 3)
        [id] = publish(server.at, "a", "1")
        assert [event.id for event in stream.take(1)] == [id]
        for poll in polls:
            assert [event["id"] for event in poll.result().json()["events"]] == [id]
    [last] = publish(server.at, "a", "2")
    with Stream(server.at, {"channel": "a"}, last_event_id=id) as stream:
        assert [event.id for event in stream.take(1)] == [last]


def test_a_quiet_stream_has_heartbeats_and_its_end_is_noticed(server: Listening) -> None:
    with Stream(server.at, {"channel": "b"}) as stream:
        for _ in range(2):
            stream.until("sse.heartbeat", 5)
        assert inspect(server)["subscribers"] == 1
    wait_until(lambda: inspect(server)["subscribers"] == 0, 2 * 3 + 1)  # with no event at all


def test_an_end_is_noticed_at_once_where_no_greenlet_waits(tmp_path: Path) -> None:
    with Listening(tmp_path, "unix") as server:
        with Stream(server.at, {"channel": "b"}) as stream:
            stream.until("sse.heartbeat")
        wait_until(lambda: inspect(server)["subscribers"] == 0, 1)


def test_head_has_the_headers_of_a_stream_and_adds_no_subscriber(server: Listening) -> None:
    connection = http.client.HTTPConnection("localhost")
    with contextlib.closing(connection):
        connection.sock = client.connect(server.at)
        for method in ("HEAD", "HEAD", "GET"):  # all on one connection
            connection.request(method, "/sse/stream?channel=c")
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
            if method == "HEAD":
                assert answer.read() == b""
                assert inspect(server)["subscribers"] == 0
        assert answer.readline() == b"retry: 3000\n"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_wants_its_connection_closed_has_its_stream_until_then(server: Listening, version: str) -> None:
    head = f"GET /sse/stream?channel=d HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with client.connect(server.at) as sock, sock.makefile("rb") as lines:
        sock.sendall(head.encode())
        assert lines.readline().split()[1] == b"200"
        headers = http.client.parse_headers(lines)
        assert headers["Connection"] == "close"
        assert (headers["Transfer-Encoding"] == "chunked") == (version == "1.1")
        while lines.readline() != b"event: sse.heartbeat\n":
            pass
        for data in ("one", "two"):
            publish(server.at, "d", data)
            while (line := lines.readline()) != f"data: {data}\n".encode():
                assert line


@pytest.mark.parametrize(("version", "wish"), [("1.0", "keep-alive"), ("1.1", "keep-alive"), ("1.1", "close")])
def test_a_poll_that_waited_leaves_its_connection_as_the_client_wished(
    server: Listening, version: str, wish: str
) -> None:
    with client.connect(server.at) as sock, sock.makefile("rb") as answers:
        [id] = publish(server.at, "e", "first")
        for number in range(3):
            target = f"/sse/poll?channel=e&timeout=5&last_event_id={id}"
            sock.sendall(f"GET {target} HTTP/{version}\r\nHost: localhost\r\nConnection: {wish}\r\n\r\n".encode())
            wait_until(lambda: inspect(server)["subscribers"] == 1)
            [id] = publish(server.at, "e", str(number))
            assert answers.readline().split()[1] == b"200"
            headers = http.client.parse_headers(answers)
            assert headers["Connection"] == wish
            body = answers.read(int(headers["Content-Length"]))
            assert id.encode() in body
            wait_until(lambda: inspect(server)["subscribers"] == 0)
            if wish == "close":
                assert answers.read() == b""
                break


@pytest.mark.parametrize("how", ["unix", "tls"])
def test_at_sigterm_streams_are_told_and_the_process_is_gone(tmp_path: Path, how: str) -> None:
    with Listening(tmp_path, how) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(server.at, {"channel": "f"})) for _ in range(20)]
        for stream in streams:
            stream.until("sse.heartbeat")
        process = server.process
        assert process
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        for stream in streams:
            assert [event.json()["reason"] for event in stream.events() if event.event == "sse.close"] == ["drain"]
            assert stream.complete
        process.wait(5)
        assert time.monotonic() - asked < 3
        server.process = None
