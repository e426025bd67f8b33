"""The lines of the tables at the head of sse/server/lane.py, with real sockets and a lane that the tests give."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import gevent
import pytest
from gevent.pool import Group
from gunicorn.config import Config  # type: ignore[import-untyped]

from sse.hub.hub import Hub
from sse.hub.subscriber import Start
from sse.server.lane import FastLane
from sse.server.loop import Loop
from sse.stores import MemoryStore
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from sse.web.lane import Reply, Route
from tests.gevent_hubs import in_a_hub
from tests.publishing import publish_to_store

JSON: Final = (("Content-Type", "application/json"),)
BIG: Final = b"x" * 3_000_000


class Prepared(NamedTuple):
    publications: list[str]
    size: int = 10


class Site:
    """A fast lane over a real loop. Its app's lane does what the query says, and the tests are its worker."""

    def __init__(self, stack: ExitStack, places: int = 10, places_taken: int = 0) -> None:
        self.stack = stack
        self.store = MemoryStore(ring=10, ring_ttl=60)
        self.hub = Hub(self.store, max_subscribers=30)
        stack.callback(self.hub.close)
        self.log: list[str] = []
        self.given_back: list[tuple[int, bytes]] = []
        self.stored: list[list[str]] = []
        self.requests: list[str] = []
        self.is_on = True
        self.closes = False
        self.greenlets = Group()
        self.places, self.taken, self.answered = places, places_taken, 0
        loop: Any = Loop(logging.getLogger(), 75, self._give_back, lambda: self.lane.wake())
        self.rows = loop.rows
        log = SimpleNamespace(exception=self.log.append)
        self.lane = FastLane(self.rows, self, SimpleNamespace(is_free=lambda: self.is_on), self, Config(), log)
        self.lane.look()

    # As the worker

    def is_busy(self) -> bool:
        return self.taken >= self.places

    def take_place(self) -> None:
        self.taken += 1

    def leave_place(self) -> None:
        self.taken -= 1
        self.lane.wake()

    def count_request(self) -> None:
        self.answered += 1

    def _give_back(self, fd: int) -> bool:
        self.given_back.append((fd, self.rows.take(fd)))
        return True

    # As the app's lane

    def route(self, method: str, path: str) -> Route | None:
        return {"/poll": Route("poll"), "/publish": Route("publish")}.get(path)

    def request(self, environ: dict[str, Any]) -> dict[str, Any]:
        return environ

    def may_ask_app(self, _: Route, request: dict[str, Any]) -> bool:
        return request["QUERY_STRING"] == "app"

    def prepare(self, _: Route, request: dict[str, Any]) -> Any:
        return Prepared([request["wsgi.input"].read().decode()])

    def publish_each(self, calls: list[Sequence[str]]) -> list[Any]:
        gevent.sleep(0.05)
        self.stored.append([text for call in calls for text in call])
        return [[len(self.stored)] for _ in calls]

    def failed(self, _route: Route, _request: Any) -> Reply:
        return Reply("500 INTERNAL SERVER ERROR", JSON, b"failed")

    def published(self, _request: Any, prepared: Prepared, _outcome: Any) -> Reply:
        return Reply("201 CREATED", JSON, prepared.publications[0].encode())

    def reply(self, _: Route, request: dict[str, Any]) -> Reply | None:
        query = request["QUERY_STRING"]
        self.requests.append(query)
        name, _, value = query.partition("=")
        match name:
            case "wait":
                gevent.sleep(float(value))
            case "yield":
                gevent.sleep(0)
            case "fault":
                raise RuntimeError(value)
            case "die":
                raise gevent.GreenletExit
            case "flask":
                return None
            case "big":
                return Reply("200 OK", (*JSON, ("Content-Length", str(len(BIG)))), BIG)
            case "bad":
                return Reply("200 OK", (("X-Bad", "a\r\nb"),), b"")
            case "cut":
                return Reply("200 OK", JSON, b"busy", breaks_off=True)
            case "poll":
                poll = Poll(self.hub, {"a": self._start()}, timeout=20, retry=1000)
                assert poll.open() is None
                return Reply("200 OK", JSON, poll)
            case "stream" | "broken%20stream":
                stream = Stream(self.hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1000)
                if name != "stream":
                    stream.attach()
                    stream._opening = None  # so that it cannot be opened
                return Reply("200 OK", JSON, stream)
        body = query.encode()
        return Reply("200 OK", (*JSON, ("Content-Length", str(len(body)))), body)

    def _start(self) -> Start:
        self.store.ensure(["a"])
        (position,) = self.store.newest(["a"])
        return Start(position)

    # For the tests

    def connect(self, buffer: int = 0) -> Client:
        ours, peer = socket.socketpair()
        self.stack.callback(peer.close)
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        ours.setblocking(False)
        peer.setblocking(False)
        fd = ours.detach()
        return Client(self, peer, fd)


class Client:
    """A client with its connection. Its first bytes are sent before the connection is accepted."""

    def __init__(self, site: Site, peer: socket.socket, fd: int) -> None:
        self.site, self.peer, self.fd = site, peer, fd
        self.is_accepted = False
        self.got = b""

    def send(self, data: bytes) -> Client:
        self.peer.sendall(data)
        if not self.is_accepted:
            self.is_accepted = True
            self.site.rows.accept(self.fd)
        return self

    def get(self, query: str, more: bytes = b"") -> Client:
        return self.send(get(query) + more)

    def has(self, text: bytes) -> bool:
        try:
            while data := self.peer.recv(1 << 20):
                self.got += data
        except BlockingIOError:
            pass
        return text in self.got

    def until(self, text: bytes) -> bytes:
        wait_for(lambda: self.has(text))
        return self.got

    @property
    def is_closed(self) -> bool:
        try:
            while data := self.peer.recv(1 << 20):
                self.got += data
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return True


def get(query: str) -> bytes:
    return f"GET /poll?{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def post(text: str, length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    return f"POST /publish HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{text}".encode()


def wait_for(check: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        gevent.sleep(0.005)


def with_site(test: Callable[[Site], None], **options: int) -> None:
    def run() -> None:
        with ExitStack() as stack:
            site = Site(stack, **options)
            test(site)
            for fd in list(site.rows.row_of):
                site.rows.end(fd)
            gevent.sleep(0.02)
            assert site.rows.held == 0
            assert site.hub.subscribers == 0
            site.lane.stop()
            site.greenlets.kill()

    in_a_hub(run)


# Answers


def test_requests_that_come_together_are_answered_in_order_and_one_for_each_turn_of_their_connection() -> None:
    def test(site: Site) -> None:
        greedy = site.connect().send(get("1") + get("2") + get("3"))
        other = site.connect().get("other")
        greedy.until(b"3")
        assert other.until(b"other").startswith(b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\n")
        assert site.requests == ["1", "other", "2", "3"]
        assert [part[-1:] for part in greedy.got.split(b"HTTP/1.1")[1:]] == [b"1", b"2", b"3"]
        assert site.answered == 4
        greedy.get("4").until(b"4")
        assert not site.given_back

    with_site(test)


@pytest.mark.parametrize("end", ["by the client", "by the worker", "cut"])
def test_a_connection_that_is_to_close_closes_after_its_answer_and_is_not_reset(end: str) -> None:
    def test(site: Site) -> None:
        site.closes = end == "by the worker"
        asked = get("cut" if end == "cut" else "x")
        if end == "by the client":
            asked = asked.replace(b"Host", b"Connection: close\r\nHost")
        client = site.connect().send(asked + get("never answered"))
        wait_for(lambda: client.is_closed)
        assert client.got.count(b"HTTP/1.1") == 1
        if end == "cut":
            assert b"\r\nConnection: keep-alive\r\n" in client.got
            assert client.got.endswith(b"\r\n\r\n4\r\nbusy\r\n")
        else:
            assert b"\r\nConnection: close\r\n" in client.got
        assert not site.rows.row_of

    with_site(test)


def test_an_answer_that_its_client_takes_slowly_is_sent_whole_and_then_the_next_request_has_its_turn() -> None:
    def test(site: Site) -> None:
        client = site.connect(buffer=10_000).send(get("big") + get("next"))
        gevent.sleep(0.1)
        assert site.requests == ["big"]
        client.until(b"next")
        assert client.got.count(b"x") >= len(BIG)
        assert site.requests == ["big", "next"]

    with_site(test)


def test_a_poll_that_waits_and_a_stream_are_handed_off_with_what_came_behind_them() -> None:
    def test(site: Site) -> None:
        poll, stream = site.connect().send(get("poll") + get("next")), site.connect().get("stream")
        stream.until(b"sse.open")
        wait_for(lambda: site.hub.subscribers == 2)
        publish_to_store(site.store, "a", "news")
        assert b'"data":"news"' in poll.until(b"next")
        assert b"data: news" in stream.until(b"news")
        assert b"\r\nConnection: close\r\n" in stream.got

    with_site(test)


def test_an_opening_that_its_client_does_not_take_at_once_is_sent_before_the_events() -> None:
    def test(site: Site) -> None:
        client = site.connect(buffer=1)
        filler = b"y" * 1_000_000
        sent = os.write(client.fd, filler)  # nothing more fits
        with pytest.raises(BlockingIOError):
            while True:
                sent += os.write(client.fd, filler)
        client.get("stream")
        gevent.sleep(0.05)
        publish_to_store(site.store, "a", "news")
        gevent.sleep(0.05)
        site_rows = set(site.rows.row_of.values())
        got = client.until(b"news")[sent:]
        assert len(site_rows) == (1 if sent else 0)
        assert got.index(b"HTTP/1.1") < got.index(b"sse.open") < got.index(b"data: news")

    with_site(test)


def test_a_header_that_gunicorn_would_refuse_is_not_sent() -> None:
    def test(site: Site) -> None:
        client = site.connect().get("bad")
        wait_for(lambda: client.is_closed)
        assert client.got == b""
        assert site.log == ["a connection is cut after a fault"]

    with_site(test)


# What is not for this lane


@pytest.mark.parametrize(
    "asked", [b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n", get("app"), get("flask"), b"\0\n", b"\r\n"]
)
def test_what_is_not_for_this_lane_goes_to_gunicorn_with_all_of_its_bytes(asked: bytes) -> None:
    def test(site: Site) -> None:
        client = site.connect().send(get("first") + asked + get("second"))
        client.until(b"first")
        wait_for(lambda: site.given_back)
        assert site.given_back == [(client.fd, asked + get("second"))]
        assert client.fd not in site.rows.row_of
        site.rows.take_back(client.fd, get("second"))
        assert client.until(b"second").count(b"HTTP/1.1") == 2

    with_site(test)


def test_while_it_is_off_every_request_is_gunicorn_s() -> None:
    def test(site: Site) -> None:
        client = site.connect().get("1")
        client.until(b"1")
        site.is_on = False
        client.get("2")
        wait_for(lambda: site.given_back)
        assert site.given_back == [(client.fd, get("2"))]
        site.lane.look()
        site.rows.take_back(client.fd, b"")
        client.get("3")
        wait_for(lambda: len(site.given_back) == 2)
        assert site.given_back[1] == (client.fd, b"")  # it is not even read
        assert site.requests == ["1"]

    with_site(test)


# Parts of requests


def test_a_head_and_a_body_may_come_byte_by_byte() -> None:
    def test(site: Site) -> None:
        client = site.connect()
        for byte in get("1") + get("2"):
            client.send(bytes([byte]))
            gevent.sleep(0)
        client.until(b"\r\n\r\n2")
        client.send(post("news")[:-1])
        gevent.sleep(0.01)
        client.send(b"s")
        client.until(b"news")
        assert site.stored == [["news"]]

    with_site(test)


@pytest.mark.parametrize("then", ["nothing", "the end"])
def test_a_body_that_is_late_is_read_by_gunicorn(then: str) -> None:
    def test(site: Site) -> None:
        client = site.connect().send(post("ne", 4))
        if then == "the end":
            client.peer.shutdown(socket.SHUT_WR)
        wait_for(lambda: site.given_back)
        assert site.given_back == [(client.fd, post("ne", 4))]
        site.rows.take_back(client.fd, b"")

    with_site(test)


def test_a_request_with_which_its_client_ends_is_answered_and_a_part_of_one_is_gunicorn_s() -> None:
    def test(site: Site) -> None:
        client = site.connect()
        client.peer.sendall(get("last"))
        client.peer.shutdown(socket.SHUT_WR)
        site.rows.accept(client.fd)
        client.until(b"last")
        wait_for(lambda: client.is_closed)
        part = site.connect().send(b"GET /po")
        part.peer.shutdown(socket.SHUT_WR)
        wait_for(lambda: site.given_back)
        assert site.given_back == [(part.fd, b"GET /po")]
        os.close(part.fd)

    with_site(test)


def test_above_16_mb_nothing_more_is_read() -> None:
    def test(site: Site) -> None:
        part = site.connect().send(b"GET /po")
        gevent.sleep(0.02)
        site.rows.held += 16 << 20
        part.send(b"ll")
        unread = site.connect().get("1")
        wait_for(lambda: len(site.given_back) == 2)
        assert sorted(site.given_back) == sorted([(part.fd, b"GET /poll"), (unread.fd, b"")])
        site.rows.held -= 16 << 20
        os.close(part.fd)
        site.rows.take_back(unread.fd, b"")
        unread.until(b"1")

    with_site(test)


# Leaders


def test_a_request_that_waits_holds_nobody_up_and_takes_a_place() -> None:
    def test(site: Site) -> None:
        slow = [site.connect().get(f"wait={0.3 + number / 100}") for number in range(3)]
        quick = [site.connect().get(f"quick{number}") for number in range(100)]
        for number, client in enumerate(quick):
            client.until(b"quick%d" % number)
        assert not any(client.has(b"wait") for client in slow)
        assert site.taken == 3
        for client in slow:
            client.until(b"wait")
        assert site.taken == 0
        site.connect().get("after").until(b"after")

    with_site(test)


def test_a_leader_that_only_lets_others_run_goes_on() -> None:
    def test(site: Site) -> None:
        clients = [site.connect().get("yield") for _ in range(20)]
        for client in clients:
            client.until(b"yield")
            assert site.taken == 0
        assert len(site.greenlets) == 1

    with_site(test)


def test_while_all_places_are_taken_the_others_wait_until_one_is_free() -> None:
    def test(site: Site) -> None:
        first, second = site.connect().get("wait=0.1"), site.connect().get("wait=0.3")
        gevent.sleep(0.02)
        third = site.connect().get("third")
        gevent.sleep(0.02)
        assert site.taken == 1
        assert site.lane.needs_place
        assert site.requests == ["wait=0.1"]
        first.until(b"wait")
        assert not third.has(b"third")
        second.until(b"wait")
        third.until(b"third")
        assert site.requests == ["wait=0.1", "wait=0.3", "third"]
        assert site.taken == 0

    with_site(test, places=1)


def test_a_fault_before_the_answer_is_answered_and_the_connection_goes_on() -> None:
    def test(site: Site) -> None:
        client = site.connect().send(get("fault") + get("broken%20stream") + get("next"))
        client.until(b"next")
        assert client.got.count(b"HTTP/1.1 500 INTERNAL SERVER ERROR\r\n") == 2
        assert not site.log

    with_site(test)


@pytest.mark.parametrize("end", ["bad", "die"])
def test_a_leader_that_fails_closes_only_the_connection_that_it_serves(end: str) -> None:
    def test(site: Site) -> None:
        failing, other = site.connect().get(end), site.connect().get("other")
        other.until(b"other")
        wait_for(lambda: failing.is_closed)
        other.get("again").until(b"again")
        assert site.taken == 0

    with_site(test)


def test_a_connection_whose_client_goes_while_its_request_waits_is_closed_by_its_holder_alone() -> None:
    def test(site: Site) -> None:
        leaving = site.connect().send(get("wait=0.2") + get("next"))
        gevent.sleep(0.05)
        leaving.peer.close()
        used = time.thread_time()
        gevent.sleep(0.1)
        assert time.thread_time() - used < 0.05, "the hang-up is looked at once"
        os.fstat(leaving.fd)  # so its number cannot be another client's
        others = [site.connect() for _ in range(3)]
        assert leaving.fd not in [client.fd for client in others]
        wait_for(lambda: leaving.fd not in site.rows.row_of)
        for client in others:
            client.get("x").until(b"x")
            assert client.got.count(b"HTTP/1.1") == 1

    with_site(test)


def test_of_very_many_connections_that_are_ready_at_once_each_is_found_as_fast_as_the_first() -> None:
    def test(site: Site) -> None:
        served: list[int] = []
        site.lane._serve = served.append  # type: ignore[method-assign]
        numbers = range(100_000, 160_000)
        site.rows.ready.update(dict.fromkeys(numbers))
        used = time.thread_time()
        site.lane.wake()
        wait_for(lambda: not site.rows.ready)
        assert time.thread_time() - used < 0.8, "it is a tenth of a second if nothing is searched"
        assert served == list(numbers)

    with_site(test)


# Publishes


def test_publishes_of_one_turn_are_stored_together_and_nothing_behind_one_is_looked_at_before_its_outcome() -> None:
    def test(site: Site) -> None:
        clients = [site.connect().send(post(f"event{number}") + get(f"next{number}")) for number in range(5)]
        gevent.sleep(0.02)
        assert site.requests == []
        for number, client in enumerate(clients):
            got = client.until(b"next%d" % number)
            assert got.index(b"201 CREATED") < got.index(b"event%d" % number) < got.index(b"200 OK")
        assert site.stored == [[f"event{number}" for number in range(5)]]

    with_site(test)


def test_a_publish_whose_client_has_gone_is_stored_and_its_number_is_not_free_before() -> None:
    def test(site: Site) -> None:
        client = site.connect().send(post("last words"))
        gevent.sleep(0.01)
        client.peer.close()
        gevent.sleep(0.01)
        os.fstat(client.fd)
        wait_for(lambda: client.fd not in site.rows.row_of)
        assert site.stored == [["last words"]]

    with_site(test)
