"""The app's own views on each server: `sse.subscribe` as the routes, and the promises of `sse.stream`."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FlaskRun, Waitress
from tests.live.load import HEARTBEAT, RESET_ON_CLOSE, Crowd
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer, make_certificate, wait_until
from tests.tokens import KEY

APP = "tests.live.apps.own:application"
ENV = {"SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": str(HEARTBEAT), "SSE_RETRY": "500"}
WORKERS = {
    "handed off": (),
    "gevent": ("-k", "gevent"),
    "gthread": ("-k", "gthread", "--threads", "8"),
    "sync": ("-k", "sync", "--timeout", "60"),
}
KINDS = ("handed off", "gevent", "gthread", "waitress", "flask run")


def make(kind: str, directory: Path, **env: str) -> Gunicorn:
    if kind in WORKERS:
        return Gunicorn(directory, APP, ENV | env, arguments=WORKERS[kind])
    return {"waitress": Waitress, "flask run": FlaskRun}[kind](directory, APP, ENV | env)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with make(request.param, tmp_path_factory.mktemp("own")) as server:
        yield server


def state(server: Gunicorn) -> dict[str, Any]:
    told: dict[str, Any] = client.request(server.url, "GET", "/healthz").json()
    return told


def items(server: Gunicorn, how: str, name: str = "") -> Stream:
    return Stream(server.url, {"name": name or how}, path=f"/pages/items/{how}")


# subscribe


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_view_s_stream_resumes_and_its_poll_goes_on(server: Gunicorn, method: str) -> None:
    options: dict[str, Any] = {"path": "/pages/channels", "method": method}
    if method == "POST":
        options["body"] = b"x" * 100_000
    with Stream(server.url, **options) as stream:
        assert stream.status == 200
        opened = stream.until("sse.open")
        assert set(opened.json()["channels"]) == {"a", "b"}
        publish(server, "a", "one")
        [one] = stream.take(1)
    publish(server, "b", "two")
    with Stream(server.url, last_event_id=one.id, **options) as stream:
        assert {channel["resumed"] for channel in stream.until("sse.open").json()["channels"].values()} == {True}
        assert [event.data for event in stream.take(1)] == ["two"]
    accept = {"Accept": "application/json"}
    query = {"last_event_id": one.id, "timeout": 5}
    answer = client.request(
        server.url, method, "/pages/channels", query, headers=accept, body=options.get("body")
    ).json()
    assert [event["data"] for event in answer["events"]] == ["two"]
    with ThreadPoolExecutor(1) as thread:
        query["last_event_id"] = answer["last_event_id"]
        waiting = thread.submit(client.request, server.url, method, "/pages/channels", query, headers=accept)
        time.sleep(0.3)
        publish(server, "a", "three")
        assert [event["data"] for event in waiting.result().json()["events"]] == ["three"]


def test_a_quiet_view_has_heartbeats_and_gives_its_seat_back(server: Gunicorn) -> None:
    # After the client has closed, the first write succeeds and the second fails. waitress raises at the third.
    writes = 3 if isinstance(server, Waitress) else 2
    with Stream(server.url, path="/pages/channels") as stream:
        stream.until("sse.heartbeat")
        begun = time.monotonic()
        stream.until("sse.heartbeat")
        assert HEARTBEAT - 0.2 < time.monotonic() - begun < HEARTBEAT + 1
    wait_until(lambda: state(server)["seats"] == 0, writes * HEARTBEAT + 2)


def test_revoking_the_reader_ends_the_stream_within_two_seconds(server: Gunicorn) -> None:
    with Stream(server.url, path="/pages/channels") as stream:
        stream.until("sse.open")
        client.request(server.url, "POST", "/revoke", body=b"")
        assert stream.until("sse.close", 2).json()["reason"] == "expired"
    with Stream(server.url, path="/pages/channels") as stream:
        stream.until("sse.open")


# stream


def test_an_iterable_ends_fails_and_is_logged(server: Gunicorn) -> None:
    with items(server, "ends") as stream:
        events = list(stream.events())
        assert stream.complete
    assert [(event.event, event.data) for event in events if not event.event.startswith("sse.")] == [
        ("text", "ends "),
        ("facts", "facts"),
    ]
    assert events[-1].json() == {"channel": None, "reason": "done"}
    with Stream(server.url, path="/pages/items/ends", last_event_id=events[-1].id) as again:
        assert again.status == 204
    with items(server, "fails") as stream:
        assert list(stream.events())[-1].json()["reason"] == "failed"
    wait_until(lambda: "the iterable fails, as it is meant to" in server.logs())


def test_a_slow_iterable_has_heartbeats(server: Gunicorn) -> None:
    with items(server, "7") as stream:
        begun = time.monotonic()
        kinds = [event.event for event in (stream.next(10) for _ in range(6)) if event]
        assert time.monotonic() - begun < 9
    assert kinds == ["sse.open", "sse.heartbeat", "text", "sse.heartbeat", "sse.heartbeat", "message"]


@pytest.mark.parametrize("ends_by", ["close", "reset"])
def test_after_the_client_has_gone_the_iterable_is_closed_within_two_heartbeats_of_its_next_value(
    server: Gunicorn, ends_by: str
) -> None:
    name = f"gone by {ends_by}"
    stream = items(server, "0.5", name)
    stream.take(2)
    assert name not in state(server)["ended"]
    if ends_by == "reset":
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    stream.close()
    wait_until(lambda: name in state(server)["ended"], 2 * HEARTBEAT + 2)
    # That of an earlier test has a value each 7 s.
    wait_until(lambda: state(server)["seats"] == 0 and state(server)["running"] == 0, 2 * HEARTBEAT + 7 + 2)


# Our worker


def test_our_worker_closes_an_iterable_that_waits(tmp_path: Path) -> None:
    with make("handed off", tmp_path) as server:
        stream = items(server, "waits")
        stream.until("text")
        stream.close()
        wait_until(lambda: state(server)["ended"] == ["waits"], 2 * HEARTBEAT)
        assert state(server)["seats"] == 0
        assert "Traceback" not in server.logs()


@pytest.mark.parametrize("kind", ["handed off", "gevent", "gthread", "sync"])
def test_at_sigterm_an_iterable_s_stream_ends_as_interrupted(kind: str, tmp_path: Path) -> None:
    with make(kind, tmp_path) as server, items(server, "0.2") as stream:
        stream.until("text")
        server.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert stream.until("sse.end").json()["reason"] == "interrupted"
        assert list(stream.events()) == []
        assert stream.complete


def test_the_sync_worker_streams_an_iterable(tmp_path: Path) -> None:
    with make("sync", tmp_path) as server:
        with items(server, "ends") as stream:
            assert list(stream.events())[-1].json()["reason"] == "done"
        stream = items(server, "0.2", "gone")
        stream.take(2)
        stream.close()
        wait_until(lambda: "gone" in state(server)["ended"], 2 * HEARTBEAT + 2)


def test_a_thousand_iterables_at_once_under_our_worker_and_requests_are_answered(tmp_path: Path) -> None:
    with make("handed off", tmp_path) as server, Crowd(server.url) as crowd:
        crowd.open(1000, lambda: "", path="/pages/items/2")
        crowd.settle(30)
        begun = time.monotonic()
        assert state(server)["seats"] == 1000
        assert time.monotonic() - begun < 2
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and not all(b'{"n":1}' in member.head for member in crowd.members):
            assert not crowd.read(0.2), "a stream was ended"
        assert all(b'{"n":1}' in member.head for member in crowd.members)
        for member in list(crowd.members):
            crowd.cut(member)
        wait_until(lambda: len(state(server)["ended"]) == 1000, 3 * HEARTBEAT + 2)
        wait_until(lambda: state(server)["seats"] == 0 and state(server)["running"] == 0)
        assert "Traceback" not in server.logs()


def test_few_greenlets_serve_more_iterables(tmp_path: Path) -> None:
    with make("handed off", tmp_path, SSE_MAX_SUBSCRIBERS="40") as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(items(server, "2")) for _ in range(40)]
        for stream in streams:
            stream.until("text")
        with items(server, "2") as refused:
            assert [event.json()["reason"] for event in refused.events()] == ["busy"]
        assert state(server)["seats"] == 40


def test_a_client_that_reads_nothing_is_given_up(tmp_path: Path) -> None:
    with make("handed off", tmp_path) as server:
        stream = Stream(server.url, {"name": "stalled"}, path="/pages/items/0")
        wait_until(lambda: "stalled" in state(server)["ended"], 40, 0.5)
        stream.close()


def test_an_iterable_is_sent_over_tls_and_over_http_1_0(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    make_certificate(certificate, key)
    secure = Gunicorn(tmp_path, APP, ENV, arguments=("--certfile", str(certificate), "--keyfile", str(key)))
    secure.url = f"https://{secure.bind}"
    with secure as server:
        with items(server, "ends") as stream:
            assert list(stream.events())[-1].json()["reason"] == "done"
            assert stream.complete
        stream = items(server, "waits")
        stream.until("text")
        stream.close()
        wait_until(lambda: "waits" in state(server)["ended"], 2 * HEARTBEAT)
    with Gunicorn(tmp_path, APP, ENV) as server, client.connect(server.url) as sock:
        sock.sendall(b"GET /pages/items/ends HTTP/1.0\r\n\r\n")
        head, _, body = client.read_all(sock).partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert client.Parser().feed(body)[-1].json()["reason"] == "done"


def test_a_reader_is_revoked_on_every_worker(tmp_path: Path, redis_server: RedisServer) -> None:
    with (
        Gunicorn(tmp_path, APP, ENV | {"SSE_REDIS_URL": redis_server.url}, workers=4) as server,
        contextlib.ExitStack() as stack,
    ):
        streams = [stack.enter_context(Stream(server.url, path="/pages/channels")) for _ in range(24)]
        for stream in streams:
            stream.until("sse.heartbeat")
        [id] = publish(server, "a", "to all")
        assert {stream.take(1)[0].id.split("~")[0] for stream in streams} == {id}
        begun = time.monotonic()
        client.request(server.url, "POST", "/revoke", body=b"")
        assert {stream.until("sse.close", 3).json()["reason"] for stream in streams} == {"expired"}
        assert time.monotonic() - begun < 2.5
