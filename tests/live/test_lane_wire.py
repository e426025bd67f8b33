"""The fast lane on the wire: each request gets its own answer, in order, and nothing is left of clients that go.

Each test runs with the lane and without it, because both have to answer alike.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import client
from tests.live.conversation import SMUGGLED, Conversation, Request, converse, pieces, read_answer
from tests.live.load import APP, KEY, RESET_ON_CLOSE, address, has_whole_lane, inspect
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until
from tests.tokens import SECRET, claims, signed

# So many that they never refuse, and still each request is counted in Redis, if there is one.
MANY = "1000000/minute"
ENV = {"SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": KEY, "SSE_HEARTBEAT": "3"}
ENV |= {"SSE_LIMIT_SUBSCRIBE": MANY, "SSE_LIMIT_PUBLISH": MANY, "SSE_LIMIT_NEW_CHANNELS": MANY, "SSE_LOG_RATE": "0"}
NO_LIMITS = {"rate=50r/s": "rate=10000r/s", "rate=500r/s": "rate=10000r/s"}
WAYS = ("close", "reset", "half")


@pytest.fixture(scope="module", params=["on", "off"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with Gunicorn(tmp_path_factory.mktemp("wire"), APP, ENV | {"SSE_LANE": request.param}) as server:
        assert has_whole_lane(server) == has_lane(server)
        yield server
        assert is_clean(server)


def has_lane(server: Gunicorn) -> bool:
    return server.environment()["SSE_LANE"] == "on"


def is_clean(server: Gunicorn) -> bool:
    """Hold that no request was found in a body, and that nothing went wrong."""
    token = signed(claims(subscribe=["*"]))
    headers = {"Authorization": f"Bearer {token}"}
    answer = client.poll(server.url, [SMUGGLED], headers=headers, replay=100, timeout=0)
    assert answer.json()["events"] == []
    assert "Traceback" not in server.log.read_text(errors="replace")
    return True


def connections(server: Gunicorn) -> int:
    """Return how many connections of clients the worker holds."""
    (pid,) = server.worker_pids()
    port = f":{int(server.bind.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(port) and row[3] != "0A"}  # 0A listens
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return sum(f"socket:[{inode}]" in links for inode in inodes)


def nothing_is_left(server: Gunicorn) -> None:
    """Wait until the worker holds nothing of the clients that have gone."""
    wait_until(lambda: connections(server) == 0, 15, what="the connections are closed")
    for name, most in (("subscribers", 0), ("rows", 0), ("held", 0), ("greenlets", 8)):  # the hub has a few
        wait_until(lambda name=name, most=most: inspect(server)[name] <= most, 15, 0.1, f"{name} are {most} at most")


def leave(sock: socket.socket, how: str) -> None:
    with contextlib.suppress(OSError):
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        elif how == "half":
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(1)
            while sock.recv(65_536):
                pass
    sock.close()


def converse_a_while(url: str, seed: float, name: str) -> None:
    rng = random.Random(seed)
    conversation = Conversation(rng, name)
    for _ in range(4):
        with client.connect(url) as sock:
            converse(sock, conversation, rng.randrange(4, 12), rng)
            if rng.random() < 0.3:
                leave(sock, rng.choice(WAYS))


def vanish_often(url: str, seed: float, name: str) -> None:
    """Go in the middle of a conversation, again and again, wherever that is."""
    rng = random.Random(seed)
    conversation = Conversation(rng, name)
    for _ in range(25):
        newest = client.publish(url, name, "newest", key=KEY).json()["ids"][0]
        held = conversation.hold(newest).sent
        data = b"".join(request.sent for request in conversation.requests(3))
        data = rng.choice([data, held, held + data, data + held])
        with client.connect(url) as sock, contextlib.suppress(OSError):
            for piece in pieces(data[: rng.choice([len(data), rng.randrange(len(data) + 1)])], rng):
                sock.sendall(piece)
                time.sleep(rng.choice([0, 0, 0.003, 0.03]))
            if rng.random() < 0.3:
                sock.settimeout(0.2)
                sock.recv(100)
            leave(sock, rng.choice(WAYS))


def storm(url: str, seed: int, name: str) -> None:
    """Have clients that stay and clients that vanish, all at the same time. Their names begin with `name`."""
    with ThreadPoolExecutor(14) as threads:
        staying = [threads.submit(converse_a_while, url, seed + n, f"{name}stays{n}") for n in range(10)]
        going = [threads.submit(vanish_often, url, seed - 1 - n, f"{name}goes{n}") for n in range(4)]
        for one in (*staying, *going):
            one.result(120)


def test_each_request_gets_its_own_answer_while_others_vanish(server: Gunicorn, request: pytest.FixtureRequest) -> None:
    storm(server.url, int(request.config.option.hypothesis_seed), "direct")
    nothing_is_left(server)


@pytest.mark.parametrize("lane", ["on", "off"])
def test_each_request_gets_its_own_answer_while_redis_is_slow(
    lane: str, tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    """Each request waits for Redis now and then, so others are served in its middle, and numbers are used again."""
    env = ENV | {"SSE_LANE": lane, "SSE_REDIS_URL": redis_server.url}
    with Gunicorn(tmp_path, APP, env) as server, ThreadPoolExecutor(1) as threads, redis_server.client() as redis:
        done = threads.submit(storm, server.url, int(request.config.option.hypothesis_seed), "slow")
        for _ in range(1000):
            if done.done():
                break
            redis.client_pause(60)
            time.sleep(0.15)
        done.result(1)
        nothing_is_left(server)
        assert is_clean(server)


def test_each_request_gets_its_own_answer_while_the_lane_goes_off_and_on(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = ENV | {"SSE_LANE": "on"}
    with (
        Gunicorn(tmp_path, "tests.live.apps.changing:application", env) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        done = threads.submit(storm, server.url, int(request.config.option.hypothesis_seed), "changing")
        for number in range(1000):
            if done.done():
                break
            assert client.request(server.url, "POST", "/change").status == 200
            time.sleep((0.01, 0.05, 0.15)[number % 3])
        done.result(1)
        nothing_is_left(server)
        assert is_clean(server)
        if has_lane(server):
            assert "fast lane: on from now on" in server.logs()


def test_each_request_gets_its_own_answer_behind_nginx(
    server: Gunicorn, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with Nginx(tmp_path, server.bind, NO_LIMITS) as nginx:
        storm(nginx.url, int(request.config.option.hypothesis_seed), "proxied")
    nothing_is_left(server)


def publish_until(stop: threading.Event, url: str, seed: float, name: str) -> list[str]:
    """Publish, on a new connection whenever one is closed. Return the events that the server says it has stored."""
    rng = random.Random(seed)
    talk = Conversation(rng, name)
    stored: list[str] = []
    while not stop.is_set():
        with contextlib.suppress(ConnectionError), client.connect(url) as sock, sock.makefile("rb") as file:
            for _ in range(20):
                batch = [talk.publish() for _ in range(rng.choice([1, 1, 3]))]
                sock.sendall(b"".join(request.sent for request in batch))
                for request, event in zip(batch, talk.published[-len(batch) :], strict=True):
                    request.judge(read_answer(file, "POST"), name)
                    stored.append(event)
                time.sleep(0.01)  # so that the ring keeps all of them
        time.sleep(0.02)
    return stored


@pytest.mark.parametrize("lane", ["on", "off"])
def test_what_is_said_to_be_stored_is_stored_once_and_in_order_when_workers_end(
    lane: str, tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.option.hypothesis_seed)
    env = ENV | {"SSE_LANE": lane, "SSE_REDIS_URL": redis_server.url, "SSE_RING": "10000"}
    stop = threading.Event()
    with Gunicorn(tmp_path, APP, env, workers=2) as server, ThreadPoolExecutor(8) as threads:
        told = {f"until{n}": threads.submit(publish_until, stop, server.url, seed + n, f"until{n}") for n in range(6)}
        before = set(server.worker_pids())
        time.sleep(0.3)
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: not before & set(server.worker_pids()), 30, what="the workers are replaced")
        time.sleep(0.3)
        server.stop(20, signal.SIGTERM)
        stop.set()
        said = {name: one.result(30) for name, one in told.items()}
        assert "Traceback" not in server.log.read_text(errors="replace")
        assert " cut" not in server.logs()
        server.start()
        for name, events in said.items():
            texts = [text.partition(".")[0] + "." for text in stored(server, name)]
            assert len(events) > 10
            assert len(set(texts)) == len(texts)
            assert [text for text in texts if text in set(events)] == events


def test_the_lane_answers_plain_requests_and_flask_the_others(server: Gunicorn) -> None:
    """A hook of the app names the worker in what Flask answers. SSE_LANE=on declares that it does not matter here."""
    stages = Stages(server, "who")
    by_flask = {}
    with client.connect(server.url) as sock, sock.makefile("rb") as file:
        for name, data in (
            ("poll", stages.poll),
            ("publish", stages.publish()),
            ("in chunks", stages.publish("chunks")),
            ("HEAD", stages.poll.replace(b"GET", b"HEAD")),
            ("other", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"),
        ):
            sock.sendall(data)
            by_flask[name] = "X-Worker" in read_answer(file, "HEAD" if name == "HEAD" else "GET").headers
    on = has_lane(server)
    assert by_flask == {"poll": not on, "publish": not on, "in chunks": not on, "HEAD": True, "other": True}


def examples(name: str) -> dict[str, list[Request]]:
    talk = Conversation(random.Random(1), name)
    return {
        "a poll": [talk.poll("plain")],
        "a publish": [talk.publish("plain")],
        "two publishes and a poll": [talk.publish("plain"), talk.publish("json"), talk.poll("plain")],
        "to gunicorn and back": [
            talk.publish("plain"),
            talk.poll("doubled"),
            talk.publish("chunks"),
            talk.poll("plain"),
        ],
    }


def cuts(data: bytes) -> list[int]:
    """Return the places at which requests are cut: around each border, and every so often in what is of one kind."""
    borders = [match.start() for match in re.finditer(rb"[ :?/=&]|\r\n", data)]
    near = {place + beside for place in borders for beside in (-1, 0, 1, 2)}
    places = sorted({place for place in (*near, *range(0, len(data), 29), len(data)) if 0 <= place <= len(data)})
    return places[:: 1 + len(places) // 250]


@pytest.mark.parametrize("pause", [0, 0.12])
@pytest.mark.parametrize("kind", ["a poll", "a publish", "two publishes and a poll", "to gunicorn and back"])
def test_requests_may_come_in_two_parts_wherever_they_are_cut(server: Gunicorn, kind: str, pause: float) -> None:
    with contextlib.ExitStack() as stack:
        parts = []
        for cut in cuts(b"".join(request.sent for request in examples("cut0")[kind])):
            name = f"cut{'x' if pause else ''}{cut}"
            requests = examples(name)[kind]
            data = b"".join(request.sent for request in requests)
            sock = stack.enter_context(client.connect(server.url, 30))
            parts.append((sock, data[:cut], data[cut:], name, requests))
        for sock, first, *_ in parts:
            sock.sendall(first)
        time.sleep(pause)
        for sock, _, second, *_ in parts:
            sock.sendall(second)
        for sock, _, _, name, requests in parts:
            with sock.makefile("rb") as file:
                for request in requests:
                    request.judge(read_answer(file, request.method), name)
    nothing_is_left(server)


def stored(server: Gunicorn, channel: str) -> list[str]:
    """Return the events of a channel."""
    token = signed(claims(subscribe=[channel]))
    headers = {"Authorization": f"Bearer {token}"}
    answer = client.poll(server.url, [channel], headers=headers, replay=10_000, timeout=0, max_bytes=1_000_000)
    return [event["data"] for event in answer.json()["events"]]


class Stages:
    """What a client may have sent when it goes. Each publish has a text of its own.

    Streams and polls that wait are on the channel `waits`, where nobody publishes.
    """

    def __init__(self, server: Gunicorn, channel: str) -> None:
        self.waits = f"{channel}/waits"
        newest = client.publish(server.url, self.waits, "before", key=KEY).json()["ids"][0]
        read = f"Host: localhost\r\nAuthorization: Bearer {signed(claims(subscribe=[channel, self.waits]))}\r\n"
        self.poll = f"GET /sse/poll?channel={channel}&timeout=0 HTTP/1.1\r\n{read}\r\n".encode()
        waiting = f"channel={self.waits}&timeout=20&last_event_id={newest}".encode()
        self.held = re.sub(rb"channel=\S+", waiting, self.poll)
        self.stream = re.sub(rb"poll\S+", b"stream?channel=" + self.waits.encode(), self.poll)
        write = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: text/plain\r\n"
        self._post = f"POST /sse/publish/{channel} HTTP/1.1\r\n{write}".encode()
        self.texts: list[str] = []

    def publish(self, way: str = "plain") -> bytes:
        text = f"text{len(self.texts):04}"
        self.texts.append(text)
        if way == "chunks":
            return self._post + f"Transfer-Encoding: chunked\r\n\r\n8\r\n{text}\r\n0\r\n\r\n".encode()
        return self._post + f"Content-Length: 8\r\n\r\n{text}".encode()

    def incomplete(self) -> list[bytes]:
        publish, chunks = self.publish(), self.publish("chunks")
        parts = [b"", b"\r\n", self.poll[:10], self.poll[:-2], publish[:-8], publish[:-4], chunks[:-6]]
        del self.texts[-2:]
        return parts

    def complete(self) -> list[tuple[bytes, list[int]]]:
        """Return requests, with the statuses of their answers if the client waits for them."""
        return [
            (self.poll, [200]),
            (self.publish(), [201]),
            (self.publish("chunks"), [201]),
            (self.publish() + self.poll[:30], [201]),
            (self.publish() + self.publish() + self.poll, [201, 201, 200]),
            (self.publish() + self.publish("chunks") + self.publish(), [201, 201, 201]),
        ]

    def waiting(self) -> list[bytes]:
        """Return requests that wait, some with another request behind, which is never answered."""
        return [self.held, self.stream, self.held + self.poll, self.stream + self.poll, self.poll + self.held]


@pytest.mark.parametrize("when", ["at once", "later", "unseen"])
@pytest.mark.parametrize("how", WAYS)
def test_nothing_is_left_of_a_client_that_goes_at_any_stage(server: Gunicorn, how: str, when: str) -> None:
    channel = f"gone/{how}/{when.replace(' ', '-')}"
    stages = Stages(server, channel)
    (pid,) = server.worker_pids()
    with contextlib.ExitStack() as stack:
        going = [
            (stack.enter_context(client.connect(server.url)), data, statuses)
            for _ in range(4)
            for data, statuses in (
                *((data, None) for data in (*stages.incomplete(), *stages.waiting())),
                *stages.complete(),
            )
        ]
        if when == "unseen":  # the worker sees all of it, and the end, in one moment
            os.kill(pid, signal.SIGSTOP)
        try:
            for sock, data, _ in going:
                sock.sendall(data)
            if when == "later":
                time.sleep(0.4)
            for sock, _, _ in going:
                if how == "half":
                    sock.shutdown(socket.SHUT_WR)
                else:
                    leave(sock, how)
        finally:
            if when == "unseen":
                os.kill(pid, signal.SIGCONT)
        if how == "half":
            for sock, data, statuses in going:
                got = client.statuses(sock)
                if statuses is not None:
                    assert got == statuses, data
                else:
                    assert set(got) <= {200, 400}, data
    nothing_is_left(server)
    texts = stored(server, channel)
    assert len(texts) == len(set(texts))
    assert set(texts) <= set(stages.texts)
    if how == "half":
        assert set(texts) == set(stages.texts)


def test_slow_heads_hold_nobody_up_and_are_answered(server: Gunicorn) -> None:
    stages = Stages(server, "slow")
    sent = [stages.poll, stages.publish(), stages.publish("chunks")] * 60
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(client.connect(server.url)) for _ in sent]
        for start in range(0, max(map(len, sent)), 16):
            for sock, data in zip(socks, sent, strict=True):
                if start < len(data):
                    sock.sendall(data[start : start + 16])
            assert client.request(server.url, "GET", "/sse/poll?channel=slow", timeout=5).status == 401
        for number, sock in enumerate(socks):
            with sock.makefile("rb") as file:
                assert read_answer(file, "").status == (201 if number % 3 else 200)
    nothing_is_left(server)


def test_a_stream_opens_as_slowly_as_its_client_reads_and_goes_on(server: Gunicorn) -> None:
    for number in range(8):
        assert client.publish(server.url, "large", f"{number}" * 60_000, key=KEY).status == 201
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(5):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect(address(server.url))
            sock.sendall(Stages(server, "large").poll.replace(b"poll?", b"stream?").replace(b"timeout=0", b"replay=8"))
            socks.append(sock)
        wait_until(lambda: inspect(server)["subscribers"] == len(socks))
        time.sleep(0.3)
        assert client.publish(server.url, "large", "live", key=KEY).status == 201
        for sock in socks:
            data = b""
            while b"data: live\n\n" not in data:
                more = sock.recv(65_536)
                assert more, data[-300:]
                data += more
            assert [len(line) for line in re.findall(rb"\ndata: [0-7]+", re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data))] == [
                60_007
            ] * 8
    nothing_is_left(server)


def test_what_comes_behind_a_request_that_waits_is_answered_after_it_by_lane_and_gunicorn(server: Gunicorn) -> None:
    stages = Stages(server, "held")
    behind = [
        (stages.poll, 200),
        (stages.publish(), 201),
        (stages.publish("chunks"), 201),
        (b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    ]
    with contextlib.ExitStack() as stack:
        socks = []
        for one, two in itertools.product(behind, repeat=2):
            sock = stack.enter_context(client.connect(server.url))
            data = one[0] + two[0]
            socks.append((sock, data[len(data) // 2 :], [200, one[1], two[1], 404]))
            sock.sendall(stages.held + data[: len(data) // 2])
        wait_until(lambda: inspect(server)["subscribers"] == len(socks))
        assert client.publish(server.url, stages.waits, "after", key=KEY).status == 201
        for sock, rest, _ in socks:
            sock.sendall(rest + b"GET /no HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        for sock, _, statuses in socks:
            assert client.statuses(sock) == statuses
    nothing_is_left(server)


def test_an_answer_after_which_the_connection_closes_comes_whole(server: Gunicorn) -> None:
    """What has come behind the request is not read, and must not have the kernel reset the connection too early."""
    for number in range(4):
        assert client.publish(server.url, "last", f"{number}" * 30_000, key=KEY).status == 201
    stages = Stages(server, "last")
    poll = stages.poll.replace(b"timeout=0", b"timeout=0&replay=4").replace(b"Host:", b"Connection: close\r\nHost:")
    for behind in (b"", stages.poll, b"x" * 30_000):
        with client.connect(server.url) as sock:
            sock.sendall(poll + behind)
            with sock.makefile("rb") as file:
                answer = read_answer(file, "GET")
            assert answer.headers["Connection"] == "close"
            assert len(json.loads(answer.body)["events"]) == 4
            assert client.read_all(sock, may_reset=True) == b""
    nothing_is_left(server)


def test_bytes_of_requests_that_are_not_complete_are_bounded_and_others_are_served(server: Gunicorn) -> None:
    stages = Stages(server, "bounded")
    head = stages.poll[:-2] + b"X: " + b"x" * 30_000
    body = stages.publish()[:-8].replace(b"Content-Length: 8", b"Content-Length: 60000") + b"x" * 50_000
    with contextlib.ExitStack() as stack:
        most = 0
        for number in range(500):
            sock = stack.enter_context(client.connect(server.url))
            sock.sendall(head if number % 2 else body)
            if number % 50 == 49:
                most = max(most, inspect(server)["held"])
                assert client.request(server.url, "GET", "/sse/poll?channel=bounded", timeout=5).status == 401
        assert most <= 18 << 20  # 16 MB, and what one read and one body add to them
        if has_lane(server):
            assert most > 1 << 20
    nothing_is_left(server)
