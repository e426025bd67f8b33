"""`end=cut` and `form=bare` on the wire, on each server: how a body ends, and what it contains."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import client
from tests.client import Parser, Stream, target
from tests.live.app_servers import FlaskRun
from tests.live.load import APP, ENV, GREENLETS, KEY
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer, make_certificate, wait_until

LAST_CHUNK = b"\r\n0\r\n\r\n"
SHORT = ENV | {"SSE_STREAM_LIFETIME": "5", "SSE_MAX_SUBSCRIBERS": "6"}
KINDS = ("handed off", "over TLS", "greenlets", "threads", "flask run")


def make(kind: str, directory: Path, env: Mapping[str, str] = SHORT) -> Gunicorn:
    if kind == "flask run":
        return FlaskRun(directory, APP, env)
    if kind == "over TLS":
        make_certificate(directory / "own.crt", directory / "own.key")
        tls = ("--certfile", f"{directory}/own.crt", "--keyfile", f"{directory}/own.key")
        server = Gunicorn(directory, APP, env, arguments=tls)
        server.url = f"https://{server.bind}"
        return server
    arguments = {"handed off": (), "greenlets": GREENLETS, "threads": ("-k", "gthread", "--threads", "9")}
    return Gunicorn(directory, APP, env, arguments=arguments[kind])


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gunicorn]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(make(kind, tmp_path_factory.mktemp("forms"))) for kind in KINDS}


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, servers: dict[str, Gunicorn]) -> Iterator[Gunicorn]:
    yield servers[request.param]
    is_quiet(servers[request.param])


def is_quiet(server: Gunicorn) -> None:
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "rror handling" not in log


def read(url: str, query: Mapping[str, str], version: str = "1.1") -> tuple[bytes, bytes]:
    """Return the head of a stream, and all bytes until the connection ends."""
    with client.connect(url, 15) as sock:
        line = f"GET {target('/sse/stream', {'channel': 'a', **query})} HTTP/{version}\r\n"
        sock.sendall(f"{line}Host: localhost\r\n\r\n".encode())
        sock.settimeout(15)
        data, deadline = b"", time.monotonic() + 30
        while not data.endswith(LAST_CHUNK) and (received := sock.recv(65_536)):
            data += received
            assert time.monotonic() < deadline, f"no end after {data[-200:]!r}"
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> bytes:
    """Return the chunks of a body, each of which is complete."""
    text = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        text, body = text + body[:length], body[length + 2 :]
    return text


def test_with_end_cut_a_lifetime_ends_without_the_last_chunk_and_nothing_else_changes(
    servers: dict[str, Gunicorn],
) -> None:
    with ThreadPoolExecutor(len(servers)) as pool:
        for done in [pool.submit(compare_ends, server) for server in servers.values()]:
            done.result()


def compare_ends(server: Gunicorn) -> None:
    asked: list[tuple[dict[str, str], str]] = [
        ({"end": "cut"}, "1.1"),
        ({}, "1.1"),
        ({"end": "cut"}, "1.0"),
        ({"end": "cut", "form": "bare"}, "1.1"),
        ({"form": "bare"}, "1.1"),
    ]
    assert client.publish(server.url, "a", {"id": 7}, key=KEY).status == 201
    with ThreadPoolExecutor(len(asked)) as pool:
        reading = [pool.submit(read, server.url, {**query, "replay": "1"}, version) for query, version in asked]
        (cut_head, cut), (head, clean), (_, old), (_, bare_cut), (_, bare) = [one.result(30) for one in reading]
    for one in (cut_head, head):
        assert b"transfer-encoding: chunked" in one.lower()
    assert not cut.endswith(LAST_CHUNK)
    assert clean.endswith(LAST_CHUNK)
    assert not bare_cut.endswith(LAST_CHUNK)
    assert bare.endswith(LAST_CHUNK)
    for body in (unchunked(cut), unchunked(clean.removesuffix(b"0\r\n\r\n")), old):
        events = Parser().feed(body)
        kinds = [event.event for event in events if event.event != "sse.heartbeat"]
        assert kinds == ["sse.open", "message", "sse.close"]
        assert events[-1].json()["reason"] == "lifetime"
    for body in (unchunked(bare_cut), unchunked(bare.removesuffix(b"0\r\n\r\n"))):
        (event,) = Parser(bare=True).feed(body)
        assert (event.json(), event.retry) == ({"id": 7}, 3000)
        assert re.search(rb'\n: close \{"reason":"lifetime","retry":\d+\}\n\Z', body)
    is_quiet(server)


def test_head_is_the_same_with_end_cut(server: Gunicorn) -> None:
    for query in ({"end": "cut"}, {"form": "bare"}):
        answer = client.request(server.url, "HEAD", "/sse/stream", {"channel": "a", **query})
        assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/event-stream", b"")
    wait_until(lambda: client.request(server.url, "GET", "/inspect").json()["subscribers"] == 0)


def test_a_full_service_cuts_its_busy_answer_too_and_refuses_a_bare_stream(server: Gunicorn) -> None:
    streams = [Stream(server.url, {"channel": "a"}) for _ in range(6)]
    try:
        for stream in streams:
            stream.until("sse.open")
        head, body = read(server.url, {"end": "cut"})
        assert b"transfer-encoding: chunked" in head.lower()
        assert not body.endswith(LAST_CHUNK)
        (close,) = Parser().feed(unchunked(body))
        assert close.json()["reason"] == "busy"
        for query in ({"form": "bare"}, {"form": "bare", "end": "cut"}):
            answer = client.request(server.url, "GET", "/sse/stream", {"channel": "a", **query})
            assert (answer.status, answer.json()["error"]["code"]) == (503, "busy")
            assert int(answer.headers["Retry-After"]) >= 3
    finally:
        for stream in streams:
            stream.close()


def test_gunicorn_s_plain_worker_cuts_too(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, SHORT, arguments=("-k", "sync")) as server:
        _, body = read(server.url, {"end": "cut"})
        assert not body.endswith(LAST_CHUNK)
        assert Parser().feed(unchunked(body))[-1].json()["reason"] == "lifetime"
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("kind", ["handed off", "greenlets"])
def test_what_is_busy_before_it_is_a_stream_is_cut_too(tmp_path: Path, kind: str) -> None:
    """A client has made too many requests."""
    arguments = GREENLETS if kind == "greenlets" else ()
    env = ENV | {"SSE_LIMIT_SUBSCRIBE": "1/hour", "SSE_PROXIES": "1"}
    with Gunicorn(tmp_path, APP, env, arguments=arguments) as server:
        client.poll(server.url, ["a"], timeout=0)
        head, body = read(server.url, {"end": "cut"})
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"content-length" not in head.lower()
        assert not body.endswith(LAST_CHUNK)
        assert Parser().feed(unchunked(body))[0].json()["reason"] == "busy"
        _, body = read(server.url, {"end": "cut"}, "1.0")
        assert Parser().feed(body)[0].json()["reason"] == "busy"
        assert client.request(server.url, "HEAD", "/sse/stream", {"channel": "a", "end": "cut"}).status == 200
        assert client.request(server.url, "GET", "/sse/stream", {"channel": "a", "form": "bare"}).status == 503
        is_quiet(server)


@pytest.mark.parametrize("kind", ["handed off", "threads"])
def test_a_drain_cuts_the_streams_that_ask_for_it_and_no_others(tmp_path: Path, kind: str) -> None:
    with make(kind, tmp_path, ENV | {"SSE_DRAIN": "1"}) as server:
        with ThreadPoolExecutor(20) as pool:
            reading = [pool.submit(read, server.url, {"end": "cut"} if n % 2 else {}) for n in range(8)]
            wait_until(lambda: client.request(server.url, "GET", "/inspect").json()["subscribers"] == 8)
            stopping = threading.Thread(target=server.stop, args=(20, signal.SIGTERM))
            stopping.start()
            for number, one in enumerate(reading):
                _, body = one.result(20)
                assert body.endswith(LAST_CHUNK) == (number % 2 == 0)
                assert b'{"reason":"drain",' in body
            stopping.join()


@pytest.mark.parametrize("kind", ["handed off", "greenlets"])
def test_a_bare_stream_whose_ring_is_lost_is_cut_and_then_refused(tmp_path: Path, kind: str) -> None:
    with (
        RedisServer(tmp_path) as store,
        make(kind, tmp_path, ENV | {"SSE_REDIS_URL": store.url}) as server,
        ExitStack() as stack,
    ):
        for channel in "ab":
            publish(server, channel, "heard")
        bare = {"form": "bare", "replay": "1"}
        *lost, other = [
            stack.enter_context(Stream(server.url, {"channel": channel, **bare})) for channel in ("a", "a", "a", "b")
        ]
        ids = {one.take(1)[0].id for one in (*lost, other)}
        assert len(ids) == 2
        with store.client() as connection:
            connection.delete("sse:{a}")
        publish(server, "a", "of another life")
        for stream in lost:
            assert stream.next(20) is None
            assert not stream.complete
            assert b": close" not in stream.received
            (event,) = Parser(bare=True).feed(stream.received)
            back = {"channel": "a", "form": "bare"}
            answer = client.request(server.url, "GET", "/sse/stream", back, headers={"Last-Event-ID": event.id})
            assert answer.status == 410
            assert [reset["channel"] for reset in answer.json()["resets"]] == ["a"]
            back["last_event_id"] = answer.json()["last_event_id"]
            with Stream(server.url, back) as again:
                assert again.status == 200
        publish(server, "b", "and on")
        assert other.take(1)[0].data == "and on"
        is_quiet(server)
