"""What subscribers cost a gunicorn worker while they are there, and that nothing of them is left when they are not."""

from __future__ import annotations

import contextlib
import json
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.client import Stream
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until

KEY = "a-publishing-key-for-these-tests"
ORIGIN = "https://a.example"
HEARTBEAT = 3
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
APP = "tests.live.apps.inspected:application"
ENV = {"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": str(HEARTBEAT), "SSE_ORIGINS": ORIGIN}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def worker(store: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One worker on Redis, which has served streams before."""
    with Gunicorn(tmp_path_factory.mktemp("gunicorn"), APP, ENV | {"SSE_REDIS_URL": store.url}) as server:
        with Crowd(server.url) as crowd:
            crowd.open(5, lambda: "warm")
            crowd.settle()
        with storm(server.url, ["warm"]):
            wait_until(lambda: inspect(server)["subscribers"] == 0)
        yield server


def inspect(server: Gunicorn) -> dict[str, int]:
    answer = client.request(server.url, "GET", "/inspect", timeout=10)
    assert answer.status == 200
    return answer.json()


def publish(url: str, channel: str, data: object) -> None:
    assert client.publish(url, channel, data, key=KEY).status == 201


@contextlib.contextmanager
def storm(url: str, channels: list[str], pause: float = 0.02) -> Iterator[None]:
    """Events on all channels, `pause` seconds apart, for as long as the block runs."""
    stop, faults = threading.Event(), []

    def run() -> None:
        try:
            for number in range(100_000):
                if stop.wait(pause):
                    return
                answer = client.publish(url, channels, f"{number} " + "x" * 200, key=KEY)
                assert answer.status == 201, answer.body
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not faults, faults


class Member:
    """A stream of a crowd."""

    __slots__ = ("due", "head", "size", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.size = 0
        self.due = 0.0

    @property
    def is_open(self) -> bool:
        return b"event: sse.heartbeat" in self.head


class Crowd:
    """Many streams, read by one thread, and cut as rudely as wished."""

    def __init__(self, url: str) -> None:
        self.address = client.urlsplit(url)
        self.members: set[Member] = set()
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for member in list(self.members):
            self.cut(member)
        self.selector.close()

    def open(self, count: int, channel: Callable[[], str], path: str = "/sse/stream?channel=") -> list[Member]:
        opened = []
        for number in range(count):
            sock = socket.create_connection((self.address.hostname, self.address.port), 10)
            sock.sendall(
                f"GET {path}{channel()} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n\r\n".encode()
            )
            sock.setblocking(False)
            member = Member(sock)
            self.members.add(member)
            self.selector.register(sock, selectors.EVENT_READ, member)
            opened.append(member)
            if number % 50 == 49:
                self.read(0)
        return opened

    def cut(self, member: Member, how: str = "close") -> None:
        self.members.discard(member)
        self.selector.unregister(member.sock)
        if how == "reset":
            member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        elif how == "half":
            with contextlib.suppress(OSError):
                member.sock.shutdown(socket.SHUT_WR)
        member.sock.close()

    def read(self, timeout: float) -> list[Member]:
        """Take in what has come; those whose stream the server has ended."""
        ended = []
        for key, _ in self.selector.select(timeout):
            member = key.data
            try:
                data = member.sock.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            member.size += len(data)
            member.head = (member.head + data)[:4096]
            if not data:
                ended.append(member)
                self.cut(member)
        return ended

    def settle(self, timeout: float = 20) -> None:
        """Wait until every stream is open."""
        deadline = time.monotonic() + timeout
        while waiting := [member for member in self.members if not member.is_open]:
            assert time.monotonic() < deadline, f"{len(waiting)} of {len(self.members)} do not open: {waiting[0].head!r}"
            assert not self.read(0.2), "a stream was ended"


def test_two_thousand_streams_cut_at_random_in_a_storm_leave_nothing_behind(
    worker: Gunicorn, store: RedisServer
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    channels = [f"storm/{number}" for number in range(20)]
    base = wait_until(lambda: (seen := inspect(worker))["channels"] == 0 and seen, 12, what="no channel is left")
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
            return seen

        with contextlib.suppress(AssertionError):
            wait_until(lambda: held() == base, 2 * HEARTBEAT + 10, 0.2)
        assert held() == base
        assert redis.pubsub_channels() == []
        assert redis.pubsub_numsub(*(f"sse:0:{{{name}}}" for name in channels)) == [
            (f"sse:0:{{{name}}}", 0) for name in channels
        ]


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
        assert 100 >= int(listening[0]["sub"]) > 90
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
            assert (event.event, event.json(), event.own_id) == ("sse.close", {"reason": "busy"}, None)
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
    base = wait_until(lambda: (seen := inspect(worker))["channels"] == 0 and seen, 15, what="no channel is left")
    with Nginx(tmp_path, worker.bind) as nginx, store.client() as redis, contextlib.ExitStack() as streams:
        # nginx takes a client's half-close for its leave; to gunicorn it is a client that still reads.
        cases = [(worker.url, "close"), (worker.url, "reset")] + [(nginx.url, how) for how in ("close", "reset", "half")]
        gone = [
            (streams.enter_context(Stream(url, {"channel": f"gone/{number}"})), how)
            for number, (url, how) in enumerate(cases)
        ]
        for stream, _ in gone:
            stream.until("sse.heartbeat")
        half = streams.enter_context(Stream(worker.url, {"channel": "gone/half"}))
        half.until("sse.heartbeat")
        half.sock.shutdown(socket.SHUT_WR)
        assert inspect(worker)["subscribers"] == len(cases) + 1
        assert len(redis.pubsub_channels()) == len(cases) + 1

        left = time.monotonic()
        for stream, how in gone:
            vanish(stream, how)
        wait_until(lambda: inspect(worker)["subscribers"] == 1, 2 * HEARTBEAT + 1)
        print(f"noticed after {time.monotonic() - left:.1f} s")
        publish(worker.url, "gone/half", "still there?")
        assert half.take(1)[0].data == "still there?"
        half.close()
        wait_until(lambda: inspect(worker)["subscribers"] == 0, 2 * HEARTBEAT + 1)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: inspect(worker) == base, 10, 0.2)
        assert inspect(worker) == base
        assert redis.pubsub_channels() == []


def test_a_client_that_never_reads_is_cut(worker: Gunicorn) -> None:
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        address = client.urlsplit(worker.url)
        sock.connect((address.hostname, address.port))
        sock.sendall(b"GET /sse/stream?channel=deaf HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: inspect(worker)["subscribers"] == 1)
        for _ in range(100):  # more than the kernel takes in for it
            publish(worker.url, "deaf", "x" * 60_000)
        assert inspect(worker)["subscribers"] == 1
        wait_until(lambda: inspect(worker)["subscribers"] == 0, 45, 0.2)
