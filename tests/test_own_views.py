"""`SSE.subscribe`: a view of the app answers with channels, as the routes for streams and polls would."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Blueprint, Flask, Response, abort, make_response, request
from flask_cors import CORS, cross_origin
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from sse import SSE, InvalidEvent
from sse.web.answers import ALLOWED_HEADERS
from tests import client as wire
from tests.conftest import MakeApp
from tests.fuzzed_requests import PIECES
from tests.publishing import publish_in_app
from tests.servers import wait_until
from tests.tokens import SECRET

ORIGIN = "https://a.example"
VARY = "Origin, Cookie, Authorization, Last-Event-ID, Accept"
JSON = {"Accept": "application/json"}
MakeView = Callable[..., Flask]


@pytest.fixture
def make_view(make_app: MakeApp, store_url: str | None) -> MakeView:
    """Return a function that makes an app whose view /own subscribes with the arguments, over each store."""

    def make(*channels: str, settings: dict[str, object] | None = None, **arguments: Any) -> Flask:
        sse = SSE()
        app = make_app(sse, **{"SSE_PUBLIC": "", "SSE_REDIS_URL": store_url, **(settings or {})})
        pages = Blueprint("pages", __name__)

        @pages.route("/own", methods=["GET", "POST"])
        def own() -> Response:
            return sse.subscribe(*(channels or ("a",)), **arguments)

        app.register_blueprint(pages)
        return app

    return make


@pytest.fixture
def small(make_app: MakeApp) -> tuple[Flask, SSE]:
    """An app over the memory store, and its SSE. No channel is public."""
    sse = SSE()
    return make_app(sse, SSE_PUBLIC="", SSE_ORIGINS=[ORIGIN]), sse


def blocks(answer: TestResponse, count: int) -> list[wire.Event]:
    """Return the first blocks of a stream."""
    parser, taken = wire.Parser(), list[wire.Event]()
    for chunk in answer.iter_encoded():
        taken += parser.feed(chunk)
        if len(taken) >= count:
            break
    return taken[:count]


# Streams and polls


def test_a_stream_of_a_view_is_that_of_the_route(make_view: MakeView) -> None:
    app = make_view("a", "b")
    [id] = publish_in_app(app, "a", "before")
    publish_in_app(app, "a", "after")
    own = app.test_client().get("/own", headers={"Last-Event-ID": f"{id}~b=0-0"})
    with closing(own):
        opened, _, reset, event = blocks(own, 4)
    app.config["SSE_PUBLIC"] = "*"
    assert dict(own.headers) == {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache, no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Vary": VARY,
    }
    assert {name: channel["resumed"] for name, channel in opened.json()["channels"].items()} == {"a": True, "b": False}
    assert (reset.event, reset.json()["channel"]) == ("sse.reset", "b")
    assert event.data == "after"


@pytest.mark.parametrize(
    ("accept", "is_poll"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/event-stream", False),
        ("application/json, text/event-stream", False),
        ("application/json, text/plain, */*", False),
        ("text/html", False),
        ("application/json", True),
        ("application/*", True),
        ("application/json, */*;q=0.5", True),
        ("text/event-stream;q=0.9, application/json", True),
        ("text/event-stream, application/json;q=0.9", False),
        ("application/json;q=0", False),
    ],
)
def test_accept_decides_between_stream_and_poll(small: tuple[Flask, SSE], accept: str | None, is_poll: bool) -> None:
    app, sse = small
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    answer = app.test_client().get("/own?timeout=0", headers=None if accept is None else {"Accept": accept})
    answer.close()
    assert answer.mimetype == ("application/json" if is_poll else "text/event-stream")
    assert answer.headers["Vary"] == VARY


def test_a_poll_of_a_view_goes_on_where_a_stream_was(make_view: MakeView) -> None:
    app = make_view()
    publish_in_app(app, "a", "one", "two")
    client = app.test_client()
    with closing(client.get("/own?replay=2")) as stream:
        first = blocks(stream, 3)[2]
    answer = client.get(f"/own?timeout=5&last_event_id={first.id}", headers=JSON)
    assert [event["data"] for event in answer.json["events"]] == ["two"]
    waiting = client.get(f"/own?timeout=0&last_event_id={answer.json['last_event_id']}", headers=JSON)
    assert (waiting.json["events"], waiting.json["resets"]) == ([], [])


def test_a_view_works_by_post_whether_its_body_was_read_or_is_small(make_view: MakeView) -> None:
    app = make_view()

    @app.before_request
    def read() -> None:
        if request.headers.get("X-Read") == "data":
            request.get_data()
        elif request.headers.get("X-Read") == "form":
            assert request.form["x"]
        elif request.headers.get("X-Read") == "stream":
            request.stream.read()

    client = app.test_client()
    long = b"x=" + b"1" * 100_000
    for read_by, body, status in (
        ("data", long, 200),
        ("form", long, 200),
        ("stream", long, 200),
        ("nothing", b"x=1", 200),
        ("nothing", long, 413),
    ):
        options: dict[str, Any] = {"data": body, "content_type": "application/x-www-form-urlencoded"}
        poll = client.post("/own?timeout=0", headers={**JSON, "X-Read": read_by}, **options)
        assert poll.status_code == status, read_by
        with closing(client.post("/own", headers={"X-Read": read_by}, **options)) as stream:
            assert stream.status_code == status
            if status == 200:
                assert blocks(stream, 1)[0].event == "sse.open"


def test_head_has_the_headers_and_takes_no_seat(make_view: MakeView) -> None:
    app = make_view()
    client = app.test_client()
    for headers, kind in ((None, "text/event-stream"), (JSON, "application/json")):
        for query in ("", "?form=bare"):
            answer = client.head(f"/own{query}", headers=headers)
            assert (answer.status_code, answer.mimetype, answer.data) == (200, kind, b"")
    assert app.extensions["sse"].hub.subscribers == 0


# Arguments and the query


def test_arguments_win_over_the_query_whose_channel_and_token_are_ignored(make_view: MakeView) -> None:
    app = make_view("a", replay=1, form="bare", end="cut", settings={"SSE_SECRET": SECRET})
    publish_in_app(app, "a", "one", "two")
    client = app.test_client()
    query = "channel=b&channel=*&token=x&token=y&replay=0&form=other&end=other"
    with closing(client.get(f"/own?{query}")) as stream:
        assert next(stream.iter_encoded()).startswith(b': open {"channels":{"a":')
    answer = client.get(f"/own?{query}&timeout=0", headers=JSON)
    assert [event["data"] for event in answer.json["events"]] == ["two"]


def test_the_query_decides_what_the_arguments_leave_open(make_view: MakeView) -> None:
    app = make_view()
    publish_in_app(app, "a", "one")
    with closing(app.test_client().get("/own?replay=1&types=data&ids=delta&heartbeat=3")) as stream:
        opened, _, event = blocks(stream, 3)
    assert (opened.json()["heartbeat"], opened.json()["replay"], event.event) == (3, 1, "sse.event")


def test_a_lifetime_is_the_view_s(make_view: MakeView) -> None:
    with closing(make_view(lifetime=100).test_client().get("/own")) as stream:
        assert 80 <= blocks(stream, 1)[0].json()["lifetime"] <= 120


def test_headers_of_the_view_are_on_streams_polls_and_errors(make_view: MakeView) -> None:
    client = make_view(headers={"x-vercel-ai-ui-message-stream": "v1", "Vary": "X-Other"}).test_client()
    for query, headers in (("", None), ("timeout=0", JSON), ("replay=x", None)):
        with closing(client.get(f"/own?{query}", headers=headers)) as answer:
            assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert answer.headers["Vary"] == f"{VARY.removesuffix(', Accept')}, X-Other, Accept"


@pytest.mark.parametrize("carrier", ["header", "parameter"])
def test_a_channel_that_the_last_event_id_lacks_is_reset_in_the_parameter_as_in_the_header(
    make_view: MakeView, carrier: str
) -> None:
    app = make_view("a", "b")
    [id] = publish_in_app(app, "a", "one")
    query, headers = ("", {"Last-Event-ID": id}) if carrier == "header" else (f"last_event_id={id}", {})
    answer = app.test_client().get(f"/own?timeout=5&{query}", headers={**JSON, **headers})
    assert [(reset["channel"], reset["reason"]) for reset in answer.json["resets"]] == [("b", "missing")]
    assert {entry.partition("=")[0] for entry in answer.json["last_event_id"].split("~")} == {"a", "b"}


def test_without_a_last_event_id_nothing_is_reset(make_view: MakeView) -> None:
    answer = make_view("a", "b").test_client().get("/own?timeout=1", headers=JSON)
    assert answer.json["resets"] == []


@pytest.mark.parametrize(
    ("channels", "arguments", "fault"),
    [
        ((), {}, "names no channel"),
        ((["a", "b"],), {}, r"subscribe\(\*channels\)"),
        ((5,), {}, "a channel is 5"),
        (("a",), {"sub": ""}, "sub is ''"),
        (("a",), {"sub": 7}, "sub is 7"),
        (("a",), {"replay": -1}, "replay is -1"),
        (("a",), {"replay": "5"}, "replay is '5'"),
        (("a",), {"lifetime": 0}, "lifetime is 0"),
        (("a",), {"lifetime": "60"}, "lifetime is '60'"),
        (("a",), {"lifetime": float("inf")}, "lifetime is inf"),
        (("a",), {"form": "plain"}, "form is 'plain'"),
        (("a",), {"end": True}, "end True"),
        (("a",), {"headers": {"content-length": "5"}}, "'content-length', which the service sets"),
    ],
)
def test_a_wrong_argument_is_told_to_the_app(
    small: tuple[Flask, SSE], channels: tuple[Any, ...], arguments: dict[str, Any], fault: str
) -> None:
    app, sse = small
    with app.test_request_context("/own"), pytest.raises(InvalidEvent, match=fault):
        sse.subscribe(*channels, **arguments)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/own/a b", "invalid_channel"),
        ("/own/sse.x", "invalid_channel"),
        ("/own/a?replay=x", "bad_request"),
        ("/own/a?ids=delta&form=bare", "bad_request"),
        ("/own/a?last_event_id=a=1-1&last_event_id=b=1-1", "bad_request"),
    ],
)
def test_a_fault_in_the_request_is_answered_in_the_form_of_the_routes(
    small: tuple[Flask, SSE], path: str, code: str
) -> None:
    app, sse = small
    app.add_url_rule("/own/<name>", view_func=lambda name: sse.subscribe(name))
    answer = app.test_client().get(path, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.json["error"]["code"]) == (400, code)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


# Limits


def test_limits_by_address_and_seats_hold(make_view: MakeView) -> None:
    app = make_view(settings={"SSE_LIMIT_SUBSCRIBE": "2/minute", "SSE_PROXIES": 1, "SSE_MAX_SUBSCRIBERS": 1})
    client = app.test_client()
    from_outside = {"X-Forwarded-For": "203.0.113.7"}
    with closing(client.get("/own", headers=from_outside)) as first:
        assert blocks(first, 1)[0].event == "sse.open"
        with closing(client.get("/own", headers=from_outside)) as second:
            assert [block.json()["reason"] for block in blocks(second, 1)] == ["busy"]
    with closing(client.get("/own", headers=from_outside)) as third:
        [closed] = blocks(third, 1)
        assert (third.status_code, closed.json()["reason"]) == (200, "busy")
        assert closed.retry is not None
        assert closed.retry > 3000
    answer = client.get("/own", headers={**JSON, **from_outside})
    assert (answer.status_code, answer.json["error"]["limit"]) == (429, "SSE_LIMIT_SUBSCRIBE")
    bare = client.get("/own?form=bare", headers=from_outside)
    assert (bare.status_code, bare.json["error"]["code"]) == (503, "busy")


def test_a_store_that_is_away_makes_a_stream_busy_and_a_poll_503(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL="redis://127.0.0.1:1", SSE_PUBLIC="", SSE_REDIS_TIMEOUT=1)
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a", sub="ann"))
    with closing(app.test_client().get("/own")) as stream:
        assert [block.json()["reason"] for block in blocks(stream, 1)] == ["busy"]
    assert app.test_client().get("/own", headers=JSON).status_code == 503


# The right


@pytest.mark.parametrize("revoked", [{"sub": "ann"}, {"channel": "a"}])
def test_a_revocation_ends_the_stream_and_a_new_request_is_judged_by_the_view_alone(
    make_view: MakeView, revoked: dict[str, str]
) -> None:
    app = make_view("a", "b", sub="ann")
    sse = SSE()
    client = app.test_client()
    for _ in range(2):
        with closing(client.get("/own")) as stream:
            chunks = stream.iter_encoded()
            next(chunks)
            begun = time.monotonic()
            with app.app_context():
                sse.revoke(**revoked)  # type: ignore[arg-type]
            last = wire.Parser().feed(b"".join(chunks))[-1]
            assert time.monotonic() - begun < 2
            assert (last.event, last.json()["reason"]) == ("sse.close", "expired")
        assert client.get("/own?timeout=0", headers=JSON).status_code == 200


def test_a_revocation_of_another_reader_or_an_earlier_one_ends_nothing(make_view: MakeView) -> None:
    app = make_view("a", sub="ann")
    sse = SSE()
    with app.app_context():
        sse.revoke(sub="ann")
    with closing(app.test_client().get("/own")) as stream:
        chunks = stream.iter_encoded()
        next(chunks)
        with app.app_context():
            sse.revoke(sub="bob")
            sse.revoke(channel="b")
        publish_in_app(app, "a", "still here")
        assert b"still here" in next(chunks)


def test_neither_a_token_nor_the_app_s_rule_is_asked(small: tuple[Flask, SSE]) -> None:
    app, sse = small
    asked: list[str] = []
    sse.authorize(lambda channel: bool(asked.append(channel)))
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    assert app.test_client().get("/own?timeout=0", headers=JSON).status_code == 200
    assert asked == []


def test_a_public_channel_without_a_reader_s_name_needs_no_right(make_view: MakeView) -> None:
    app = make_view(settings={"SSE_PUBLIC": "a"})
    with closing(app.test_client().get("/own")) as stream:
        blocks(stream, 1)
        with app.app_context():
            SSE().revoke(channel="a")
        publish_in_app(app, "a", "still here")
        assert b"still here" in next(stream.iter_encoded())


# The app around it


def test_cors_is_the_service_s_unless_the_app_has_set_it(small: tuple[Flask, SSE]) -> None:
    app, sse = small
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    decorated = cross_origin(origins="https://b.example")(lambda: sse.subscribe("a"))
    app.add_url_rule("/decorated", "decorated", view_func=decorated)
    app.add_url_rule(
        "/by-hand",
        "by hand",
        view_func=lambda: sse.subscribe("a", headers={"Access-Control-Allow-Origin": "https://c.example"}),
    )
    client = app.test_client()
    for origin in (ORIGIN, "https://b.example", "https://evil.example"):
        for path, allowed in (("own", ORIGIN), ("decorated", "https://b.example"), ("by-hand", "https://c.example")):
            answer = client.get(f"/{path}?timeout=0", headers={**JSON, "Origin": origin})
            told = answer.headers.getlist("Access-Control-Allow-Origin")
            assert told in ([allowed], []), (path, origin)
            assert bool(told) == (origin == allowed or path == "by-hand")


def test_a_cors_extension_of_the_app_adds_no_second_header(small: tuple[Flask, SSE]) -> None:
    app, sse = small
    CORS(app, origins="*")
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    answer = app.test_client().get("/own?timeout=0", headers={**JSON, "Origin": ORIGIN})
    assert answer.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]
    assert answer.headers.getlist("Access-Control-Allow-Credentials") == ["true"]


def test_an_answer_that_the_app_gives_in_place_of_the_stream_has_no_header_of_the_service(
    small: tuple[Flask, SSE],
) -> None:
    app, sse = small

    def own() -> Response:
        sse.subscribe("a").close()
        return make_response("a page")

    app.add_url_rule("/own", view_func=own)
    answer = app.test_client().get("/own", headers={"Origin": ORIGIN})
    assert answer.text == "a page"
    assert not {"Access-Control-Allow-Origin", "Cache-Control", "Referrer-Policy"} & {
        name for name, _ in answer.headers
    }


def test_a_bare_stream_that_the_app_drops_gives_its_seat_back(small: tuple[Flask, SSE]) -> None:
    app, sse = small

    def own() -> str:
        sse.subscribe("a", form="bare")
        return "a page"

    app.add_url_rule("/own", view_func=own)
    assert app.test_client().get("/own").text == "a page"
    wait_until(lambda: app.extensions["sse"].hub.subscribers == 0)


def test_a_429_or_5xx_of_the_app_becomes_busy_where_a_view_has_answered_with_a_stream(
    small: tuple[Flask, SSE],
) -> None:
    app, sse = small
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.before_request
    def before() -> None:
        if status := request.headers.get("X-Before"):
            abort(int(status))

    @app.after_request
    def after(response: Response) -> Response:
        response.status_code = int(request.headers.get("X-After", response.status_code))
        return response

    def own() -> Response | str:
        if request.headers.get("X-Within"):
            raise RuntimeError("the database is away")
        return "a page" if "text/html" in request.accept_mimetypes else sse.subscribe("a")

    app.add_url_rule("/own", view_func=own)
    app.add_url_rule("/page", "page", view_func=lambda: "another page")
    client = app.test_client()
    source = {"Accept": "text/event-stream"}
    assert client.get("/own", headers={**source, "X-Before": "503"}).status_code == 503  # nothing is known of it yet
    client.get("/own", headers=source).close()
    for refusal in ({"X-Before": "503"}, {"X-Before": "429"}, {"X-Within": "1"}, {"X-After": "502"}):
        with closing(client.get("/own", headers={**source, **refusal, "Origin": ORIGIN})) as answer:
            assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), refusal
            assert [block.json()["reason"] for block in blocks(answer, 1)] == ["busy"]
            assert (answer.headers["Vary"], answer.headers["Access-Control-Allow-Origin"]) == (VARY, ORIGIN)
        page = client.get("/own", headers={"Accept": "text/html,*/*;q=0.8", **refusal})
        assert page.status_code in (429, 500, 502, 503)
        assert client.get("/page", headers={**source, "X-Before": "503"}).status_code == 503
    bare = client.get("/own?form=bare", headers={**source, "X-Before": "503"})
    assert (bare.status_code, bare.json["error"]["code"]) == (503, "busy")
    assert bare.headers["Retry-After"]
    assert client.get("/own", headers={**JSON, "X-After": "503"}).status_code == 503


@pytest.mark.parametrize("query", ["", "?form=bare"])
def test_a_hook_that_reads_the_body_gets_an_empty_one_and_the_client_the_stream(
    small: tuple[Flask, SSE], query: str
) -> None:
    app, sse = small
    app.after_request(lambda response: (response.get_data() and response) or response)
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    with closing(app.test_client().get(f"/own{query}")) as stream:
        assert b"open" in next(stream.iter_encoded())
        assert app.extensions["sse"].hub.subscribers == 1


def test_a_preflight_is_answered_by_the_app(small: tuple[Flask, SSE]) -> None:
    app, sse = small
    CORS(app, resources={"/own": {"origins": ORIGIN, "allow_headers": list(ALLOWED_HEADERS)}})
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "Last-Event-ID",
    }
    answer = app.test_client().options("/own", headers=asked)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Headers"]) == (200, "Last-Event-ID")


def test_two_apps_of_one_sse_answer_each_with_its_own_settings(make_app: MakeApp) -> None:
    sse = SSE()
    for heartbeat in (5, 7):
        app = make_app(sse, SSE_HEARTBEAT=heartbeat)
        app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"))
        with closing(app.test_client().get("/own")) as stream:
            assert blocks(stream, 1)[0].json()["heartbeat"] == heartbeat


# Runs and presence


def test_a_view_may_begin_a_run_and_answer_with_it_as_often_as_it_is_asked(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLIC="")

    def ask() -> Response:
        sse.run("answers/7", iter(["It ", "rains."]))
        return sse.subscribe("answers/7", form="bare", headers={"x-vercel-ai-ui-message-stream": "v1"})

    app.add_url_rule("/ask", view_func=ask, methods=["POST"])
    client = app.test_client()
    for _ in range(2):
        parser = wire.Parser(bare=True)
        with closing(client.post("/ask", data="The weather?")) as answer:
            events = parser.feed(answer.data)
        assert "".join(event.data or "" for event in events) == "It rains."
        assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert client.post("/ask", headers={"Last-Event-ID": events[-1].id}).status_code == 204
    told = client.post("/ask", headers=JSON).json
    assert (told["ended"], "".join(event["data"] for event in told["events"])) == ({"answers/7": "done"}, "It rains.")


@pytest.mark.parametrize("public", ["", "a"])
def test_presence_knows_a_reader_by_the_name_that_the_view_gives(make_view: MakeView, public: str) -> None:
    app = make_view("a", sub="ann", settings={"SSE_PRESENCE": "a", "SSE_PUBLIC": public})
    with closing(app.test_client().get("/own")) as stream:
        next(stream.iter_encoded())

        def members() -> object:
            with app.app_context():
                return SSE().members("a")

        wait_until(lambda: members() == [{"sub": "ann", "connections": 1}], 5)


# Any input


PARAMETERS = (
    "timeout",
    "max_bytes",
    "x",
    "channel",
    "token",
    "last_event_id",
    "lastEventId",
    "replay",
    "ids",
    "types",
    "form",
    "end",
    "heartbeat",
)
VALUES = (*PIECES, "a", "b", "private", "a=1-1", "delta", "data", "bare", "cut", "5", "-5", "~", "private=0-0")
ACCEPTED = ("", "*/*", "application/json", "text/event-stream", "application/json;q=x", ",;=", "a/b;q=1e9", "\xff")


@settings(max_examples=300)
@given(
    query=st.lists(st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(VALUES)), max_size=6),
    accept=st.sampled_from(ACCEPTED),
    last_event_id=st.sampled_from(("", *VALUES)),
    method=st.sampled_from(("GET", "HEAD", "POST")),
)
def test_no_request_reads_another_channel_than_the_view_s_or_is_answered_with_an_error_of_the_server(
    fuzzed: Flask, query: list[tuple[str, str]], accept: str, last_event_id: str, method: str
) -> None:
    headers = {"Accept": accept, "Last-Event-ID": last_event_id.encode("ascii", "replace").decode()}
    headers = {name: re.sub("[\r\n\0]", "", text) for name, text in headers.items()}
    path = f"/own?{urlencode([(n, '0' if n == 'timeout' else v) for n, v in query])}"
    with closing(fuzzed.test_client().open(path, method=method, headers=headers, buffered=False)) as answer:
        assert answer.status_code in (200, 400, 410), answer.status
        body = next(answer.iter_encoded(), b"") if answer.mimetype == "text/event-stream" else answer.data
    assert b"the private news" not in body
    for name in ("private", "b"):
        assert f'"{name}":{{"position"'.encode() not in body
    if method != "HEAD" and answer.status_code == 200 and answer.mimetype == "application/json":
        assert [entry.partition("=")[0] for entry in json.loads(body)["last_event_id"].split("~")] == ["a"]
    elif method != "HEAD" and answer.status_code == 200:
        assert b'{"channels":{"a":{' in body


@pytest.fixture
def fuzzed() -> Iterator[Flask]:
    app, sse = Flask("tests"), SSE()
    app.config["SSE_PUBLIC"] = "b"
    sse.init_app(app)
    app.add_url_rule("/own", view_func=lambda: sse.subscribe("a"), methods=["GET", "POST"])
    for channel in ("a", "b", "private"):
        publish_in_app(app, channel, "the private news" if channel == "private" else "news")
    yield app
    sse.close()
