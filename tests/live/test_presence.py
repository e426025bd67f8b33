"""Presence over four workers on one Redis: ten thousand joins and leaves, a killed and a frozen worker, and a drain."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from tests import client
from tests.live.load import address
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import KEY

APP = "tests.live.apps.present:application"
ROOMS = ("1", "2", "3", "4")
READERS = ("", *(f"reader{number}" for number in range(30)))
ENV = {
    "SSE_PUBLIC": "*",
    "SSE_PRESENCE": "room/*",
    "SSE_PUBLISH_KEYS": KEY,
    "SSE_LIMIT_CHANNEL": "",
    "SSE_STREAM_LIFETIME": "900",
}


@pytest.fixture
def server(tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    env = ENV | {"SSE_REDIS_URL": redis_url, "CALLS": str(tmp_path / "calls")}
    server = Gunicorn(tmp_path, APP, env, workers=4).start(timeout=60)
    yield server
    server.stop()


class Connection(NamedTuple):
    sock: socket.socket
    room: str
    reader: str
    client: str
    worker: int


class Crowd:
    """Streams and polls of readers in rooms, and the model of who is there."""

    def __init__(self, server: Gunicorn, chance: random.Random) -> None:
        self.server = server
        self.chance = chance
        self.streams: list[Connection] = []
        self.polls: list[socket.socket] = []
        self.acts = 0

    def join(self, count: int) -> None:
        """Open streams at the same time, and wait until each is open."""
        asked = []
        for _ in range(count):
            room, reader = self.chance.choice(ROOMS), self.chance.choice(READERS)
            page = self.chance.choice(("", f"page-{self.chance.randrange(60):04}"))
            asked.append((self._ask("stream", room, reader, page), room, reader, page))
        for sock, room, reader, page in asked:
            data = b""
            while b"sse.open" not in data:
                received = sock.recv(65536)
                assert received, data
                data += received
            worker = int(data.partition(b"X-Worker: ")[2].partition(b"\r\n")[0])
            self.streams.append(Connection(sock, room, reader, page, worker))
        self.acts += count

    def leave(self, count: int) -> None:
        for _ in range(min(count, len(self.streams))):
            self.streams.pop(self.chance.randrange(len(self.streams))).sock.close()
            self.acts += 1

    def poll(self, count: int) -> None:
        for _ in range(count):
            page = self.chance.choice(("", f"page-{self.chance.randrange(60):04}"))
            self.polls.append(self._ask("poll", self.chance.choice(ROOMS), self.chance.choice(READERS), page))
            self.acts += 2

    def cut(self, worker: int) -> None:
        """Forget the connections of a worker that is gone."""
        for connection in [connection for connection in self.streams if connection.worker == worker]:
            self.streams.remove(connection)
            connection.sock.close()

    def close(self) -> None:
        for sock in [*self.polls, *(connection.sock for connection in self.streams)]:
            sock.close()
        self.streams, self.polls = [], []

    def model(self, room: str) -> dict[str, object]:
        """Return what the service should answer."""
        there = [connection for connection in self.streams if connection.room == room]
        sums = Counter(connection.reader for connection in there if not connection.client)
        sums.update(reader for reader, _ in {(one.reader, one.client) for one in there if one.client})
        members = [{"sub": reader, "connections": sums[reader]} for reader in sorted(sums) if reader]
        return {"count": sums.total(), "members": members, "more": False}

    def is_told(self) -> bool:
        """Return whether the service, asked four times, answers as the model for each room."""
        return all(presence(self.server, room) == self.model(room) for room in ROOMS for _ in range(4))

    def _ask(self, path: str, room: str, reader: str, page: str) -> socket.socket:
        query = f"channel=room/{room}&timeout=3" + f"&reader={reader}" * bool(reader) + f"&client={page}" * bool(page)
        sock = socket.create_connection(address(self.server.url), 10)
        sock.sendall(f"GET /sse/{path}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return sock


def presence(server: Gunicorn, room: str) -> dict[str, object]:
    answer = client.request(server.url, "GET", f"/sse/presence/room/{room}", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status == 200, answer
    return cast("dict[str, object]", answer.json())


def calls(server: Gunicorn) -> list[tuple[str, str, str]]:
    """Return the calls of the app's functions so far: what has happened, the room and the reader."""
    path = Path(server.env["CALLS"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [(kind, room, reader) for kind, room, reader in map(str.split, lines)]


def test_ten_thousand_joins_and_leaves_end_as_the_model_says_and_a_killed_worker_leaves_nothing(
    server: Gunicorn,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    crowd = Crowd(server, random.Random(seed))
    with contextlib.closing(crowd):
        while crowd.acts < 10_000:
            crowd.join(60)
            crowd.poll(crowd.chance.randrange(6))
            crowd.leave(crowd.chance.randrange(110) if len(crowd.streams) < 600 else 200)
        # Polls wait 3 s, and their clients count for 10 s after the answer.
        wait_until(crowd.is_told, 20, 0.5, what="presence equals the model")
        there = {(room, member["sub"]) for room in ROOMS for member in crowd.model(room)["members"]}  # type: ignore[attr-defined]
        assert len(there) > 60
        joined = Counter(call for call in calls(server) if call[0] == "joined")
        assert {(room, reader) for _, room, reader in joined} >= there

        killed = crowd.chance.choice(server.worker_pids())
        assert any(connection.worker == killed for connection in crowd.streams)
        os.kill(killed, signal.SIGKILL)
        at = time.monotonic()
        crowd.cut(killed)
        wait_until(crowd.is_told, 30, 0.5, what="the members of the killed worker are gone")
        print(f"gone after {time.monotonic() - at:.1f} s")

        crowd.close()
        wait_until(crowd.is_told, 5, 0.2, what="nobody is there")
        wait_until(
            lambda: Counter(kind for kind, _, _ in calls(server))["left"] >= len(joined), 60, 1, what="all have left"
        )
    counts = Counter(calls(server))
    assert set(counts.values()) == {1}, "each has joined once and left once"
    assert {call[1:] for call in counts if call[0] == "left"} == {call[1:] for call in counts if call[0] == "joined"}


def test_a_page_that_reconnects_to_other_workers_counts_once_and_never_leaves(server: Gunicorn) -> None:
    crowd = Crowd(server, random.Random(1))
    with contextlib.closing(crowd):
        workers: list[int] = []
        before: socket.socket | None = None
        for _ in range(24):
            if workers:
                os.kill(workers[-1], signal.SIGSTOP)  # so that another worker accepts the next connection
            try:
                sock = crowd._ask("stream", "1", "ann", "the-page-of-ann")
                worker = client_worker(sock)
            finally:
                if workers:
                    os.kill(workers[-1], signal.SIGCONT)
            workers.append(worker)
            if before:
                before.close()
            before = sock
            assert presence(server, "1")["count"] in (0, 1)
        assert all(one != other for one, other in pairwise(workers))
        wait_until(
            lambda: presence(server, "1") == {"count": 1, "members": [{"sub": "ann", "connections": 1}], "more": False}
        )
        assert before
        before.close()
        wait_until(lambda: presence(server, "1")["count"] == 0, 5)
    assert calls(server) == [("joined", "1", "ann")]


def client_worker(sock: socket.socket) -> int:
    data = b""
    while b"sse.open" not in data:
        data += sock.recv(65536)
    return int(data.partition(b"X-Worker: ")[2].partition(b"\r\n")[0])


def test_a_frozen_worker_s_members_are_gone_and_come_back_when_it_wakes_up(server: Gunicorn) -> None:
    crowd = Crowd(server, random.Random(2))
    with contextlib.closing(crowd):
        crowd.join(200)
        wait_until(crowd.is_told, 5, 0.2)
        frozen = crowd.streams[0].worker
        whole, gone = list(crowd.streams), [one for one in crowd.streams if one.worker == frozen]
        os.kill(frozen, signal.SIGSTOP)
        try:
            crowd.streams = [one for one in whole if one not in gone]
            wait_until(lambda: told_by_others(crowd), 30, 0.5, what="the members of the frozen worker are gone")
        finally:
            os.kill(frozen, signal.SIGCONT)
        crowd.streams = whole
        wait_until(crowd.is_told, 10, 0.5, what="they are there again")
    counts = Counter(calls(server))
    assert {kind for kind, _, _ in counts} == {"joined"}
    assert set(counts.values()) == {1}


def told_by_others(crowd: Crowd) -> bool:
    """Return whether the workers that answer agree with the model. A frozen one does not answer."""
    with contextlib.suppress(OSError):
        return all(quick(crowd.server, room) == crowd.model(room) for room in ROOMS)
    return False


def quick(server: Gunicorn, room: str) -> object:
    answer = client.request(
        server.url, "GET", f"/sse/presence/room/{room}", headers={"Authorization": f"Bearer {KEY}"}, timeout=1
    )
    return answer.json()


def test_a_drain_takes_the_members_of_its_worker_away_at_once(server: Gunicorn, shared_redis: RedisServer) -> None:
    crowd = Crowd(server, random.Random(3))
    with contextlib.closing(crowd):
        crowd.join(100)
        wait_until(crowd.is_told, 5, 0.2)
        server.stop(by=signal.SIGTERM, timeout=15)
        with shared_redis.client() as redis:
            assert sum(redis.zcard(f"sse:{{room/{room}}}:present:records") for room in ROOMS) == 0
            assert [redis.hget(f"sse:{{room/{room}}}:present", "#count") for room in ROOMS] == ["0"] * 4


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_under_gunicorn_s_own_workers_connections_count_too(tmp_path: Path, redis_url: str, kind: str) -> None:
    env = ENV | {"SSE_REDIS_URL": redis_url, "CALLS": str(tmp_path / "calls"), "SSE_HEARTBEAT": "3"}
    server = Gunicorn(tmp_path, APP, env, workers=2, arguments=("-k", kind, "--threads", "16")).start(timeout=60)
    crowd = Crowd(server, random.Random(4))
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        stack.callback(crowd.close)
        crowd.join(12)
        crowd.poll(2)
        wait_until(crowd.is_told, 20, 0.5, what="presence equals the model")
        crowd.leave(6)
        wait_until(crowd.is_told, 20, 0.5, what="those whose connections are dead have gone")
