"""The responses that the worker writes in place of gunicorn, and the hand-off of connections, without a server."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.errors import InvalidHeader
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import FileWrapper, Response, create
from gunicorn.workers.ggevent import GeventWorker

from sse.hub.subscriber import Start
from sse.server.gunicorn_request import Request
from sse.server.load_error import until_mended
from sse.server.responder import AppResponse, Responder
from sse.server.rows import Rows, Sending
from sse.server.sockets import has_hung_up, unread
from sse.server.worker import Worker
from sse.transports.poll import Poll
from sse.transports.stream import Stream
from sse.worker import Worker as Stub
from tests.fake_sockets import World


class Exchange:
    """One request over a real connection, and what the app and the worker do with it."""

    def __init__(self, world: World, request: bytes = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n") -> None:
        self.ours, self.peer = socket.socketpair()
        self.ours.setblocking(False)
        self.fd = self.ours.fileno()
        self.peer.settimeout(5)
        cfg = Config()
        asked = Request(cfg, IterUnreader([request]), ("127.0.0.1", 1), 1)
        self.response, self.environ = create(asked, self.ours, ("127.0.0.1", 1), ("127.0.0.1", 80), cfg)
        self.environ["gunicorn.socket"] = self.ours
        self.is_last = False
        self._world = world
        self._responder = Responder(world.rows, lambda _: self.is_last, Logger(cfg))

    def call(self, body: Any, *headers: tuple[str, str], status: str = "200 OK") -> Any:
        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response(status, list(headers))
            return body

        return self._responder.call(app, self.environ, self.response.start_response)

    def write(self, body: Any, *headers: tuple[str, str]) -> bool:
        """Write it. Return whether the connection goes on in its greenlet."""
        return self.send(self.call(body, *headers))

    def by_lane(self, reply: Reply | None) -> Any:
        """Have the fast lane answer; None for the app."""
        self._responder.switch = Switch(reply)
        return self.call([b"the app"], ("Content-Length", "7"))

    def send(self, answer: Any) -> bool:
        assert isinstance(answer, AppResponse)
        try:
            self._responder.write(answer)
        except StopIteration:
            return False
        return True

    def came(self) -> bytes:
        return self.peer.recv(1 << 20)

    def end(self) -> None:
        for one in (self.ours, self.peer):
            one.close()
        if self.ours.fileno() < 0 and self.fd in self._world.rows.row_of:
            self._world.rows.end(self.fd)
            socket.close(self.fd)


class Reply(NamedTuple):
    """What the fast lane answers."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: Any
    breaks_off: bool = False


class Switch:
    """The switch and the fast lane itself: it answers the route `/x`."""

    def __init__(self, reply: Reply | None) -> None:
        self._reply = reply
        self.lane = self
        self.on = True

    def is_on(self) -> bool:
        return self.on

    def route(self, method: str, path: str) -> str | None:
        return "x" if (method, path) == ("GET", "/x") else None

    def request(self, environ: dict[str, Any]) -> dict[str, Any]:
        return environ

    def reply(self, route: str, environ: dict[str, Any]) -> Reply | None:
        assert route == "x"
        assert "sse.can_hand_off" in environ, "else a poll would wait in its greenlet"
        return self._reply


class Body(list[bytes]):
    """A body that counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.end()


@pytest.fixture
def exchange(world: World) -> Iterator[Exchange]:
    exchange = Exchange(world)
    yield exchange
    exchange.end()


LENGTH = ("Content-Length", "5")


def test_a_small_answer_is_written_at_once_with_its_head(exchange: Exchange) -> None:
    body = Body([b"he", b"llo"])
    assert exchange.write(body, LENGTH)
    head, _, rest = exchange.came().partition(b"\r\n\r\n")
    assert head.startswith(
        b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nConnection: keep-alive\r\nContent-Length: 5\r\nDate: "
    )
    assert rest == b"hello"
    assert body.closed == 1


def test_the_connection_ends_with_an_answer_that_is_the_last_or_too_short(world: World) -> None:
    for is_last, body in ((True, [b"hello"]), (False, [b"he"])):
        exchange = Exchange(world)
        exchange.is_last = is_last
        assert not exchange.write(body, LENGTH)
        assert (b"Connection: close" in exchange.came()) is True
        exchange.end()


def test_answers_of_other_kinds_are_gunicorn_s(world: World) -> None:
    big = ("Content-Length", "70000")
    for headers, status in (((), "200 OK"), ((big,), "200 OK"), ((LENGTH,), "204 No Content")):
        exchange = Exchange(world)
        assert exchange.call(body := [b"hello"], *headers, status=status) is body
        exchange.end()
    exchange = Exchange(world, b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert exchange.call(body, LENGTH) is body
    exchange.end()
    exchange = Exchange(world)
    file: Any = FileWrapper(None)
    assert exchange.call(file, LENGTH) is file
    exchange.end()


def test_the_service_s_own_answers_may_be_larger(exchange: Exchange) -> None:
    exchange.environ["sse.whole"] = True
    assert isinstance(exchange.call([b"x" * 70_000], ("Content-Length", "70000")), AppResponse)


def test_a_response_of_another_protocol_is_left_alone(exchange: Exchange) -> None:
    class Other(Response):  # type: ignore[misc]
        pass

    exchange.response.__class__ = Other
    assert exchange.call(body := [b"hello"], LENGTH) is body
    assert "sse.can_hand_off" not in exchange.environ
    assert exchange.environ["sse.gone"]() is False


def test_the_part_that_a_client_does_not_take_goes_on_without_a_greenlet(world: World) -> None:
    exchange = Exchange(world, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /next")
    exchange.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    exchange.environ["sse.whole"] = True
    body = Body([b"x" * 500_000])
    assert not exchange.write(body, ("Content-Length", "500000"))
    assert isinstance(world.row(exchange.fd), Sending)
    assert world.rows.read_ahead == {exchange.fd: b"GET /next"}
    assert body.closed == 1
    exchange.end()


def test_an_answer_that_cannot_be_written_closes_its_body(exchange: Exchange) -> None:
    exchange.peer.close()
    body = Body([b"hello"])
    with pytest.raises(BrokenPipeError):
        exchange.write(body, LENGTH)
    assert body.closed == 1


def stream(world: World, **options: Any) -> Stream:
    return Stream(world.hub, {"a": Start()}, heartbeat=15, lifetime=60, retry=1000, **options)


def test_a_stream_is_handed_off_behind_its_opening(world: World, exchange: Exchange) -> None:
    body = exchange.environ["sse.body"] = stream(world)
    assert not exchange.write(body, ("Content-Type", "text/event-stream"))
    head, _, rest = exchange.came().partition(b"\r\n\r\n")
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    assert b"\r\nConnection: close\r\n" in head  # else a proxy would keep the connection for its next request
    assert b"event: sse.open\n" in rest
    assert exchange.ours.fileno() < 0
    assert world.row(exchange.fd).chunked
    assert world.hub.subscribers == 1


def test_a_stream_that_is_to_be_cut_does_not_say_that_the_connection_closes(world: World, exchange: Exchange) -> None:
    exchange.environ["sse.body"] = stream(world, cut=True)
    assert not exchange.write(exchange.environ["sse.body"], ("Content-Type", "text/event-stream"))
    head = exchange.came().partition(b"\r\n\r\n")[0]
    assert b"\r\nConnection: keep-alive\r\n" in head  # else Node's fetch would take a broken connection for the end
    assert exchange.ours.fileno() < 0


@pytest.mark.parametrize("cut", [False, True])
def test_a_stream_that_finds_no_room_is_told_and_stays(world: World, exchange: Exchange, *, cut: bool) -> None:
    world.hub.max_subscribers = 0
    body = exchange.environ["sse.body"] = stream(world, cut=cut)
    assert exchange.write(body) is not cut
    came = exchange.came()
    assert b'"reason":"busy"' in came
    assert came.endswith(b"0\r\n\r\n") is not cut
    assert not world.rows.row_of


def test_a_poll_is_handed_off_with_its_head(world: World, exchange: Exchange) -> None:
    poll = Poll(world.hub, {"a": Start(world.position())}, timeout=20, retry=1000)
    assert poll.open() is None
    exchange.environ["sse.body"] = poll
    assert not exchange.write(poll, ("Content-Type", "application/json"))
    head = world.row(exchange.fd).head
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length" not in head
    assert b"chunked" not in head


class Blocks(Body):
    """A body that keeps its greenlet, as a probe of the doctor does."""

    keeps_greenlet = True
    longest = 0.3


def test_a_client_that_takes_a_few_bytes_at_a_time_holds_no_greenlet_for_long(exchange: Exchange) -> None:
    """Each part that it takes would begin the time anew after which a client has stalled."""
    exchange.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    exchange.environ["sse.body"] = body = Blocks([bytes(2_000_000)])
    is_over = threading.Event()

    def drink() -> None:
        while not is_over.wait(0.05):
            exchange.peer.recv(4_096)

    client = threading.Thread(target=drink)
    client.start()
    try:
        began = time.monotonic()
        assert not exchange.write(body)
        assert 0.3 <= time.monotonic() - began < 2
    finally:
        is_over.set()
        client.join()
    assert body.closed == 1


def test_tls_and_a_body_that_the_app_has_wrapped_keep_their_greenlet(world: World, exchange: Exchange) -> None:
    exchange.environ["sse.body"] = stream(world)
    assert exchange.call(body := iter([b"wrapped"])) is body
    with ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(
        socket.socket(), server_hostname="a", do_handshake_on_connect=False
    ) as tls:
        second = Exchange(world)
        second.environ["gunicorn.socket"] = tls
        second.call([b"hello"], LENGTH)
        assert "sse.can_hand_off" not in second.environ
        second.end()


JSON_LENGTH = (("Content-Type", "application/json"), LENGTH)


def test_the_fast_lane_answers_in_place_of_the_app(exchange: Exchange) -> None:
    assert exchange.send(exchange.by_lane(Reply("201 CREATED", JSON_LENGTH, b"hello")))
    head, _, rest = exchange.came().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 CREATED\r\n")
    assert b"\r\nContent-Type: application/json\r\nContent-Length: 5\r\nDate: " in head
    assert rest == b"hello"


def test_what_the_fast_lane_leaves_is_the_app_s(world: World) -> None:
    exchange = Exchange(world)
    assert exchange.send(exchange.by_lane(None))
    assert exchange.came().endswith(b"the app")
    exchange.end()
    other = Exchange(world, b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n")
    assert other.send(other.by_lane(Reply("200 OK", JSON_LENGTH, b"hello")))
    assert other.came().endswith(b"the app")
    other.end()


def test_a_stream_and_a_poll_of_the_fast_lane_are_handed_off(world: World) -> None:
    poll = Poll(world.hub, {"a": Start(world.position())}, timeout=20, retry=1000)
    assert poll.open() is None
    for body in (stream(world), poll):
        exchange = Exchange(world)
        assert not exchange.send(exchange.by_lane(Reply("200 OK", (), body)))
        assert exchange.ours.fileno() < 0
        assert exchange.fd in world.rows.row_of
        exchange.end()


def test_an_answer_of_the_fast_lane_that_breaks_off_ends_its_connection(exchange: Exchange) -> None:
    body = exchange.by_lane(Reply("200 OK", (("Content-Type", "text/event-stream"),), b"busy", breaks_off=True))
    assert exchange.response.is_chunked()
    assert next(body) == b"busy"
    with pytest.raises(BrokenPipeError):
        next(body)


def test_a_204_of_the_fast_lane_has_no_body(exchange: Exchange) -> None:
    assert exchange.by_lane(Reply("204 NO CONTENT", (), b"")) == []


def test_a_body_of_the_fast_lane_whose_headers_are_refused_is_closed(world: World, exchange: Exchange) -> None:
    body = stream(world)
    body.attach()
    with pytest.raises(InvalidHeader):
        exchange.by_lane(Reply("200 OK", (("Bad", "a\r\nb"),), body))
    assert world.hub.subscribers == 0


def test_a_connection_knows_what_its_peer_has_done() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        assert (unread(ours.fileno()), has_hung_up(ours)) == (0, False)
        peer.send(b"x" * 8192)
        assert (unread(ours.fileno()), has_hung_up(ours)) == (8192, False)
        peer.send(b"y")
        assert has_hung_up(ours), "its end could not arrive behind all that"
        ours.recv(9000)
        assert not has_hung_up(ours)
        peer.shutdown(socket.SHUT_WR)
        assert has_hung_up(ours)


def test_the_worker_s_class_says_that_it_hands_off_whatever_stub_the_master_has() -> None:
    assert Worker.hands_off is True
    assert not hasattr(GeventWorker, "hands_off")
    assert "hands_off" not in vars(Stub), "a master that has been reloaded has the stub of the version before"


class Reloader:
    def __init__(self) -> None:
        self.files: list[str] = []
        self.add_extra_file = self.files.append


@pytest.mark.parametrize("code", ["def broken(:\n", "raise ValueError('a secret')\n"])
def test_an_app_that_cannot_be_loaded_has_a_page_that_says_so(code: str, caplog: pytest.LogCaptureFixture) -> None:
    reloader = Reloader()
    try:
        exec(compile(code, "/app/its_file.py", "exec"))
    except Exception as error:
        page = until_mended(error, logging.getLogger("sse.test"), reloader)
    told = b"".join(page({}, lambda status, headers: assert_internal(status)))
    assert (b"SyntaxError" in told) is code.startswith("def")
    assert b"a secret" not in told
    assert "/app/its_file.py" in reloader.files
    assert __file__ in reloader.files
    assert "cannot be loaded" in caplog.text


def assert_internal(status: str) -> None:
    assert status.startswith("500")


@pytest.mark.parametrize("has_lane", [True, False])
def test_a_connection_that_cannot_be_parked_is_still_gunicorn_s_to_close(has_lane: bool) -> None:
    def register(_fd: int, _interest: str) -> None:
        raise OSError(errno.ENOSPC, "the kernel watches too many connections")

    world = World()
    ours, peer = socket.socketpair()
    try:
        world.rows = Rows(world.rows.effects._replace(register=register), 75)
        world.rows.has_lane = has_lane
        worker: Any = Worker.__new__(Worker)
        worker._rows, worker._lane = world.rows, None
        worker._comes_at_once = lambda _: False
        asked = Request(Config(), IterUnreader([b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"]), ("127.0.0.1", 1), 1)
        with pytest.raises(OSError, match="too many"):
            worker._may_go_on(asked, ours)
        assert ours.fileno() >= 0
        assert world.rows.is_empty
    finally:
        world.end()
        ours.close()
        peer.close()
