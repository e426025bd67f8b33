"""`SSE.stream`: an iterable as a stream for one client, in the test client and driven by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask, Response, g, request, session
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from sse import SSE, Event, InvalidEvent
from sse.errors import Busy
from sse.event import Event as StoredEvent
from sse.hub.hub import Hub
from sse.stores.memory import MemoryStore
from sse.transports.items import ItemStream
from tests import client as wire
from tests.conftest import MakeApp
from tests.servers import wait_until

Serve = Callable[..., Flask]


@pytest.fixture
def serve(make_app: MakeApp) -> Serve:
    """Return a function that makes an app whose view /items streams what a function returns."""

    def make(
        give: Callable[[], Iterable[object]], *, headers: dict[str, str] | None = None, **settings: object
    ) -> Flask:
        sse = SSE()
        app = make_app(sse, SECRET_KEY="login", **settings)
        app.add_url_rule("/items", "items", view_func=lambda: sse.stream(give(), headers), methods=["GET", "POST"])
        return app

    return make


def read(body: bytes) -> list[wire.Event]:
    return wire.Parser().feed(body)


def told(body: bytes) -> list[tuple[str, Any]]:
    """Return the type and data of all blocks behind the opening."""
    opened, heartbeat, *others = read(body)
    assert (opened.event, heartbeat.event) == ("sse.open", "sse.heartbeat")
    return [(block.event, block.data) for block in others]


END = ("sse.end", '{"channel":null,"reason":"done"}')
FAILED = ("sse.end", '{"channel":null,"reason":"failed"}')


# Values


def test_strings_are_pieces_events_stay_and_other_values_are_events(serve: Serve) -> None:
    values = ["a\nb", "", Markup("<b>"), {"n": 1}, 7, None, b"x", Event("e", "paid"), ["l"]]
    answer = serve(lambda: iter(values)).test_client().get("/items")
    assert told(answer.data) == [
        ("text", "a\nb"),
        ("text", "<b>"),
        ("message", '{"n":1}'),
        ("message", "7"),
        ("message", "null"),
        ("message", "data:application/octet-stream;base64,eA=="),
        ("paid", "e"),
        ("message", '["l"]'),
        END,
    ]


def test_each_block_carries_the_id_that_no_position_has_and_the_end_a_jittered_retry(serve: Serve) -> None:
    client = serve(lambda: ["a", {"b": 1}], SSE_RETRY=2000, SSE_HEARTBEAT=7).test_client()
    blocks = [read(client.get("/items").data) for _ in range(20)]
    for opened, heartbeat, *others in blocks:
        assert opened.json() == {"channels": {}, "heartbeat": 7, "retry": 2000}
        assert heartbeat.own_id is None
        assert {block.own_id for block in (opened, *others)} == {"~"}
    waits = {others[-1].retry for (*_,) in blocks for others in [_] if others[-1].retry}
    assert len(waits) > 10
    assert min(waits) >= 200
    assert max(waits) <= 2000


@given(st.lists(st.text(alphabet="a\r\n€", max_size=6), max_size=8), st.integers(1, 40))
def test_the_pieces_are_the_text_wherever_its_lines_end(texts: list[str], max_bytes: int) -> None:
    store = MemoryStore(ring=10, ring_ttl=60)
    hub = Hub(store, max_subscribers=1)
    body = ItemStream(
        hub,
        texts,
        around=lambda work: work(),
        make_event=StoredEvent,
        max_bytes=max_bytes,
        heartbeat=60,
        retry=1000,
        name="test",
    )
    blocks = told(b"".join(body))
    assert blocks.pop() == END
    assert all(kind == "text" and len(data.encode()) <= max(max_bytes, 4) for kind, data in blocks)
    assert "".join(data for _, data in blocks) == "".join(texts).replace("\r\n", "\n").replace("\r", "\n")
    assert hub.subscribers == 0


def test_a_value_that_cannot_be_sent_ends_the_stream_as_failed_and_is_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for value, fault in ((float("nan"), "has no JSON form"), ({"x": "y" * 2000}, "SSE_MAX_EVENT_BYTES is 1024")):
        answer = serve(lambda value=value: ["a", value, "b"], SSE_MAX_EVENT_BYTES=1024).test_client().get("/items")
        assert told(answer.data) == [("text", "a"), FAILED]
        assert fault in caplog.text
        assert "the iterable of items has failed" in caplog.text


@pytest.mark.parametrize("iterable", ["text", b"bytes", 5, None, lambda: iter(())])
def test_what_is_no_iterable_is_told_to_the_app(make_app: MakeApp, iterable: Any) -> None:
    sse = SSE()
    with make_app(sse).test_request_context("/"), pytest.raises(InvalidEvent, match="the iterable is"):
        sse.stream(iterable)


# The request's context


def test_the_iterable_runs_in_the_context_of_the_request(serve: Serve) -> None:
    torn_down: list[str] = []

    def give() -> Iterator[str]:
        g.user = "ann"
        session["seen"] = "yes"

        def values() -> Iterator[str]:
            yield f"{request.args['q']} {g.user} {session['seen']} {request.path}"

        return values()

    app = serve(give)
    app.teardown_appcontext(lambda _: torn_down.append(g.get("user", "nobody")))
    answer = app.test_client().get("/items?q=hello")
    assert told(answer.data) == [("text", "hello ann yes /items"), END]
    wait_until(lambda: torn_down == ["ann", "ann"])  # at the request's end, and at that of the iterable


# The end


def test_an_error_is_logged_and_ends_the_stream_as_failed(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def give() -> Iterator[str]:
        yield "before"
        raise RuntimeError("the upstream is away")

    app = serve(give)
    assert told(app.test_client().get("/items").data) == [("text", "before"), FAILED]
    assert "RuntimeError: the upstream is away" in caplog.text
    wait_until(lambda: app.extensions["sse"].hub.subscribers == 0)


def test_an_iterable_that_cannot_be_closed_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def give() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            raise RuntimeError("it cannot be closed")

    app = serve(give)
    with closing(app.test_client().get("/items", buffered=False)) as answer:
        chunks = answer.iter_encoded()
        next(chunks)
        next(chunks)
    wait_until(lambda: "it cannot be closed" in caplog.text)


def test_an_iterable_that_cannot_be_closed_unused_changes_no_answer(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Values:
        def __iter__(self) -> Iterator[object]:
            return iter(())

        def close(self) -> None:
            raise RuntimeError("it cannot be closed")

    client = serve(Values).test_client()
    assert client.get("/items", headers={"Last-Event-ID": "~"}).status_code == 204
    assert "the iterable of items could not be closed" in caplog.text
    assert client.get("/items", headers={"Accept": "application/json"}).status_code == 406


class Upstream:
    """An endless iterable that notes how far it is, and that it was closed; `go` has it give a value."""

    def __init__(self, *, waits: bool = False) -> None:
        self.given = 0
        self.closed = 0
        self.go = threading.Event()
        self.waits = waits

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                if self.waits:
                    assert self.go.wait(10)
                self.given += 1
                yield f"{self.given} "
        finally:
            self.closed += 1


def test_a_client_that_goes_has_the_iterable_closed_and_its_seat_given_back(serve: Serve) -> None:
    upstream = Upstream()
    app = serve(lambda: iter(upstream))
    with closing(app.test_client().get("/items", buffered=False)) as answer:
        chunks = answer.iter_encoded()
        assert b"sse.open" in next(chunks)
        assert b"data: 1 " in next(chunks)
        assert app.extensions["sse"].hub.subscribers == 1
    wait_until(lambda: upstream.closed == 1)
    wait_until(lambda: app.extensions["sse"].hub.subscribers == 0)


def test_the_iterable_is_only_a_few_values_ahead_of_the_client(serve: Serve) -> None:
    upstream = Upstream()
    app = serve(lambda: iter(upstream))
    with closing(app.test_client().get("/items", buffered=False)) as answer:
        chunks = answer.iter_encoded()
        next(chunks)
        got = next(chunks).count(b"data: ")
        time.sleep(0.3)
        assert upstream.given <= got + 6
    wait_until(lambda: upstream.closed == 1)


def drive(hub: Hub, iterable: Iterable[object], heartbeat: float = 60, **options: Any) -> ItemStream:
    return ItemStream(
        hub,
        iterable,
        around=lambda work: work(),
        make_event=StoredEvent,
        max_bytes=1000,
        heartbeat=heartbeat,
        retry=1000,
        name="test",
        **options,
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(MemoryStore(ring=10, ring_ttl=60), max_subscribers=1)
    yield hub
    wait_until(lambda: hub.subscribers == 0)
    hub.close()


def test_a_slow_iterable_has_heartbeats_and_a_seat_that_outlives_the_client(hub: Hub) -> None:
    upstream = Upstream(waits=True)
    body = drive(hub, upstream, heartbeat=0.05)
    chunks = iter(body)
    assert b"sse.open" in next(chunks)
    assert [next(chunks) for _ in range(3)] == [b"event: sse.heartbeat\ndata:\n\n"] * 3
    body.close()
    assert hub.subscribers == 1  # its iterable still waits
    refused = b"".join(drive(hub, ["never"]))
    assert [block.json()["reason"] for block in read(refused)] == ["busy"]
    upstream.go.set()
    wait_until(lambda: hub.subscribers == 0)
    assert upstream.closed == 1


def test_a_drain_ends_it_as_interrupted_and_closes_the_iterable(hub: Hub) -> None:
    upstream = Upstream(waits=True)
    chunks = iter(drive(hub, upstream))
    next(chunks)
    threading.Timer(0.1, hub.drain, (0,)).start()
    [end] = read(b"".join(chunks))
    assert (end.event, end.json()["reason"]) == ("sse.end", "interrupted")
    upstream.go.set()
    wait_until(lambda: upstream.closed == 1)
    assert [block.json()["reason"] for block in read(b"".join(drive(hub, ["never"])))] == ["busy"]
    with pytest.raises(Busy, match="ending"):
        hub.admit(drive(hub, ()))


def test_an_iterable_that_is_interrupted_ends_without_an_entry_in_the_log(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted = threading.Event()
    conditions: list[Callable[[], bool]] = []

    def values() -> Iterator[str]:
        try:
            yield "a"
            assert interrupted.wait(10)
            raise GeneratorExit  # as the breaker of a greenlet would
        finally:
            closed.set()

    closed = threading.Event()

    def breaker() -> Callable[[Callable[[], bool]], object]:
        return lambda is_waiting: (conditions.append(is_waiting), interrupted.set())

    body = drive(hub, values(), breaker=breaker)
    chunks = iter(body)
    next(chunks)
    assert b"data: a" in next(chunks)
    wait_until(lambda: body._awaits_value)
    body.close()
    assert closed.wait(5)
    assert len(conditions) == 1
    wait_until(lambda: not conditions[0]())
    assert not caplog.records


def test_a_client_that_has_gone_is_noticed_before_the_heartbeat(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse.transports.items._LOOK", 0.05)
    upstream = Upstream(waits=True)
    chunks = iter(drive(hub, upstream, gone=lambda: True))
    next(chunks)
    assert list(chunks) == []
    upstream.go.set()
    wait_until(lambda: upstream.closed == 1)


def test_a_thread_that_cannot_be_started_fails_the_stream(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Upstream()

    class Unstarted(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    values = iter(upstream)
    monkeypatch.setattr("sse.transports.items.threading.Thread", Unstarted)
    assert told(b"".join(drive(hub, values))) == [FAILED]


def test_a_body_that_is_closed_unsent_closes_its_iterable(hub: Hub) -> None:
    class Closable(list[str]):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    values = Closable(["a"])
    body = drive(hub, values)
    body.close()
    body.close()
    assert values.closed == 1
    values = Closable(["a"])
    assert told(b"".join(drive(hub, values))) == [("text", "a"), END]
    assert values.closed == 1


# The request


def test_a_client_that_comes_back_with_the_id_gets_204(serve: Serve) -> None:
    asked: list[int] = []
    client = serve(lambda: asked.append(1) or Upstream()).test_client()
    for query, headers in (("", {"Last-Event-ID": "~"}), ("last_event_id=~", {}), ("lastEventId=~", {})):
        answer = client.get(f"/items?{query}", headers=headers)
        assert (answer.status_code, answer.data) == (204, b"")
        assert answer.headers["Vary"].endswith(", Accept")
        assert "Content-Type" not in answer.headers


@pytest.mark.parametrize(
    ("accept", "status"), [("application/json", 406), ("text/html", 406), ("text/html, */*;q=0.1", 200), ("", 200)]
)
def test_a_client_that_takes_no_stream_gets_406(serve: Serve, accept: str, status: int) -> None:
    answer = serve(lambda: ["a"]).test_client().get("/items", headers={"Accept": accept})
    assert answer.status_code == status
    if status == 406:
        assert json.loads(answer.data)["error"]["code"] == "not_acceptable"


def test_head_runs_nothing_and_post_works(serve: Serve) -> None:
    upstream = Upstream()
    app = serve(lambda: iter(upstream), headers={"X-Own": "1"})
    head = app.test_client().head("/items")
    assert (head.status_code, head.mimetype, head.data, head.headers["X-Own"]) == (200, "text/event-stream", b"", "1")
    assert upstream.given == 0
    with closing(app.test_client().post("/items", data=b"x", buffered=False)) as answer:
        assert b"sse.open" in next(answer.iter_encoded())


def test_a_limit_by_address_and_full_seats_are_told_as_busy_without_an_id(serve: Serve) -> None:
    app = serve(lambda: ["a"], SSE_LIMIT_SUBSCRIBE="1/minute", SSE_PROXIES=1)
    client = app.test_client()
    assert told(client.get("/items").data)[-1] == END
    [closed] = read(client.get("/items").data)
    assert (closed.event, closed.json()["reason"], closed.own_id) == ("sse.close", "busy", None)


def test_hooks_of_the_app_read_nothing_and_may_wrap_the_stream(serve: Serve) -> None:
    for hook in (
        lambda response: (response.get_data() and response) or response,
        lambda response: Response(response.response, headers=response.headers),
        lambda response: Response(response.get_data(), headers=response.headers),
    ):
        app = serve(lambda: ["a"])
        app.after_request(hook)
        answer = app.test_client().get("/items")
        assert told(answer.data) == [("text", "a"), END]
        wait_until(lambda app=app: app.extensions["sse"].hub.subscribers == 0)  # type: ignore[misc]


def test_closing_the_service_ends_the_stream(serve: Serve) -> None:
    upstream = Upstream(waits=True)
    app = serve(lambda: iter(upstream))
    answer = app.test_client().get("/items", buffered=False)
    chunks = answer.iter_encoded()
    next(chunks)
    threading.Timer(0.2, app.extensions["sse"].close).start()
    assert read(b"".join(chunks))[-1].json()["reason"] == "interrupted"
    upstream.go.set()
    answer.close()
    wait_until(lambda: upstream.closed == 1)
