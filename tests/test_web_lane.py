"""The fast lane in one process: it answers as Flask does, or leaves the request to Flask as if nothing had happened."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from flask import Flask, abort
from werkzeug.test import EnvironBuilder

from sse import SSE
from sse.errors import SSEError, StoreUnavailable
from sse.event import End
from sse.transports.poll import Poll
from sse.transports.stream import Cut, Stream
from sse.web.admission import COUNTED, Prepared
from sse.web.lane import Lane, Reply
from tests.conftest import MakeApp
from tests.publishing import publish_in_app
from tests.tokens import KEY, SECRET, claims, signed

ORIGIN = {"Origin": "https://a.example"}
PUBLISHES = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
NOBODY = "203.0.113.7"
_POSITION = re.compile(rb"\d+-\d{1,39}")


class Seen(NamedTuple):
    """An answer: its body is bytes, or the word for what goes on after it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes | str
    breaks_off: bool


def lane_of(app: Flask) -> Lane:
    lane: Lane = app.extensions["sse.lane"]
    return lane


def environ_of(method: str, path: str, **options: Any) -> dict[str, Any]:
    query = options.pop("query_string", None)
    overrides = {"sse.can_hand_off": True, "REMOTE_ADDR": NOBODY, **options.pop("environ_overrides", {})}
    return EnvironBuilder(path, method=method, query_string=query, environ_overrides=overrides, **options).get_environ()


def by_flask(app: Flask, environ: dict[str, Any]) -> Seen:
    told: list[Any] = []
    body: Any = app(environ, lambda status, headers: told.append((status, headers)))  # type: ignore[arg-type,return-value]
    status, headers = told[0]
    parts: list[bytes] = []
    breaks_off = False
    if body is environ.get("sse.body", told):
        shown: bytes | str = "stream" if body.is_stream else "poll"
    else:
        try:
            parts.extend(body)
        except Cut:
            breaks_off = True
        shown = b"".join(parts)
    if hasattr(body, "close"):
        body.close()
    return Seen(status, [*headers], shown, breaks_off)


def reply_of(app: Flask, environ: dict[str, Any]) -> Reply | None:
    lane = lane_of(app)
    route = lane.route(environ["REQUEST_METHOD"], environ["PATH_INFO"])
    return lane.reply(route, lane.request(environ)) if route else None


def by_lane(app: Flask, environ: dict[str, Any]) -> Seen | None:
    reply = reply_of(app, environ)
    if reply is None:
        return None
    body: bytes | str
    if isinstance(reply.body, bytes):
        body = reply.body
    else:
        body = "stream" if isinstance(reply.body, Stream) else "poll"
        reply.body.close()
    return Seen(reply.status, [*reply.headers], body, reply.breaks_off)


def both(app: Flask, method: str, path: str, **options: Any) -> Seen:
    """Return the answer of the lane, which is that of Flask."""
    random.seed(7)
    expected = by_flask(app, environ_of(method, path, **options))
    random.seed(7)
    seen = by_lane(app, environ_of(method, path, **options))
    assert seen is not None
    assert seen == expected
    return seen


def without_positions(seen: Seen) -> Seen:
    """Return an answer without the positions in its body, which have random parts of several lengths."""
    assert isinstance(seen.body, bytes)
    assert ("Content-Length", str(len(seen.body))) in seen.headers
    headers = [(name, "" if name == "Content-Length" else text) for name, text in seen.headers]
    return seen._replace(headers=headers, body=_POSITION.sub(b"", seen.body))


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(SSE_ORIGINS="https://a.example", SSE_PUBLISH_KEYS=KEY, PROPAGATE_EXCEPTIONS=False)


@pytest.mark.parametrize("headers", [{}, ORIGIN, {"Origin": "https://evil.example"}])
@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/sse/stream?channel=a", "200 OK", "stream"),
        ("/sse/stream?channel=a&form=bare&end=cut", "200 OK", "stream"),
        ("/sse/stream?channel=a&last_event_id=a%3D0-0", "200 OK", "stream"),
        ("/sse/stream?channel=a&form=bare&last_event_id=a%3D7-00000000000000000000000000000000", "410 GONE", None),
        ("/sse/stream", "400 BAD REQUEST", None),
        ("/sse/stream?channel=a&heartbeat=soon", "400 BAD REQUEST", None),
        ("/sse/stream?channel=%ff", "400 BAD REQUEST", None),
        ("/sse/poll?channel=a&timeout=0", "200 OK", None),
        ("/sse/poll?channel=a", "200 OK", None),
        ("/sse/poll?channel=a&channel=b&last_event_id=rubbish", "200 OK", None),
        ("/sse/poll?channel=..", "400 BAD REQUEST", None),
    ],
)
def test_streams_and_polls_are_answered_as_by_flask(
    app: Flask, path: str, status: str, body: str | None, headers: Mapping[str, str]
) -> None:
    both(app, "GET", path, headers=headers)  # makes the rings
    seen = both(app, "GET", path, headers=headers)
    assert seen.status == status
    assert body is None or seen.body == body


def test_a_poll_that_waits_is_open(app: Flask) -> None:
    [id] = publish_in_app(app, "a", 1)
    assert both(app, "GET", "/sse/poll", query_string={"channel": "a", "last_event_id": id}).body == "poll"
    reply = reply_of(app, environ_of("GET", f"/sse/poll?channel=a&last_event_id={id}"))
    assert reply is not None
    assert isinstance(reply.body, Poll)
    assert app.extensions["sse"].hub.subscribers == 1
    reply.body.close()


def test_a_poll_waits_in_place_where_it_cannot_be_handed_off(app: Flask) -> None:
    [id] = publish_in_app(app, "a", 1)
    environ = environ_of("GET", f"/sse/poll?channel=a&last_event_id={id}&timeout=1")
    del environ["sse.can_hand_off"]
    seen = by_lane(app, environ)
    assert seen
    assert isinstance(seen.body, bytes)
    assert id.encode() in seen.body


@pytest.mark.parametrize(
    ("path", "headers", "data", "status"),
    [
        ("/sse/publish", PUBLISHES, b'{"channel":"a","data":1}', "201 CREATED"),
        ("/sse/publish", PUBLISHES, b'[{"channel":"a","data":1},{"channel":"b","data":2}]', "201 CREATED"),
        ("/sse/publish/a/b", PUBLISHES, b"plain", "201 CREATED"),
        ("/sse/publish/a?type=b", PUBLISHES | {"Content-Type": "image/png"}, b"\x89PNG", "201 CREATED"),
        ("/sse/publish", {}, b"{}", "401 UNAUTHORIZED"),
        ("/sse/publish", {"Authorization": "Bearer " + "x" * 22}, b"{}", "401 UNAUTHORIZED"),
        ("/sse/publish", PUBLISHES, b"{", "400 BAD REQUEST"),
        ("/sse/publish", PUBLISHES | {"Content-Type": "text/plain"}, b"{}", "415 UNSUPPORTED MEDIA TYPE"),
        ("/sse/publish", PUBLISHES | {"Idempotency-Key": ""}, b'{"channel":"a","data":1}', "400 BAD REQUEST"),
        ("/sse/publish/a", PUBLISHES, b"x" * 70_000, "413 REQUEST ENTITY TOO LARGE"),
        ("/sse/publish", PUBLISHES | {"Content-Encoding": "gzip"}, b"{}", "415 UNSUPPORTED MEDIA TYPE"),
    ],
)
def test_publish_requests_are_answered_as_by_flask(
    app: Flask, path: str, headers: Mapping[str, str], data: bytes, status: str
) -> None:
    seen = by_lane(app, environ_of("POST", path, headers={**headers, **ORIGIN}, data=data))
    assert seen
    assert without_positions(seen) == without_positions(
        by_flask(app, environ_of("POST", path, headers={**headers, **ORIGIN}, data=data))
    )
    assert seen.status == status


@pytest.mark.parametrize("form", ["", "&end=cut", "&form=bare", "&last_event_id=a%3D0-0", "&form=bare&end=cut"])
def test_a_stream_that_finds_no_room_is_told_as_by_flask(app: Flask, form: str) -> None:
    app.extensions["sse"].hub.max_subscribers = 0
    seen = both(app, "GET", f"/sse/stream?channel=a{form}")
    if "bare" in form:
        assert seen.status == "503 SERVICE UNAVAILABLE"
    elif "last" in form:
        assert isinstance(seen.body, bytes)
        assert b'"reason":"busy"' in seen.body
    assert both(app, "GET", "/sse/poll?channel=a").status == "503 SERVICE UNAVAILABLE"


@pytest.mark.parametrize("form", ["", "&end=cut", "&form=bare"])
def test_a_client_that_asks_too_often_is_told_as_by_flask(make_app: MakeApp, form: str) -> None:
    app = make_app(SSE_LIMIT_SUBSCRIBE="2/day")
    for _ in range(2):
        assert by_lane(app, environ_of("GET", "/sse/poll?channel=a&timeout=0")) is not None
    seen = both(app, "GET", f"/sse/stream?channel=a{form}")
    assert seen.breaks_off is (form == "&end=cut")
    assert seen.status == ("503 SERVICE UNAVAILABLE" if "bare" in form else "200 OK")
    assert seen.body != "stream"
    assert both(app, "GET", "/sse/poll?channel=a").status == "429 TOO MANY REQUESTS"


def test_channels_that_have_ended_are_answered_as_by_flask(app: Flask) -> None:
    sse = SSE()
    with app.app_context(), sse.writing("a") as out:
        out.write("text")
    with app.app_context(), pytest.raises(ValueError, match="fails"), sse.writing("b") as out:
        raise ValueError("fails")
    for channel, form, status in (
        ("a", "", "204 NO CONTENT"),
        ("b", "", "204 NO CONTENT"),
        ("a", "&form=bare", "204 NO CONTENT"),
        ("b", "&form=bare", "410 GONE"),
    ):
        [page] = app.extensions["sse"].store.before([(channel, 1)])
        entries = app.extensions["sse"].store.read([(channel, page)])[0].entries
        assert isinstance(entries[-1].event, End)
        id = f"{channel}%3D{entries[-1].position}"
        seen = both(app, "GET", f"/sse/stream?channel={channel}&last_event_id={id}{form}")
        assert seen.status == status
        assert app.extensions["sse"].hub.subscribers == 0


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", "401 UNAUTHORIZED"),
        ("Bearer rubbish", "401 UNAUTHORIZED"),
        (f"Bearer {signed(claims(subscribe=['a']))}", "200 OK"),
        (f"Bearer {signed(claims(subscribe=['b']))}", "403 FORBIDDEN"),
    ],
)
def test_the_right_to_read_is_checked_as_by_flask(make_app: MakeApp, authorization: str, status: str) -> None:
    app = make_app(SSE_PUBLIC="", SSE_SECRET=SECRET)
    headers = {"Authorization": authorization} if authorization else {}
    assert both(app, "GET", "/sse/stream?channel=a", headers=headers).status == status
    assert both(app, "GET", "/sse/poll?channel=a&timeout=0", headers=headers).status == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/sse/stream"),
        ("OPTIONS", "/sse/poll"),
        ("POST", "/sse/stream"),
        ("GET", "/sse/publish"),
        ("get", "/sse/poll"),
        ("GET", "/sse/poll/"),
        ("GET", "/sse//poll"),
        ("GET", "/sse/ready"),
        ("GET", "/"),
        ("POST", "/sse/publish/"),
        ("POST", "/sse/publish/a//b"),
        ("POST", "/sse/publish/a/"),
        ("POST", "/sse/publish/../a"),
        ("POST", "/sse/publish/sse.own"),
        ("POST", "/sse/publish/a\nb"),
        ("POST", "/sse/publish/" + "a" * 129),
    ],
)
def test_other_methods_and_paths_are_flask_s(app: Flask, method: str, path: str) -> None:
    assert lane_of(app).route(method, path) is None


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({}, {"SERVER_PROTOCOL": "HTTP/1.0"}),
        ({}, {"SCRIPT_NAME": "/app"}),
        ({}, {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "upgrade"}),
        ({}, {"HTTP_HOST": "a..b"}),
        ({}, {"HTTP_HOST": ""}),
        ({}, {"HTTP_HOST": "a" * 64}),
        ({}, {"HTTP_HOST": "a/b"}),
        ({"data": b"x"}, {}),
        ({}, {"HTTP_TRANSFER_ENCODING": "chunked"}),
        ({"query_string": "channel=a&probe=1"}, {}),
    ],
)
def test_requests_that_flask_treats_in_its_own_way_are_flask_s(
    app: Flask, options: dict[str, Any], environ: dict[str, str]
) -> None:
    options = {"query_string": "channel=a", **options}
    assert reply_of(app, environ_of("GET", "/sse/stream", **options)) or "data" in options or "probe" in str(options)
    assert reply_of(app, environ_of("GET", "/sse/stream", environ_overrides=environ, **options)) is None
    assert app.extensions["sse"].hub.subscribers == 0


@pytest.mark.parametrize("host", ["localhost", "a.example:8000", "[::1]:8000", "127.0.0.1", "A-b_c.example"])
def test_usual_hosts_are_the_lane_s(app: Flask, host: str) -> None:
    assert both(app, "GET", "/sse/stream?channel=a", headers={"Host": host}).body == "stream"


def test_a_probe_is_a_parameter_like_any_other_where_there_is_no_doctor(make_app: MakeApp) -> None:
    app = make_app()
    assert both(app, "GET", "/sse/stream?channel=a&probe=1").body == "stream"


def test_a_request_with_the_app_s_session_is_flask_s(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sessions:
        session_cookie = "session"

        def why_off(self) -> str:
            return ""

    monkeypatch.setattr(lane_of(app), "rule", Sessions())
    path = "/sse/poll?channel=a&timeout=0"
    assert reply_of(app, environ_of("GET", path, headers={"Cookie": "a=b; session=eyA"})) is None
    assert reply_of(app, environ_of("GET", path, headers={"Cookie": "a=b"})) is not None


# The app's own functions


def test_a_rule_is_asked_by_flask_alone_and_its_request_counts_once(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="open", SSE_LIMIT_SUBSCRIBE="3/day")
    asked: list[str] = []

    @sse.authorize
    def rule(channel: str) -> bool:
        asked.append(channel)
        return channel == "a" or abort(404)

    lane = lane_of(app)
    for path, asks in (("?channel=open", False), ("?channel=open&channel=a", True), ("?channel=open&\xff", False)):
        environ = {**environ_of("GET", "/sse/stream"), "QUERY_STRING": path.removeprefix("?")}
        route = lane.route("GET", "/sse/stream")
        assert route
        assert lane.may_ask_app(route, lane.request(environ)) is asks
    environ = environ_of("GET", "/sse/poll?channel=a&timeout=0")
    assert by_lane(app, environ) is None
    assert not asked
    assert environ[COUNTED] == (NOBODY,)
    assert by_flask(app, environ).status == "200 OK"
    assert asked == ["a"]
    public = environ_of("GET", "/sse/poll?channel=open&timeout=0")
    assert by_lane(app, public), "the rule is not needed"
    assert by_flask(app, environ_of("GET", "/sse/poll?channel=b&timeout=0")).status == "404 NOT FOUND"
    assert by_flask(app, environ_of("GET", "/sse/poll?channel=a&timeout=0")).status == "429 TOO MANY REQUESTS"


@pytest.mark.parametrize(
    ("channels", "token", "asks"),
    [
        ("open", "", False),
        ("open&channel=mine", "", True),
        ("mine", signed(claims(subscribe=["mine"])), False),
        ("mine&channel=open&channel=other", signed(claims(subscribe=["mine"])), True),
        ("mine", "rubbish", False),  # it is refused without the rule
    ],
)
def test_the_rule_is_not_needed_where_a_token_settles_the_matter(
    make_app: MakeApp, channels: str, token: str, *, asks: bool
) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="open", SSE_SECRET=SECRET, SSE_PRESENCE="mine")
    sse.authorize(lambda _: True)
    sse.identify(lambda: "ann")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    environ = environ_of("GET", f"/sse/poll?channel={channels}", headers=headers)
    lane = lane_of(app)
    route = lane.route("GET", "/sse/poll")
    assert route
    assert lane.may_ask_app(route, lane.request(environ)) is asks
    assert COUNTED not in environ
    assert (by_lane(app, environ) is None) is asks


def test_a_name_for_presence_is_asked_by_flask_alone(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PRESENCE="room/*", SSE_SECRET=SECRET)
    sse.identify(lambda: "ann")
    for path in ("/sse/stream", "/sse/poll"):
        environ = environ_of("GET", f"{path}?channel=room/1")
        route = lane_of(app).route("GET", path)
        assert route
        assert lane_of(app).may_ask_app(route, lane_of(app).request(environ))
        assert by_lane(app, environ) is None
        assert app.extensions["sse"].presence.count("room/1") == 0
        assert by_lane(app, environ_of("GET", f"{path}?channel=hall")) is not None
        named = {"Authorization": f"Bearer {signed(claims(sub='bob', subscribe=['*']))}"}
        assert by_lane(app, environ_of("GET", f"{path}?channel=room/1", headers=named)) is not None


# Unexpected exceptions


def fault(*_: object, **__: object) -> Any:
    raise RuntimeError("nobody expected this")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.ERROR):
        yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/sse/stream?channel=a", "/sse/poll?channel=a"])
def test_a_fault_before_anything_has_happened_leaves_the_request_to_flask(
    app: Flask, path: str, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr("sse.web.admission.starting_points", fault)
    environ = environ_of("GET", path)
    assert by_lane(app, environ) is None
    assert environ[COUNTED] == (NOBODY,)
    assert not logged()


def test_an_error_status_that_would_end_an_eventsource_is_for_flask_to_replace(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(*_: object, **__: object) -> Any:
        raise SSEError("an error with status 500")

    monkeypatch.setattr("sse.web.admission.starting_points", failed)
    assert by_lane(app, environ_of("GET", "/sse/stream?channel=a")) is None
    assert both(app, "GET", "/sse/poll?channel=a").status == "500 INTERNAL SERVER ERROR"
    seen = by_flask(app, environ_of("GET", "/sse/stream?channel=a"))
    assert (seen.status, b"busy" in bytes(seen.body)) == ("200 OK", True)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["", "&end=cut", "&form=bare"])
@pytest.mark.parametrize("broken", ["sse.transports.stream.Stream.attach", "sse.web.answering._instead"])
def test_a_fault_of_a_stream_that_has_begun_is_logged_and_gives_its_seat_back(
    app: Flask, broken: str, form: str, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(broken, fault)
    monkeypatch.setattr("sse.transports.dialect.busy_for", lambda retry, after: retry + after)  # else it is random
    seen = both(app, "GET", f"/sse/stream?channel=a&last_event_id=a%3D0-0{form}")
    assert app.extensions["sse"].hub.subscribers == 0
    assert logged() == ["Exception on /sse/stream [GET]"] * 2
    assert seen.status == ("503 SERVICE UNAVAILABLE" if "bare" in form else "200 OK")
    assert seen.breaks_off is ("cut" in form)


@pytest.mark.parametrize("form", ["", "&form=bare"])
@pytest.mark.parametrize(
    "broken",
    [
        "sse.transports.stream.Stream.attach",
        "sse.transports.stream.claims_of",
        "sse.transports.stream.opened",
        "sse.work.presence.Presence.enter",
    ],
)
def test_a_fault_at_a_stream_s_opening_is_logged_and_gives_its_seat_back(
    make_app: MakeApp, broken: str, form: str, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    app = make_app(SSE_PRESENCE="a", SSE_PUBLIC="", SSE_SECRET=SECRET)
    token = {"Authorization": f"Bearer {signed(claims(subscribe=['a']))}"}
    if form:  # such a stream has a seat before it is opened
        broken = broken.replace("Stream.attach", "claims_of")
    monkeypatch.setattr(broken, fault)
    reply = reply_of(app, environ_of("GET", f"/sse/stream?channel=a{form}", headers=token))
    assert reply is not None
    stream = reply.body
    assert isinstance(stream, Stream)
    opening = stream.open()
    assert b"busy" in opening
    assert (stream.ended, stream.cuts) == (True, bool(form))
    assert app.extensions["sse"].hub.subscribers == 0
    assert not app.extensions["sse"].revocations._watched
    assert len(logged()) == 1
    stream.close()


def test_a_fault_of_a_poll_that_has_begun_is_a_500_and_gives_its_seat_back(
    app: Flask, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    both(app, "GET", "/sse/poll?channel=a")
    monkeypatch.setattr("sse.transports.poll.Poll.answer", fault)
    seen = both(app, "GET", "/sse/poll?channel=a", headers=ORIGIN)
    assert seen.status == "500 INTERNAL SERVER ERROR"
    assert app.extensions["sse"].hub.subscribers == 0
    assert logged() == ["Exception on /sse/poll [GET]"] * 2


def test_a_store_that_does_not_answer_a_poll_is_told_as_by_flask(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> Any:
        raise StoreUnavailable("a secret of the operator's")

    monkeypatch.setattr("sse.transports.poll.Poll.open", away)
    seen = both(app, "GET", "/sse/poll?channel=a")
    assert seen.status == "503 SERVICE UNAVAILABLE"
    assert isinstance(seen.body, bytes)
    assert b"secret" not in seen.body


def test_a_fault_of_a_publish_request_is_flask_s_until_its_body_is_read(
    app: Flask, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[str]]
) -> None:
    options: dict[str, Any] = {"headers": PUBLISHES, "data": b'{"channel":"a","data":1}'}
    with monkeypatch.context() as patch:
        patch.setattr("sse.access.decision.Access.publisher", fault)
        assert by_lane(app, environ_of("POST", "/sse/publish", **options)) is None
        assert not logged()
    monkeypatch.setattr("sse.access.decision.Access.publish", fault)
    assert both(app, "POST", "/sse/publish", **options).status == "500 INTERNAL SERVER ERROR"
    assert logged() == ["Exception on /sse/publish [POST]"] * 2


# Publish requests in three steps


def test_requests_that_are_stored_together_are_answered_each_by_itself(
    app: Flask, logged: Callable[[], list[str]]
) -> None:
    lane = lane_of(app)
    prepared = []
    for channel, key in (("a", "1"), ("b", "2"), ("c", "1")):
        environ = environ_of("POST", f"/sse/publish/{channel}", headers=PUBLISHES | {"Idempotency-Key": key}, data=b"x")
        route = lane.route("POST", environ["PATH_INFO"])
        assert route
        request = lane.request(environ)
        ready = lane.prepare(route, request)
        assert isinstance(ready, Prepared)
        prepared.append((request, ready))
    outcomes = lane.publish_each([ready.publications for _, ready in prepared])
    replies = [
        lane.published(request, ready, outcome) for (request, ready), outcome in zip(prepared, outcomes, strict=True)
    ]
    assert [reply.status for reply in replies] == ["201 CREATED"] * 3
    request, ready = prepared[0]
    for outcome, status in (
        (StoreUnavailable("away", "wait"), "503 SERVICE UNAVAILABLE"),
        (RuntimeError("nobody expected this"), "500 INTERNAL SERVER ERROR"),
        (SystemExit(), "500 INTERNAL SERVER ERROR"),
    ):
        assert lane.published(request, ready, outcome).status == status
    assert logged() == ["Exception on /sse/publish/a [POST]"] * 2


@pytest.mark.parametrize(
    ("headers", "status"), [({}, "401 UNAUTHORIZED"), ({"Content-Encoding": "gzip"}, "415 UNSUPPORTED MEDIA TYPE")]
)
def test_a_publish_request_that_is_refused_is_answered_before_anything_is_stored(
    app: Flask, headers: Mapping[str, str], status: str
) -> None:
    lane = lane_of(app)
    headers = {**PUBLISHES, **headers} if headers else {}
    environ = environ_of("POST", "/sse/publish/a", headers=headers, data=b"x")
    route = lane.route("POST", "/sse/publish/a")
    assert route
    refused = lane.prepare(route, lane.request(environ))
    assert isinstance(refused, Reply)
    assert refused.status == status


def test_a_publish_request_is_flask_s_until_its_body_is_read_in_steps_too(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lane_of(app)

    def prepared(**overrides: str) -> object:
        environ = environ_of("POST", "/sse/publish/a", headers=PUBLISHES, data=b"x", environ_overrides=overrides)
        route = lane.route("POST", "/sse/publish/a")
        assert route
        return lane.prepare(route, lane.request(environ))

    assert isinstance(prepared(), Prepared)
    assert prepared(SERVER_PROTOCOL="HTTP/1.0") is None
    with monkeypatch.context() as patch:
        patch.setattr("sse.access.decision.Access.publisher", fault)
        assert prepared() is None
    monkeypatch.setattr("sse.access.decision.Access.publish", fault)
    failed = prepared()
    assert isinstance(failed, Reply)
    assert failed.status == "500 INTERNAL SERVER ERROR"


def test_a_first_refusal_by_the_lane_tells_of_settings_that_came_late(make_app: MakeApp) -> None:
    app = make_app()
    called: list[bool] = []
    app.extensions["sse"].at_first_use = lambda: called.append(True)
    assert by_lane(app, environ_of("GET", "/sse/stream")) is not None
    assert called == [True]


def test_equal_answers_have_the_same_headers_object(app: Flask) -> None:
    def headers() -> object:
        reply = reply_of(app, environ_of("GET", "/sse/stream?channel=a", headers=ORIGIN))
        assert reply is not None
        return reply.headers

    assert headers() is headers()
