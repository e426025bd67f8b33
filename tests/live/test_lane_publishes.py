"""Publish requests that come at the same time: each gets the answer to its own request, and is stored once, in order.

In the fast lane, the events of many requests go to the store in one round trip.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import client
from tests.live.load import has_whole_lane
from tests.publishing import publish
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import KEY

COUNT = 120
TIMEOUT = 1  # SSE_REDIS_TIMEOUT, in seconds


class Answer(NamedTuple):
    """A response on a kept connection."""

    status: int
    body: dict[str, Any]


class Publisher:
    """A kept connection. Requests are sent without waiting for answers, which are read later, in order."""

    def __init__(self, url: str) -> None:
        self.sock = client.connect(url, timeout=30)
        self._file = self.sock.makefile("rb")

    def send(self, *requests: bytes) -> None:
        self.sock.sendall(b"".join(requests))

    def answer(self) -> Answer:
        status = int(self._file.readline().split()[1])
        fields = {}
        while line := self._file.readline().strip():
            name, _, value = line.partition(b": ")
            fields[name.lower()] = value
        return Answer(status, json.loads(self._file.read(int(fields[b"content-length"]))))

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def post(
    channel: str, data: object, *, key: str = KEY, once: str = "", body: bytes | None = None, chunked: bool = False
) -> bytes:
    """Return the bytes of a publish request; a chunked one is not for the fast lane."""
    body = json.dumps({"channel": channel, "data": data}).encode() if body is None else body
    lines = [
        "POST /sse/publish HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        *([f"Idempotency-Key: {once}"] if once else []),
        "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}",
    ]
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return "\r\n".join([*lines, "", ""]).encode() + framed


class World(NamedTuple):
    """A server of one worker, its Redis if it has one, and the connections of a test."""

    server: Gunicorn
    redis: RedisServer | None
    stack: ExitStack

    def publishers(self, count: int) -> list[Publisher]:
        made = [Publisher(self.server.url) for _ in range(count)]
        for publisher in made:
            self.stack.callback(publisher.close)
        return made

    def pause(self, seconds: float) -> None:
        """Have requests pile up, for so long: in Redis's queue, or before the worker, which is stopped."""
        if self.redis:
            with self.redis.client() as redis:
                redis.client_pause(round(seconds * 1000), all=True)
            return
        [pid] = self.server.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
        timer.start()
        self.stack.callback(timer.join)

    def offset(self, channel: str) -> int:
        """Return the offset of a channel's newest event; 0 if it has none."""
        answer = client.poll(self.server.url, [channel], timeout=0)
        _, _, position = answer.json()["last_event_id"].rpartition("=")
        return int(position.partition("-")[0])


@pytest.fixture(scope="module", params=["memory", "Redis"])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gunicorn, RedisServer | None]]:
    folder = tmp_path_factory.mktemp("publishes")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder)) if request.param == "Redis" else None
        own = {"SSE_REDIS_URL": redis.url} if redis else {}
        server = stack.enter_context(Gunicorn(folder, env={"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, **own}))
        assert has_whole_lane(server) == (server.environment().get("SSE_LANE") != "off")
        publish(server, "warm", 1)  # a worker's first request is never in the lane
        yield server, redis


@pytest.fixture
def world(servers: tuple[Gunicorn, RedisServer | None]) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(*servers, stack)


def kinds(number: int) -> tuple[bytes, int, str]:
    """Return the request of a publisher, the status of its answer, and the error's code or the channel."""
    channel = f"own/{number}"
    match number % 6:
        case 0:
            return post("conflicts", number, once="one-key-for-all"), 422, "idempotency_conflict"
        case 1:
            return post(channel, number, key="a-key-that-nobody-has"), 401, "unauthorized"
        case 2:
            return post(channel, "x" * 65_537), 413, "too_large"
        case 3:
            return post(channel, number, body=b'{"channel":'), 400, "bad_json"
        case _:
            return post(channel, number), 201, channel


def test_each_of_many_at_once_gets_the_answer_to_its_own_request(world: World) -> None:
    [first] = world.publishers(1)
    first.send(post("conflicts", "first", once="one-key-for-all"))
    assert first.answer().status == 201
    publishers = world.publishers(COUNT)
    world.pause(0.4)
    for number, publisher in enumerate(publishers):
        publisher.send(kinds(number)[0])
    for number, publisher in enumerate(publishers):
        _, status, told = kinds(number)
        answer = publisher.answer()
        assert answer.status == status, (number, answer)
        if status == 201:
            [id] = answer.body["ids"]
            assert id.startswith(f"{told}=1-"), (number, id)
        else:
            assert answer.body["error"]["code"] == told, (number, answer)


def test_all_events_of_many_at_once_on_one_channel_are_stored_once_each(world: World) -> None:
    publishers = world.publishers(COUNT)
    world.pause(0.4)
    for number, publisher in enumerate(publishers):
        publisher.send(post("all", number, once=f"key-{number // 2}") if number % 2 else post("all", number))
    ids = [publisher.answer().body["ids"][0] for publisher in publishers]
    assert len({*ids}) == COUNT and world.offset("all") == COUNT
    for number, publisher in enumerate(publishers):
        if number % 2:
            publisher.send(post("all", number, once=f"key-{number // 2}"))
            assert publisher.answer().body["ids"] == [ids[number]]
    assert world.offset("all") == COUNT


def test_requests_behind_one_another_are_stored_and_answered_in_order_in_and_out_of_the_lane(world: World) -> None:
    publishers = world.publishers(10)
    world.pause(0.2)
    for number, publisher in enumerate(publishers):
        channel = f"line/{number}"
        publisher.send(*(post(channel, place, chunked=place % 3 == number % 3) for place in range(9)))
    for number, publisher in enumerate(publishers):
        ids = [publisher.answer().body["ids"][0] for _ in range(9)]
        assert [id.partition("-")[0] for id in ids] == [f"line/{number}={place}" for place in range(1, 10)]


@pytest.mark.parametrize("ends", ["closed", "reset"])
def test_a_request_whose_client_has_gone_is_stored_all_the_same(world: World, ends: str) -> None:
    [stays] = world.publishers(1)
    gone = [Publisher(world.server.url) for _ in range(20)]
    world.pause(0.4)
    for publisher in gone:
        publisher.send(post(f"gone/{ends}", 1))
    time.sleep(0.2)  # with Redis, the worker has read them all
    for publisher in gone:
        if ends == "reset":
            publisher.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        publisher.close()
    if world.redis or ends == "closed":  # of a connection that was reset, the kernel gives nothing more to read
        wait_until(lambda: world.offset(f"gone/{ends}") == len(gone))
    stays.send(post("stays", 1))
    assert stays.answer().status == 201


def test_while_redis_hangs_each_is_answered_in_time_and_a_repetition_is_stored_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """They come one after the other, so each call of the store has others behind it when its time is over."""
    env = {
        "SSE_PUBLIC": "*",
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_REDIS_URL": redis_server.url,
        "SSE_REDIS_TIMEOUT": str(TIMEOUT),
    }
    with ExitStack() as stack:
        server = stack.enter_context(Gunicorn(tmp_path, env=env))
        world = World(server, redis_server, stack)
        publish(server, "warm", 1)
        publishers = world.publishers(40)

        def timed(number: int) -> tuple[int, float]:
            time.sleep(number / 40 * 2 * TIMEOUT)
            begun = time.monotonic()
            publishers[number].send(post("hung", number, once=f"key-{number}"))
            return publishers[number].answer().status, time.monotonic() - begun

        def publish_again(number: int) -> int:
            publishers[number].send(post("hung", number, once=f"key-{number}"))
            return publishers[number].answer().status

        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(len(publishers)) as pool:
                answers = list(pool.map(timed, range(len(publishers))))
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert {status for status, _ in answers} == {503}
        assert max(took for _, took in answers) < 3 * TIMEOUT
        wait_until(lambda: publish_again(0) == 201)
        assert [publish_again(number) for number in range(len(publishers))] == [201] * len(publishers)
        assert world.offset("hung") == len(publishers)
