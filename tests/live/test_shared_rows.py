"""Handed-off connections at the same position share a row, and each client still gets what is meant for it."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import parse_headers
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, KEY, ORIGIN, RESET_ON_CLOSE, address, inspect
from tests.publishing import publish, publish_at_once, storm
from tests.servers import Gunicorn, wait_until

SLOW = "tests.live.apps.slow:application"


@pytest.fixture
def worker(tmp_path: Path) -> Gunicorn:
    return Gunicorn(tmp_path, APP, ENV)


def subscribers(server: Gunicorn, count: int) -> None:
    wait_until(lambda: inspect(server)["subscribers"] == count, what=f"{count} subscribers")


class Connection:
    """A kept connection. Requests are sent at once, and answers are read when the test wants them."""

    def __init__(self, server: Gunicorn) -> None:
        self.sock = socket.create_connection(address(server.url), 10)
        self._file = self.sock.makefile("rb")  # one for all answers: it may hold a part of the next

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, rudely: bool = False) -> None:
        if rudely:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._file.close()
        self.sock.close()

    def ask(self, path: str, *lines: str, version: str = "1.1", body: str = "") -> None:
        head = "".join(f"{line}\r\n" for line in ("Host: localhost", *lines))
        self.sock.sendall(f"GET {path} HTTP/{version}\r\n{head}\r\n{body}".encode())

    def poll(self, place: str, *lines: str, timeout: int = 20, query: str = "", **options: Any) -> None:
        names = "&".join(f"channel={entry.partition('=')[0]}" for entry in place.split("~"))
        self.ask(f"/sse/poll?{names}&timeout={timeout}&last_event_id={place}{query}", *lines, **options)

    def answer(self, timeout: float = 10) -> client.Answer:
        self.sock.settimeout(timeout)
        status = int(self._file.readline().split()[1])
        headers = parse_headers(self._file)
        return client.Answer(status, headers, self._file.read(int(headers["Content-Length"])))

    def is_closed(self, timeout: float = 5) -> bool:
        self.sock.settimeout(timeout)
        return self._file.read(1) == b""


def told(answer: client.Answer) -> list[str]:
    assert answer.status == 200
    return [event["data"] for event in answer.json()["events"]]


class Listener:
    """A stream that one thread reads with many others. It records when its bytes came."""

    def __init__(self, server: Gunicorn, query: str, *, version: str = "1.1", channels: str = "") -> None:
        self.query, self.version = query, version
        self.channels = channels
        self.raw = b""
        self.came: list[tuple[float, bytes]] = []
        self.ended = 0.0
        self.sock = socket.create_connection(address(server.url), 10)
        self.sock.sendall(f"GET /sse/stream?{query} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        self.sock.setblocking(False)
        self.began = time.monotonic()

    def body(self) -> bytes:
        """Return the body, after a check of its chunks, and of its end if it has ended."""
        head, _, rest = self.raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/%b 200 " % self.version.encode())
        assert (b"\r\nTransfer-Encoding: chunked" in head) == (self.version == "1.1")
        if self.version == "1.0":
            return rest
        body = b""
        while rest:
            size, found, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            assert found
            assert rest[length : length + 2] == b"\r\n", "a chunk is cut short"
            body, rest = body + rest[:length], rest[length + 2 :]
            if not length:
                assert self.ended
                assert not rest
                return body
        assert not self.ended, "no last chunk"
        return body

    def events(self) -> list[client.Event]:
        body = self.body()
        assert body.endswith(b"\n\n")
        return client.Parser().feed(body)


def read(listeners: list[Listener], enough: Callable[[], bool], timeout: float = 20) -> None:
    """Read from all of them until there is enough."""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for one in listeners:
            if not one.ended:
                selector.register(one.sock, selectors.EVENT_READ, one)
        while not enough():
            assert time.monotonic() < deadline, "not in time"
            for key, _ in selector.select(0.05):
                one, now = key.data, time.monotonic()
                data = one.sock.recv(1 << 20)
                one.raw += data
                one.came.append((now, data))
                if not data:
                    one.ended = now
                    selector.unregister(one.sock)
                    one.sock.close()


def all_have(listeners: list[Listener], what: bytes, count: int = 1) -> Callable[[], bool]:
    return lambda: all(one.raw.count(what) >= count for one in listeners)


# Streams


@pytest.mark.parametrize(("store_url", "back"), [("redis", "stream"), ("memory", "poll")], indirect=["store_url"])
def test_a_connection_that_is_cut_after_any_byte_loses_nothing_amid_a_row_of_others(
    tmp_path: Path, back: str, store_url: str | None
) -> None:
    environment = ENV | {"SSE_RING": "4", "SSE_STREAM_LIFETIME": "500", "SSE_REDIS_URL": store_url or ""}
    with Gunicorn(tmp_path, APP, environment) as server, contextlib.ExitStack() as stack:
        a = publish(server, "a", *range(3))
        b = publish(server, "b", *range(8))
        (c,) = publish(server, "c", 0)
        names = [("channel", name) for name in "abc"]
        others = [Listener(server, "channel=a&channel=b&channel=c") for _ in range(20)]
        for one in others:
            stack.callback(one.sock.close)
        read(others, all_have(others, b"event: sse.heartbeat"))
        place = f"{a[0]}~{b[0]}~{c}"
        query = [*names, ("last_event_id", place)]
        with Stream(server.url, query) as whole:
            whole.take(2)
        assert len(whole.received) > 500
        heard: list[tuple[str, str]] = []

        def hear(event: client.Event) -> None:
            if event.event in ("message", "sse.reset"):
                heard.append((event.event, event.id.partition("~")[0]))

        with storm(server.url, ["elsewhere"], 0.01):
            for cut_at in range(1, len(whole.received) + 1):
                heard.clear()
                with Stream(server.url, query, limit=cut_at) as stream:
                    if cut_at % 3 == 0:
                        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    for event in stream.events():
                        hear(event)
                held = stream.last_event_id
                if back == "stream":
                    with Stream(server.url, query, last_event_id=held) as again:
                        for event in again.events():
                            hear(event)
                            if len(heard) >= 3 and event.event != "sse.reset":
                                break
                else:
                    answer = client.poll(server.url, "abc", held or place, timeout=0).json()
                    heard += [("sse.reset", b[-1]) for _ in answer["resets"]]
                    heard += [("message", event["id"]) for event in answer["events"]]
                assert heard == [("sse.reset", b[-1]), ("message", a[1]), ("message", a[2])], (cut_at, held)
        wait_until(lambda: inspect(server)["subscribers"] == 20)
        last = [publish(server, name, "live")[0] for name in "abc"]
        read(others, all_have(others, b"data: live", 3))
        for one in others:
            ids = [event.id.partition("~")[0] for event in one.events() if event.event == "message"]
            assert sorted(ids) == last


def test_streams_that_ask_for_different_things_each_get_what_they_asked_for(tmp_path: Path) -> None:
    beats = (3, 4)
    quiet = 8.5
    with Gunicorn(tmp_path, APP, ENV | {"SSE_HEARTBEAT": "4"}) as server, contextlib.ExitStack() as stack:
        publish(server, "a", "before")
        publish(server, "b", "before")
        listeners = [
            Listener(server, f"heartbeat={beat}{ids}{types}{channels}", version=version, channels=channels)
            for beat, ids, types, channels, version in itertools.product(
                beats,
                ("", "&ids=delta"),
                ("", "&types=data"),
                ("&channel=a", "&channel=a&channel=b", "&channel=b&channel=a"),
                ("1.1", "1.0"),
            )
            for _ in range(5)
        ]
        for one in listeners:
            stack.callback(one.sock.close)
        assert len(listeners) > 200
        read(listeners, all_have(listeners, b"event: sse.heartbeat"))
        sent: dict[str, list[str]] = {"a": [], "b": []}
        for number in range(20):
            for name in "ab":
                answer = client.publish(server.url, name, f"{number}\nmore", key=KEY, type="note")
                sent[name] += answer.json()["ids"]
        begun = time.monotonic()
        read(listeners, lambda: time.monotonic() > begun + quiet)
        for one in listeners:
            opening, first, *events = one.events()
            beat = opening.json()["heartbeat"]
            assert f"heartbeat={beat}" in one.query
            assert first.event == "sse.heartbeat"
            names = one.channels.replace("&channel=", "")
            told = [event for event in events if event.event != "sse.heartbeat"]
            for name in names:
                mine = [event for event in told if event.own_id and event.own_id.startswith(f"{name}=")]
                assert [event.own_id.partition("~")[0] for event in mine if event.own_id] == sent[name]
                assert [event.data for event in mine] == [
                    f"note\n{number}\nmore" if "types=data" in one.query else f"{number}\nmore" for number in range(20)
                ]
            assert len(told) == 20 * len(names)
            kind = "sse.event" if "types=data" in one.query else "note"
            assert {event.event for event in told} == {kind}
            width = 1 if "ids=delta" in one.query else len(names)
            assert all(event.own_id and event.own_id.count("=") == width for event in told)
            moments = [now for now, data in one.came if now > begun and b"event: sse.heartbeat" in data]
            assert len(moments) == int(quiet / beat), (beat, moments)
            spoke = max(now for now, data in one.came if b"event: note" in data or b"event: sse.event" in data)
            for before, now in itertools.pairwise([spoke, *moments]):
                assert beat - 0.3 < now - before < beat + 0.6, (beat, now - before)


def test_lifetimes_end_each_by_itself_with_a_goodbye_and_a_whole_body(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_STREAM_LIFETIME": "5"}) as server, contextlib.ExitStack() as stack:
        listeners = [Listener(server, "channel=a", version=("1.1", "1.0")[number % 2]) for number in range(100)]
        for one in listeners:
            stack.callback(one.sock.close)
        with storm(server.url, ["a"], 0.02) as publisher:
            read(listeners, lambda: all(one.ended for one in listeners), 15)
        ages = sorted(one.ended - one.began for one in listeners)
        assert 3.9 < ages[0] < 5  # 5 s, give or take a fifth
        assert 5.4 < ages[-1] < 9  # on a busy machine a little later
        counts = []
        for one in listeners:
            events = one.events()
            assert events[-1].json()["reason"] == "lifetime"
            numbers = [int(event.data or "") for event in events if event.event == "message"]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            counts.append(len(numbers))
        assert 20 < min(counts) < max(counts) <= publisher.count  # the last one may end with the storm
        wait_until(lambda: inspect(server)["subscribers"] == 0)


def test_fast_slow_and_deaf_readers_of_one_row_each_get_everything_once_and_in_order(
    tmp_path: Path, redis_url: str
) -> None:
    """Of much more than the hub keeps, so that those who were deaf are told the rest from the store."""
    count, size = 45, 30_000
    with Gunicorn(tmp_path, APP, ENV | {"SSE_REDIS_URL": redis_url}) as server:
        ready = threading.Barrier(13)

        def listen(manner: str) -> list[str]:
            with Stream(server.url, {"channel": "a"}) as stream:
                if manner != "fast":
                    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                stream.until("sse.heartbeat")
                ready.wait(10)
                if manner == "deaf":
                    time.sleep(2)
                heard = []
                for event in stream.events(30):
                    if event.event == "message":
                        assert event.data is not None
                        heard.append(event.id)
                        assert len(event.data) == size or event.data == "the last"
                        if event.data == "the last":
                            return heard
                    if manner == "slow":
                        time.sleep(0.03)
                raise AssertionError(f"ended after {len(heard)}: {stream.received[-200:]!r}")

        with ThreadPoolExecutor(12) as pool:
            readers = [pool.submit(listen, manner) for manner in ("fast", "slow", "deaf") * 4]
            ready.wait(10)
            ids = publish(server, "a", *["x" * size] * count, "the last")
            for reader in readers:
                assert reader.result(40) == ids
        wait_until(lambda: inspect(server)["subscribers"] == 0)


@pytest.mark.long
def test_one_that_is_deaf_for_too_long_is_cut_and_one_that_takes_a_little_is_not(worker: Gunicorn) -> None:
    with worker:
        deaf, little = (Stream(worker.url, {"channel": "a"}) for _ in range(2))
        with deaf, little:
            for one in (deaf, little):
                one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                one.until("sse.heartbeat")
            ids = publish(worker, "a", *["x" * 30_000] * 60)
            begun = time.monotonic()
            while time.monotonic() - begun < 30:
                time.sleep(5)
                taken = len(little._raw)
                while len(little._raw) < taken + 65_536:
                    little._receive(time.monotonic() + 5)
            assert inspect(worker)["subscribers"] == 1
            assert [event.id for event in little.take(60, 20)] == ids
            heard = [event.id for event in deaf.events() if event.event == "message"]
            assert heard == ids[: len(heard)]
            assert not deaf.complete


def test_a_long_replay_from_the_store_comes_at_once_and_not_by_the_heartbeat(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_HEARTBEAT": "15"}) as server:
        for _ in range(10):
            ids = publish_at_once(server, "a", *["x" * 20_000] * 20)  # 4 MB, of which the hub keeps 1 MiB
        with Stream(server.url, {"channel": "a", "replay": 200}) as stream:
            events = stream.take(200, 8)
        assert [event.id for event in events[-20:]] == ids


def test_a_heartbeat_is_no_later_for_one_that_joins_a_row_that_the_store_held_up(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, SLOW, ENV) as server, contextlib.ExitStack() as stack:
        listeners = [Listener(server, "channel=a&ids=delta")]
        stack.callback(listeners[0].sock.close)
        read(listeners, all_have(listeners, b"event: sse.heartbeat"))
        assert client.request(server.url, "GET", "/hold", {"seconds": 2}).status == 200
        publish_at_once(server, "a", *["x" * 30_000] * 12)  # just more than the hub keeps
        listeners.append(Listener(server, "channel=a&ids=delta"))
        stack.callback(listeners[1].sock.close)
        begun = time.monotonic()
        read(listeners, lambda: time.monotonic() > begun + 7)
        assert listeners[0].raw.count(b"\ndata: x") == 12
        moments = [now for now, data in listeners[1].came if b"event: sse.heartbeat" in data]
        gaps = [now - before for before, now in itertools.pairwise(moments)]
        assert len(gaps) >= 2
        assert max(gaps) < 3.6, gaps


def churn(server: Gunicorn, rng: random.Random, count: int, at_once: int = 60) -> int:
    """Open and cut so many streams, and return how many events they received, each of its own channel."""
    channels = [f"own/{number}" for number in range(10)]
    opened = heard = 0
    with selectors.DefaultSelector() as selector, storm(server.url, channels, 0.002):
        while opened < count or selector.get_map():
            while opened < count and len(selector.get_map()) < at_once:
                channel = rng.choice(channels)
                sock = socket.create_connection(address(server.url), 10)
                sock.sendall(f"GET /sse/stream?channel={channel} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, [channel.encode(), b""])
                opened += 1
            for key, _ in selector.select(0.05):
                sock, held = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                data = sock.recv(65536)
                assert data, "nobody ends these"
                held[1] += data
                *blocks, held[1] = held[1].split(b"\n\n")
                for block in blocks:
                    ids = [line for line in block.splitlines() if line.startswith(b"id: ")]
                    assert all(line.startswith(b"id: %b=" % held[0]) for line in ids), (held[0], block)
                    heard += len(ids)
                how = rng.choice(("close", "reset", "half", "stay", "stay"))
                if how == "stay":
                    continue
                selector.unregister(sock)
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                elif how == "half":
                    sock.shutdown(socket.SHUT_WR)
                sock.close()
    return heard


def resident(server: Gunicorn) -> int:
    """Return the worker's memory in MiB."""
    (pid,) = server.worker_pids()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.long)])
def test_amid_rude_comings_and_goings_each_gets_its_own_bytes_only_and_nothing_is_left(
    worker: Gunicorn, count: int, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(pytestconfig.getoption("hypothesis_seed"))
    with worker:
        churn(worker, rng, 500)
        subscribers(worker, 0)
        base, memory = inspect(worker)["fds"], resident(worker)
        begun = time.monotonic()
        heard = churn(worker, rng, count)
        print(
            f"{count} streams in {time.monotonic() - begun:.0f} s, {heard} events, {memory} -> {resident(worker)} MiB"
        )
        assert heard > count
        subscribers(worker, 0)
        wait_until(lambda: inspect(worker)["fds"] <= base + 2, 15, 0.2, "the files are closed")
        assert resident(worker) < memory + 40


# Held polls


def test_the_body_of_a_poll_s_request_is_never_taken_for_the_next_request(worker: Gunicorn) -> None:
    inner = "GET /sse/poll?channel=inner&timeout=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
    with worker:
        (place,) = publish(worker, "a", "first")
        for line, body in ((f"Content-Length: {len(inner)}", inner), ("Transfer-Encoding: chunked", chunked)):
            with Connection(worker) as one:
                one.poll(place, line)
                time.sleep(0.1)
                one.sock.sendall(body.encode())
                subscribers(worker, 1)
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


def park(
    server: Gunicorn, stack: contextlib.ExitStack, count: int, place: str, *lines: str, **options: Any
) -> list[Connection]:
    """Return so many polls that wait."""
    before = inspect(server)["subscribers"]
    connections = [stack.enter_context(Connection(server)) for _ in range(count)]
    for one in connections:
        one.poll(place, *lines, **options)
    subscribers(server, before + count)
    return connections


def test_polls_parked_at_the_same_position_are_answered_together_and_their_connections_go_on(worker: Gunicorn) -> None:
    with worker, contextlib.ExitStack() as stack:
        (place,) = publish(worker, "a", "before")
        base = inspect(worker)["greenlets"]
        parked = park(worker, stack, 300, place)
        wait_until(lambda: inspect(worker)["greenlets"] <= base + 3, 10, what="polls without a greenlet")
        for number, one in enumerate(parked):
            if number % 3 == 0:  # behind its poll, and answered after it
                one.ask("/sse/poll?channel=next&timeout=0")
        time.sleep(0.2)
        subscribers(worker, 300)
        (place,) = publish(worker, "a", "after")
        answers = {one.answer().body for one in parked}
        assert len(answers) == 1
        assert json.loads(answers.pop())["events"] == [
            {"channel": "a", "id": place, "type": "message", "data": "after"}
        ]
        for number, one in enumerate(parked):
            if number % 3 == 1:
                one.poll(place)
            elif number % 3 == 2:
                one.ask("/sse/poll?channel=next&timeout=0")
            if number % 3 != 1:
                assert one.answer().json()["last_event_id"] == "next=0-0"
        subscribers(worker, 100)
        publish(worker, "a", "again")
        for one in parked[1::3]:
            assert told(one.answer()) == ["again"]
        subscribers(worker, 0)


def test_each_poll_gets_the_head_that_it_asked_for(worker: Gunicorn) -> None:
    with worker, contextlib.ExitStack() as stack:
        (place,) = publish(worker, "a", "before")
        plain = park(worker, stack, 5, place)
        named = park(worker, stack, 5, place, f"Origin: {ORIGIN}")
        other = park(worker, stack, 5, place, "Origin: https://other.example")
        closing = park(worker, stack, 5, place, "Connection: close")
        old = park(worker, stack, 5, place, version="1.0")
        publish(worker, "a", "after")
        for one in (*plain, *named, *other, *closing, *old):
            answer = one.answer()
            assert told(answer) == ["after"]
            assert int(answer.headers["Content-Length"]) == len(answer.body)
            assert "Transfer-Encoding" not in answer.headers
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert answer.headers["Access-Control-Allow-Origin"] == (ORIGIN if one in named else None)
            assert answer.headers["Connection"] == ("close" if one in closing or one in old else "keep-alive")
        for one in (*closing, *old):
            assert one.is_closed()
        for one in (*plain, *named, *other):
            one.ask("/sse/poll?channel=next&timeout=0")
            assert one.answer().status == 200


def test_a_parked_poll_that_nothing_comes_for_ends_empty_in_its_own_time(worker: Gunicorn) -> None:
    with worker, contextlib.ExitStack() as stack:
        (place,) = publish(worker, "a", "before")
        begun = time.monotonic()
        parked = [(seconds, stack.enter_context(Connection(worker))) for seconds in (1, 2) * 8]
        for seconds, one in parked:
            one.poll(place, timeout=seconds)
        for seconds, one in sorted(parked, key=lambda each: each[0]):
            answer = one.answer()
            assert seconds - 0.1 < time.monotonic() - begun < seconds + 0.8
            assert told(answer) == []
            assert answer.json()["last_event_id"] == place
        subscribers(worker, 0)


def test_a_client_that_goes_away_while_its_poll_is_parked_is_noticed(worker: Gunicorn) -> None:
    with worker, contextlib.ExitStack() as stack:
        (place,) = publish(worker, "a", "before")
        fds = inspect(worker)["fds"]
        parked = park(worker, stack, 30, place)
        for number, one in enumerate(parked[:20]):
            one.close(rudely=number % 2 == 0)
        subscribers(worker, 10)
        publish(worker, "a", "after")
        for one in parked[20:]:
            assert told(one.answer()) == ["after"]
            one.close()
        subscribers(worker, 0)
        wait_until(lambda: inspect(worker)["fds"] <= fds + 1, 5, what="the files are closed")


def test_polls_that_go_from_answer_to_answer_in_a_storm_get_each_event_once(worker: Gunicorn) -> None:
    with worker, contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        (place,) = publish(worker, "a", "start")
        connections = [stack.enter_context(Connection(worker)) for _ in range(8)]
        done = threading.Event()

        def follow(one: Connection) -> list[str]:
            heard, at = list[str](), place
            while not done.is_set() or not heard or heard[-1] != "end":
                one.poll(at, timeout=5)
                answer = one.answer()
                heard += told(answer)
                at = answer.json()["last_event_id"]
            return heard

        followers = [pool.submit(follow, one) for one in connections]
        with storm(worker.url, ["a"], 0.004) as publisher:
            time.sleep(3)
        publish(worker, "a", "end")
        done.set()
        for follower in followers:
            assert follower.result(20) == [*map(str, range(publisher.count)), "end"]
        assert publisher.count > 100


# The end of the process


def ended(server: Gunicorn, timeout: float = 8) -> float:
    """Wait until the server's process has ended, and return how many seconds that took."""
    assert server.process
    begun = time.monotonic()
    server.process.wait(timeout)
    server.process = None
    return time.monotonic() - begun


@pytest.mark.parametrize("seconds", [0, 2])
def test_at_sigterm_streams_and_polls_are_told_spread_over_the_drain(tmp_path: Path, seconds: int) -> None:
    with (
        Gunicorn(tmp_path, APP, ENV | {"SSE_DRAIN": str(seconds)}) as server,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(50) as pool,
    ):
        (place,) = publish(server, "a", "before")
        listeners = [Listener(server, f"channel=a&heartbeat={3 + number % 3}") for number in range(200)]
        for one in listeners:
            stack.callback(one.sock.close)
        read(listeners, all_have(listeners, b"event: sse.heartbeat"))
        subscribers(server, 200)
        polls = [pool.submit(one.answer) for one in park(server, stack, 50, place)]
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        read(listeners, lambda: all(one.ended for one in listeners), 6)
        for one in listeners:
            assert one.events()[-1].json()["reason"] == "drain"
        for poll in polls:
            answer = poll.result(5)
            assert told(answer) == []
            assert answer.json()["last_event_id"] == place
            assert answer.headers["Connection"] == "close"
        moments = sorted(one.ended - begun for one in listeners)
        assert moments[-1] < seconds + 1.5
        if seconds:
            assert moments[20] < 1
            assert moments[180] > 1
        ended(server)
        assert "graceful timeout" not in server.logs()


def test_a_drain_takes_its_time_and_no_more_however_many_there_are(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_DRAIN": "1"}) as server, contextlib.ExitStack() as stack:
        listeners = []
        for _ in range(5):
            listeners += [Listener(server, "channel=a") for _ in range(500)]
            read(listeners, all_have(listeners, b"event: sse.heartbeat"))
        for one in listeners:
            stack.callback(one.sock.close)
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        read(listeners, lambda: all(one.ended for one in listeners), 8)
        assert [one for one in listeners if b'"reason":"drain"' not in one.raw] == []
        ended(server)


def test_at_sigterm_idle_connections_are_closed_without_a_word_in_the_log(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, SLOW, ENV) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Connection(server)) for _ in range(5)]
        for one in idle:
            one.ask("/healthz")
            assert one.answer().status == 200
        idle += park(server, stack, 5, publish(server, "a", "before")[0])
        publish(server, "a", "after")
        for one in idle[5:]:
            assert told(one.answer()) == ["after"]
        served, handed_back = idle[4], idle[5]
        for one in (served, handed_back):
            one.ask("/slow?seconds=1")
        time.sleep(0.2)
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        for one in idle:
            if one not in (served, handed_back):
                assert one.is_closed(2)
        for one in (served, handed_back):
            assert one.answer().body == b"done"
        ended(server)
        assert "Traceback" not in server.logs()
