"""The memory, descriptors and connections that subscribers cost a worker. Nothing is left when they are gone."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, GREENLETS, HEARTBEAT, ORIGIN, RESET_ON_CLOSE, Crowd, inspect
from tests.publishing import publish, storm
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=[(), GREENLETS], ids=["handed off", "greenlets"])
def worker(
    store: RedisServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Gunicorn]:
    """One worker on Redis that has served streams before."""
    environment = ENV | {"SSE_REDIS_URL": store.url}
    with Gunicorn(tmp_path_factory.mktemp("gunicorn"), APP, environment, arguments=request.param) as server:
        with Crowd(server.url) as crowd:
            crowd.open(5, lambda: "warm")
            crowd.settle()
        with storm(server.url, ["warm"]):
            # To `threading`, a greenlet is a thread once it logs a line. The one that logs all ends stays one.
            wait_until(lambda: inspect(server)["subscribers"] == 0 and server.logs().count("stream ended: ") == 5)
        yield server


@pytest.fixture(scope="module", autouse=True)
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, Stream]]:
    """A worker that writes to a client that does not read. The kernel gives that client up after 20 s."""
    with (
        Gunicorn(tmp_path_factory.mktemp("deaf"), APP, ENV) as server,
        Stream(server.url, {"channel": "deaf"}) as stream,
    ):
        wait_until(lambda: inspect(server)["subscribers"] == 1)
        for _ in range(100):  # more than the kernels' buffers hold
            publish(server.url, "deaf", "x" * 60_000)
        assert inspect(server)["subscribers"] == 1
        yield server, stream


def idle(server: Gunicorn) -> dict[str, int]:
    """Return what the worker holds without subscribers. It may not have dropped their channels yet."""
    seen = inspect(server)
    assert seen["subscribers"] == 0
    return seen | {"channels": 0}


def test_two_thousand_streams_cut_at_random_in_a_storm_leave_nothing_behind(
    worker: Gunicorn, store: RedisServer, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(pytestconfig.getoption("hypothesis_seed"))
    channels = [f"storm/{number}" for number in range(20)]
    base = idle(worker)
    with store.client() as redis, Crowd(worker.url) as crowd:
        base_connections = len(redis.client_list())
        opened = most = 0
        with storm(worker.url, channels, 0.05):
            for _ in range(10):
                now = time.monotonic()
                for member in crowd.open(200, lambda: "&channel=".join(rng.sample(channels, rng.choice((1, 1, 1, 3))))):
                    # Some before the answer's head, some amid it, some after events.
                    member.due = now + rng.choice((0, rng.uniform(0, 0.3), rng.uniform(0, 1.5)))
                while len(crowd.members) > 60:
                    assert time.monotonic() - now < 20
                    assert not crowd.read(0.02), "the server ended a stream"
                    for member in [member for member in crowd.members if member.due < time.monotonic()]:
                        opened += member.is_open
                        crowd.cut(member, rng.choice(("close", "reset", "half")))
                most = max(most, inspect(worker)["subscribers"])
            for member in list(crowd.members):
                crowd.cut(member)
        assert opened > 500, "hardly a stream was ever open"
        assert most > 20, "hardly a stream was ever attached"

        def held() -> dict[str, int]:
            # A connection of the pool stays, once made: they are counted by another test.
            seen = inspect(worker)
            seen["fds"] -= len(redis.client_list()) - base_connections
            # Each thread is a greenlet, and counted as one. A greenlet that stays becomes a thread when it first logs.
            return seen | {"threads": base["threads"]}

        with contextlib.suppress(AssertionError):
            wait_until(lambda: held() == base, 2 * HEARTBEAT + 10, 0.2)
        assert held() == base
        assert redis.pubsub_channels() == []
        assert redis.pubsub_numsub(*(f"sse:0:{{{name}}}" for name in channels)) == [
            (f"sse:0:{{{name}}}", 0) for name in channels
        ]


def vanish(stream: Stream, how: str) -> None:
    if how == "reset":
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    elif how == "half":
        stream.sock.shutdown(socket.SHUT_WR)
        return
    stream.close()


def test_a_client_that_has_gone_is_noticed_within_two_heartbeats_directly_and_through_nginx(
    worker: Gunicorn, store: RedisServer, tmp_path: Path
) -> None:
    base = idle(worker)
    with Nginx(tmp_path, worker.bind) as nginx, store.client() as redis, contextlib.ExitStack() as streams:
        # To nginx, and where streams are handed off, a half-close is a leave; to a greenlet, a client that still reads.
        cases = [(worker.url, "close"), (worker.url, "reset")] + [
            (nginx.url, how) for how in ("close", "reset", "half")
        ]
        gone = [
            (streams.enter_context(Stream(url, {"channel": f"gone/{number}"})), how)
            for number, (url, how) in enumerate(cases)
        ]
        for stream, _ in gone:
            stream.until("sse.heartbeat")
        half = streams.enter_context(Stream(worker.url, {"channel": "gone/half"}))
        half.until("sse.heartbeat")
        assert inspect(worker)["subscribers"] == len(cases) + 1
        assert len(redis.pubsub_channels()) == len(cases) + 1
        half.sock.shutdown(socket.SHUT_WR)

        for stream, how in gone:
            vanish(stream, how)
        if worker.arguments == GREENLETS:
            wait_until(lambda: inspect(worker)["subscribers"] == 1, 2 * HEARTBEAT + 1)
            publish(worker.url, "gone/half", "still there?")
            assert half.take(1)[0].data == "still there?"
        else:
            wait_until(lambda: inspect(worker)["subscribers"] == 0, 1)
        half.close()
        with storm(worker.url, ["gone/half"]):
            wait_until(lambda: inspect(worker)["subscribers"] == 0)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: inspect(worker) == base, 10, 0.2)
        assert inspect(worker) == base
        assert redis.pubsub_channels() == []


def test_a_thousand_streams_share_one_pubsub_connection_and_a_small_pool(worker: Gunicorn, store: RedisServer) -> None:
    with store.client() as redis, Crowd(worker.url) as crowd:
        own = redis.client_id()
        with storm(worker.url, ["many/0"]):
            crowd.open(500, lambda: f"many/{random.randrange(100)}")
            crowd.open(500, lambda: "many/0&replay=1000")
            crowd.open(20, lambda: "many/1&timeout=0", "/sse/poll?channel=")
            wait_until(
                lambda: crowd.read(0.1) or sum(member.is_open for member in crowd.members) == 1000, 30, 0, "1,000 open"
            )
        assert inspect(worker)["subscribers"] == 1000
        connections = [one for one in redis.client_list() if int(one["id"]) != own]
        listening = [one for one in connections if int(one["sub"])]
        assert len(listening) == 1
        assert int(listening[0]["sub"]) > 90
        assert len(connections) - 1 <= 8


def test_a_full_worker_still_answers_health_and_publishing_and_says_that_it_is_busy(tmp_path: Path) -> None:
    origin = {"Origin": ORIGIN}
    with (
        Gunicorn(tmp_path, APP, ENV | {"SSE_MAX_SUBSCRIBERS": "200"}) as server,
        Crowd(server.url) as crowd,
        contextlib.ExitStack() as silent,
    ):
        members = crowd.open(200, lambda: "a")
        crowd.settle()
        for _ in range(850):  # with the streams, more than gunicorn's own limit of 1,000
            silent.enter_context(client.connect(server.url))
        assert inspect(server)["subscribers"] == 200

        started = time.monotonic()
        assert client.request(server.url, "GET", "/healthz", timeout=5).status == 200
        publish(server.url, "a", "to all")
        assert time.monotonic() - started < 1

        with Stream(server.url, {"channel": "a"}, headers=origin) as refused:
            assert refused.status == 200
            assert refused.headers["Content-Type"] == "text/event-stream"
            assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
            [event] = refused.events()
            assert (event.event, event.json(), event.own_id) == (
                "sse.close",
                {"reason": "busy", "retry": event.retry},
                None,
            )
            assert event.retry is not None
            assert 3000 <= event.retry <= 12000
            assert refused.complete
        answer = client.poll(server.url, ["a"], headers=origin, timeout=5)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
        # Without waiting there is no subscriber to make room for.
        assert client.poll(server.url, ["a"], timeout=0).status == 200

        for member in members[:50]:
            crowd.cut(member, "reset")
        wait_until(lambda: inspect(server)["subscribers"] == 150, 2 * HEARTBEAT + 2)
        crowd.open(50, lambda: "a")
        crowd.settle()
        assert inspect(server)["subscribers"] == 200


def test_a_client_that_never_reads_is_cut_and_comes_back_for_the_rest(deaf: tuple[Gunicorn, Stream]) -> None:
    server, stream = deaf
    wait_until(lambda: inspect(server)["subscribers"] == 0, 40, 0.2)
    ids = [event.id for event in stream.events() if not event.event.startswith("sse.")]
    assert 0 < len(ids) < 100
    assert not stream.complete
    more = True
    while more and len(ids) <= 100:
        batch = client.poll(server.url, ["deaf"], ids[-1], timeout=0).json()
        assert batch["events"]
        assert not batch["resets"]
        ids += [event["id"] for event in batch["events"]]
        more = batch["more"]
    assert [int(id.removeprefix("deaf=").partition("-")[0]) for id in ids] == list(range(1, 101))


def test_the_collector_passes_over_what_stood_at_the_start_and_seldom_stops_the_worker(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV) as server:
        told = inspect(server)
        assert told["frozen"]
        assert told["threshold"] >= 5_000
