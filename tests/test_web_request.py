"""A request as a value, read without Flask, and the order of refusals if a request has several faults."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from itertools import combinations, islice
from typing import Any, NamedTuple

import flask
import pytest
from flask import Flask
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import ImmutableMultiDict
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request as WerkzeugRequest

from sse.access.decision import Credentials
from sse.config import Config
from sse.errors import RequestError, TooLarge, UnsupportedMedia
from sse.event import Event
from sse.web.request import (
    PollRequest,
    Request,
    StreamRequest,
    Subscription,
    _polls,
    read_address,
    read_body,
    read_credential,
    read_idempotency_key,
    read_poll,
    read_publish,
    read_raw,
    read_request_id,
    read_stream,
    read_ticket,
)
from tests.conftest import MakeApp
from tests.tokens import KEY, SECRET, claims, signed

TOKEN = "token"  # replaced by a token that is made when the test runs


class Fault(NamedTuple):
    """A fault of a request: the parts of it, or the settings, that differ from a valid request."""

    status: int
    """Of the answer to a request in which nothing else is wrong; `says` stands in that answer."""
    says: str
    parts: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}
    spent: bool = False
    """Whether a request before has used up a limit."""


PUT = Fault(405, "'PUT' is not for this address", {"method": "PUT"})
OFTEN = Fault(429, "more than 1 per 1 day, by SSE_LIMIT_SUBSCRIBE", {}, {"SSE_LIMIT_SUBSCRIBE": "1/day"}, spent=True)
LENGTH = Fault(400, "Content-Length is 'x'", {"length": "x"})


def of_readers(busy: int, *, lost: Fault) -> list[Fault]:
    """Return the faults of a stream's or poll's request; `busy` is the status of one that may come again, 0 if its own.

    `lost` is the answer to a position that cannot be continued.
    """
    return [
        PUT,
        Fault(413, "the body is over 16384 bytes", {"body": b"x" * 20_000}),
        Fault(400, "replay is 'x'", {"replay": "replay=x"}),
        OFTEN._replace(status=busy or 429),
        Fault(401, "not allowed to read without a token: closed", {"channel": "channel=closed"}),
        Fault(busy or 503, "the memory store is for one process", {"multiprocess": True}),
        lost._replace(parts={"position": "last_event_id=a%3D9-9"}),
    ]


def of_publishers(*own: Fault, body: Fault) -> list[Fault]:
    """Return the faults of a publisher's request; `own` and `body` are those of one route alone."""
    return [
        PUT,
        Fault(401, "no publishing key", {"authorization": "Bearer wrong"}),
        *own,
        Fault(415, "Content-Encoding is 'gzip'", {"coding": "gzip"}),
        LENGTH,
        body,
        Fault(403, "not allowed to publish on: other", {"channel": "other"}),
        Fault(503, "the memory store is for one process", {"multiprocess": True}),
        Fault(400, "idempotency key '' is not valid", {"idempotency_key": ""}),
        Fault(413, "data has 50 bytes", {"data": "y" * 50}, {"SSE_MAX_EVENT_BYTES": 10}),
        Fault(429, "more than 1 per 1 day, by SSE_LIMIT_PUBLISH", {}, {"SSE_LIMIT_PUBLISH": "1/day"}, spent=True),
    ]


# The order in which each route looks for faults: of those that a request has, the first is answered.
ORDER = {
    "stream": of_readers(200, lost=Fault(200, "event: sse.reset")),
    "bare stream": of_readers(503, lost=Fault(410, "channel a cannot be continued")),
    "poll": of_readers(0, lost=Fault(200, '"resets":[{')),
    "ticket": [
        PUT,
        Fault(400, "no channel is named", {"channel": ""}),
        OFTEN,
        Fault(404, "no tickets are made here", {}, {"SSE_SECRET": None}),
        Fault(401, "no token was sent", {"authorization": ""}),
        Fault(403, "not allowed to read: closed", {"channel": "channel=closed"}),
        LENGTH,
    ],
    "publish": of_publishers(
        Fault(415, "Content-Type is 'text/plain'", {"media_type": "text/plain"}),
        body=Fault(400, "JSON", {"tail": b"{"}),
    ),
    "publish/CHANNEL": of_publishers(
        Fault(400, "type is given more than once", {"type": "type=a&type=b"}),
        body=Fault(400, "the body is not UTF-8", {"tail": b"\xff"}),
    ),
}
READER = {"method": "GET", "channel": "channel=a", "length": ""}
PUBLISHER = {"method": "POST", "channel": "a", "data": "hi", "authorization": TOKEN}
GOOD: Mapping[str, Mapping[str, Any]] = {
    "stream": {"path": "stream", **READER},
    "bare stream": {"path": "stream", **READER, "form": "form=bare"},
    "poll": {"path": "poll", **READER, "timeout": "timeout=0"},
    "ticket": {"path": "ticket", **READER, "method": "POST", "authorization": TOKEN},
    "publish": {"path": "publish", **PUBLISHER, "media_type": "application/json"},
    "publish/CHANNEL": {"path": "publish/", **PUBLISHER, "media_type": "text/plain"},
}


def is_possible(faults: tuple[Fault, ...]) -> bool:
    """Return whether one request can have all these faults, which is so if no two are in the same part."""
    parts = [name for fault in faults for name in fault.parts]
    return len(parts) == len(set(parts))


CASES = [
    pytest.param(route, faults, id=f"{route}: {' + '.join(f'{fault.status} {fault.says}' for fault in faults)}")
    for route, order in ORDER.items()
    for count in (1, 2, 3)
    for faults in combinations(order, count)
    if is_possible(faults)
]


def environ_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    path, body = parts["path"], parts.get("body", b"")
    queries = ("channel", "replay", "position", "form", "timeout")
    if path.startswith("publish"):
        queries = ("type",)
        body = parts["data"].encode() + parts.get("tail", b"")
    if path == "publish":
        body = json.dumps({"channel": parts["channel"], "data": parts["data"]}).encode() + parts.get("tail", b"")
    elif path == "publish/":
        path += parts["channel"]
    environ = {
        "REQUEST_METHOD": parts["method"],
        "PATH_INFO": f"/sse/{path}",
        "QUERY_STRING": "&".join(parts[name] for name in queries if parts.get(name)),
        "CONTENT_TYPE": parts.get("media_type", ""),
        "CONTENT_LENGTH": parts.get("length") or str(len(body)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "203.0.113.9",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.multiprocess": parts.get("multiprocess", False),
    }
    headers = {"authorization": "AUTHORIZATION", "coding": "CONTENT_ENCODING", "idempotency_key": "IDEMPOTENCY_KEY"}
    environ |= {f"HTTP_{name}": parts[part] for part, name in headers.items() if part in parts}
    if parts.get("authorization") == TOKEN:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {signed(claims())}"
    return environ


def ask(app: Flask, parts: Mapping[str, Any]) -> tuple[int, str]:
    """Return the status, and the beginning of the body. A stream reports a reset in its second chunk."""
    told: list[str] = []
    body = app.wsgi_app(environ_of(parts), lambda status, _: told.append(status))  # type: ignore[arg-type,return-value]
    try:
        chunks = islice(body, 2 if "position" in parts else 1)
        return int(told[0][:3]), b"".join(chunks).decode()
    finally:
        body.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("route", "faults"), CASES)
def test_of_several_faults_the_first_in_the_order_is_answered(
    route: str, faults: tuple[Fault, ...], make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"SSE_PUBLIC": "a", "SSE_SECRET": SECRET, "SSE_PUBLISH_KEYS": [KEY]}
    parts = dict(GOOD[route])
    for fault in faults:
        settings |= fault.settings
        parts |= fault.parts
    app = make_app(**settings)
    if any(fault.spent for fault in faults):
        service = app.extensions["sse"]
        ask(app, GOOD["poll"] if service.config.limit_subscribe == "1/day" else GOOD["publish"])
    caplog.clear()
    status, body = ask(app, parts)
    reasons = [record.getMessage() for record in caplog.records if "this service is busy" in record.getMessage()]
    told = reasons[0] if reasons else body
    assert status == faults[0].status
    assert [fault for fault in ORDER[route] if fault.says in told] == [faults[0]]


@pytest.mark.parametrize("route", GOOD)
def test_a_request_without_a_fault_is_answered(route: str, make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="a", SSE_SECRET=SECRET, SSE_PUBLISH_KEYS=[KEY])
    status, body = ask(app, GOOD[route])
    assert status == (200 if GOOD[route]["method"] == "GET" else 201)
    assert not [fault for fault in ORDER[route] if fault.says in body]


@pytest.mark.parametrize("route", ["stream", "bare stream", "poll"])
def test_head_is_judged_as_get(route: str, make_app: MakeApp) -> None:
    for fault in ORDER[route][1:6]:
        app = make_app(**{"SSE_PUBLIC": "a", "SSE_SECRET": SECRET, **fault.settings})
        if fault.spent:
            ask(app, GOOD["poll"])
        assert ask(app, {**GOOD[route], **fault.parts, "method": "HEAD"}) == (fault.status, "")


def test_a_token_that_nobody_reads_is_refused_before_the_request_is_counted(make_app: MakeApp) -> None:
    app = make_app(SSE_LIMIT_SUBSCRIBE="1/day")
    unread = {**GOOD["poll"], "position": "token=t"}
    answers = [ask(app, parts) for parts in (unread, GOOD["poll"], unread, GOOD["poll"])]
    assert [status for status, _ in answers] == [400, 200, 400, 429]
    assert all("token is not taken here" in body for _, body in answers[::2])


def test_options_are_told_whatever_else_is_wrong(make_app: MakeApp) -> None:
    faulty = {**GOOD["stream"], "method": "OPTIONS", "channel": "channel=%ff&channel=\xff", "length": "x"}
    assert ask(make_app(), faulty) == (200, "")


# Values, without an app


def request_of(query: str = "", method: str = "GET", body: bytes = b"", **environ: Any) -> Request:
    full = {"wsgi.input": io.BytesIO(body), "wsgi.url_scheme": "http", "CONTENT_LENGTH": str(len(body)), **environ}
    return Request(full, method, query.encode("latin-1"))


NOTHING_FOLLOWS = Subscription(["a"], "", from_header=False, replay=0, tells_replay=False, token="")


def test_a_stream_s_request_is_these_values() -> None:
    config = Config()
    assert read_stream(request_of("channel=a"), config, takes_token=False) == StreamRequest(
        NOTHING_FOLLOWS, config.heartbeat, delta=False, typed=False, bare=False, cut=False
    )
    query = "channel=b/c&channel=a&channel=a&ids=delta&types=data&end=cut&heartbeat=5&replay=3&token=t"
    assert read_stream(request_of(query), config, takes_token=True) == StreamRequest(
        Subscription(["b/c", "a"], "", from_header=False, replay=3, tells_replay=True, token="t"),
        5,
        delta=True,
        typed=True,
        bare=False,
        cut=True,
    )


@pytest.mark.parametrize(
    ("query", "header", "text", "from_header"),
    [
        ("last_event_id=a%3D1-2&replay=3", None, "a=1-2", False),
        ("lastEventId=~~&replay=3", "", "~~", False),
        ("lastEventId=other&replay=3", "a=1-2", "a=1-2", True),
        ("last_event_id=&replay=3", "no position", "no position", True),
    ],
)
def test_a_last_event_id_is_given_as_it_was_sent(query: str, header: str | None, text: str, from_header: bool) -> None:
    headers = {} if header is None else {"HTTP_LAST_EVENT_ID": header}
    asked = read_stream(request_of(f"channel=a&{query}", **headers), Config(), takes_token=False).subscription
    assert (asked.last_event_id, asked.from_header) == (text, from_header)
    assert (asked.replay, asked.tells_replay) == (0, True), (
        "a last event id says where to go on, so nothing is replayed"
    )


def test_a_poll_s_request_is_these_values() -> None:
    config = Config()
    assert read_poll(request_of("channel=a"), config, takes_token=False) == PollRequest(
        NOTHING_FOLLOWS, config.poll_timeout, None
    )
    asked = read_poll(request_of("channel=a&timeout=999&max_bytes=2000"), config, takes_token=False)
    assert (asked.timeout, asked.max_bytes) == (60, 1792)


@pytest.mark.parametrize("read", [read_stream, read_poll])
@pytest.mark.parametrize(
    ("query", "is_kept"),
    [
        ("channel=a%2Fb&last_event_id=a%2Fb%3D1-2", True),
        ("channel=a&replay=2&channel=b", True),
        ("channel=a&token=secret", False),
        ("channel=a&%74oken=secret", False),
        ("channel=a&key=secret", False),
        ("channel=a&client=12345678", False),
        ("channel=a&last_event_id=" + "a" * 512, False),
    ],
)
def test_what_was_read_of_a_query_is_kept_unless_it_may_hold_a_secret(
    read: Callable[..., StreamRequest | PollRequest], query: str, is_kept: bool
) -> None:
    config = Config()
    first, second = [read(request_of(query), config, takes_token=True) for _ in range(2)]
    assert first == second
    assert (first is second) is is_kept
    other = read(request_of(query, HTTP_LAST_EVENT_ID="a=3-4"), config, takes_token=True)
    assert (other.subscription.last_event_id, other.subscription.from_header) == ("a=3-4", True)
    assert read(request_of(query), config, takes_token=True) == first


def test_what_was_read_of_a_query_is_kept_for_the_settings_that_it_was_read_by() -> None:
    for default in (5, 7):
        config = Config.load({"SSE_POLL_TIMEOUT": default, "SSE_HEARTBEAT": default})
        assert read_poll(request_of("channel=a"), config, takes_token=False).timeout == default
        assert read_stream(request_of("channel=a"), config, takes_token=False).heartbeat == default
    assert len(read_poll(request_of("channel=a&channel=b"), Config(), takes_token=False).subscription.channels) == 2
    with pytest.raises(RequestError, match="SSE_MAX_CHANNELS is 1"):
        read_poll(request_of("channel=a&channel=b"), Config.load({"SSE_MAX_CHANNELS": 1}), takes_token=False)
    asked = [
        read_poll(request_of("channel=a&replay=9"), Config.load({"SSE_RING": ring}), takes_token=False)
        for ring in (9, 5)
    ]
    assert [poll.subscription.replay for poll in asked] == [9, 5]


def test_a_fault_in_a_query_is_found_each_time_and_only_so_many_queries_are_kept() -> None:
    config = Config()
    for number in range(1200):
        read_poll(request_of(f"channel=a{number}"), config, takes_token=False)
        with pytest.raises(RequestError):
            read_poll(request_of("channel=."), config, takes_token=False)
    assert 0 < len(_polls) <= 512


def test_a_ticket_s_request_is_its_channels() -> None:
    assert read_ticket(request_of("channel=a&channel=b/c"), Config()) == ["a", "b/c"]


def test_a_publication_is_events_on_channels() -> None:
    body = json.dumps({"channel": ["a", "b"], "data": "x", "type": "t"}).encode()
    asked = request_of(body=body, CONTENT_TYPE="Application/JSON; charset=UTF-8")
    assert read_publish(asked, Config()) == [("a", Event("x", "t")), ("b", Event("x", "t"))]
    asked = request_of("type=t", body="é".encode(), CONTENT_TYPE="text/plain")
    assert read_raw(asked, "a/b") == [("a/b", Event("é", "t"))]
    with pytest.raises(UnsupportedMedia, match="charset is 'latin1'"):
        read_raw(request_of(body=b"x", CONTENT_TYPE='text/plain; charset="latin1"'), "a")


def test_a_credential_is_taken_from_header_cookie_and_query() -> None:
    config = Config.load({"SSE_COOKIE": "tok", "SSE_ORIGINS": "https://a.example"})
    environ = {"HTTP_AUTHORIZATION": "Bearer x", "HTTP_COOKIE": 'x=1; tok="c"; tok=d', "HTTP_HOST": "own.example"}
    assert read_credential(request_of(**environ), "t", config) == Credentials("Bearer x", "c", "t", True)
    for origin, counts in (
        ("http://own.example", True),
        ("https://a.example", True),
        ("https://own.example", False),
    ):
        assert read_credential(request_of(**environ, HTTP_ORIGIN=origin), "", config).cookie_counts is counts


def test_an_address_is_the_proxy_s_word_only_where_one_is_trusted() -> None:
    environ = {"REMOTE_ADDR": "203.0.113.9", "HTTP_X_FORWARDED_FOR": "198.51.100.4"}
    assert [read_address(request_of(**environ), proxies) for proxies in (0, 1)] == ["203.0.113.9", "198.51.100.4"]


def test_an_idempotency_key_is_read_or_refused() -> None:
    assert read_idempotency_key(request_of()) is None
    assert read_idempotency_key(request_of(HTTP_IDEMPOTENCY_KEY="k")) == "k"
    with pytest.raises(RequestError):
        read_idempotency_key(request_of(HTTP_IDEMPOTENCY_KEY=""))


def test_a_body_ends_where_its_length_says_and_is_refused_over_1_mib() -> None:
    assert read_body(request_of(body=b"abc", CONTENT_LENGTH="2")) == b"ab"
    assert len(read_body(request_of(body=b"x" * (1 << 20)))) == 1 << 20
    with pytest.raises(TooLarge):
        read_body(request_of(body=b"x" * ((1 << 20) + 1)))
    with pytest.raises(RequestError, match="breaks off"):
        read_body(request_of(body=b"abc", CONTENT_LENGTH="4"))


def test_a_body_that_is_read_in_parts_ends_where_its_length_says() -> None:
    asked = request_of(body=b"abcnext", CONTENT_LENGTH="3")
    assert (asked.stream().read(1), asked.stream().read(), asked.data(10)) == (b"a", b"bc", b"")


@pytest.mark.parametrize("length", ["", "0", "2", "3", "4", "1048577", "x"])
def test_a_body_in_memory_is_read_as_any_other(length: str) -> None:
    found: list[object] = []
    for body in (io.BytesIO(b"abc"), io.BufferedReader(io.BytesIO(b"abc"))):  # type: ignore[type-var]
        given = {"wsgi.input": body, "wsgi.input_terminated": True, "CONTENT_LENGTH": length}
        try:
            asked = request_of(**given)
            found.append((read_body(asked), asked.data(10), asked.stream().read()))
        except (RequestError, TooLarge) as error:
            found.append((type(error), error.message))
    assert found[0] == found[1]


# The same parsers as the app's


def werkzeug_s(environ: dict[str, Any]) -> WerkzeugRequest:
    return WerkzeugRequest(EnvironBuilder().get_environ() | environ, populate_request=False)


ODD = st.text(st.characters(max_codepoint=255), max_size=30) | st.text(
    st.sampled_from("a=&;%+\"\\ \xff0,/*'"), max_size=30
)


@given(ODD)
@example("a=%ff&a=%C3%A9&b=+&=&;&a")
@example("\xff=1")
def test_a_query_is_parsed_as_werkzeug_does(query: str) -> None:
    other = werkzeug_s({"QUERY_STRING": query})
    try:
        expected: object = dict(other.args.lists())
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            request_of(query).args()
        return
    assert request_of(query).args() == expected


@given(ODD)
@example('a="x\\"y"; a=2')
@example("a=\xc3\xa9")
def test_a_cookie_is_parsed_as_werkzeug_does(header: str) -> None:
    for name in ("a", "0", "", "aa"):
        assert request_of(HTTP_COOKIE=header).cookie(name) == werkzeug_s({"HTTP_COOKIE": header}).cookies.get(name, "")


@given(ODD)
@example("Text/HTML; Charset*=utf-8''UTF%2D8; a=1")
def test_a_media_type_is_parsed_as_werkzeug_does(header: str) -> None:
    other = werkzeug_s({"CONTENT_TYPE": header})
    assert request_of(CONTENT_TYPE=header).media_type() == (other.mimetype, other.mimetype_params)


@given(ODD)
@example("gzip;q=0, *")
@example("br, *;q=0.1")
def test_what_a_client_takes_and_has_is_parsed_as_werkzeug_does(header: str) -> None:
    other = werkzeug_s({"HTTP_ACCEPT_ENCODING": header, "HTTP_IF_NONE_MATCH": header})
    ours = request_of(HTTP_ACCEPT_ENCODING=header, HTTP_IF_NONE_MATCH=header)
    assert ours.takes_gzip() == (other.accept_encodings["gzip"] > 0)
    assert ours.has("a") == other.if_none_match.contains_weak("a")


# Requests that an app has changed


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(SSE_PUBLISH_KEYS=[KEY], SSE_SECRET=SECRET, SSE_COOKIE="tok", SSE_PUBLIC="a")


class OwnRequest(flask.Request):
    """A request class of an app, which adds a parameter to the query."""

    mimetype = "application/json"

    @property
    def args(self) -> ImmutableMultiDict[str, str]:  # type: ignore[override]
        return ImmutableMultiDict([("channel", "own"), ("timeout", "0")])


def refused(app: Flask, **headers: str) -> str:
    """Return the channel that the refusal of a poll names, whatever its query is."""
    answer = app.test_client().get("/sse/poll?channel=query", headers=headers)
    return " ".join(answer.get_json()["error"]["channels"]) if answer.status_code == 403 else answer.text


def test_a_query_that_a_hook_of_the_app_has_replaced_counts(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="a")

    @app.before_request
    def replace() -> None:
        flask.request.args = ImmutableMultiDict([("channel", "hook")])

    assert refused(app) == "hook"


def test_the_query_of_an_app_s_own_class_of_requests_counts(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="a")
    app.request_class = OwnRequest
    assert refused(app) == "own"


def test_the_media_type_of_an_app_s_own_class_of_requests_counts(app: Flask) -> None:
    app.request_class = OwnRequest
    answer = app.test_client().post(
        "/sse/publish", data='{"channel": "a", "data": "x"}', headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 201


def test_a_query_string_that_a_hook_writes_into_the_environ_comes_too_late(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="a")

    @app.before_request
    def replace() -> None:
        flask.request.environ["QUERY_STRING"] = "channel=hook"

    assert refused(app) == "query"


def test_a_cookie_that_a_hook_of_the_app_has_replaced_counts(app: Flask) -> None:
    @app.before_request
    def replace() -> None:
        flask.request.cookies = ImmutableMultiDict({"tok": signed(claims(subscribe=["b"]))})

    client = app.test_client()
    assert client.get("/sse/poll?channel=b&timeout=0", headers={"Cookie": "tok=x"}).status_code == 200


def test_a_body_that_a_hook_of_the_app_has_read_is_published(app: Flask) -> None:
    app.before_request(lambda: (flask.request.get_json(), None)[1])
    answer = app.test_client().post(
        "/sse/publish", json={"channel": "a", "data": "x"}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("8f3a0c6e-0a3b-4c1d-9a76-0c4bb2b6a2f1", True),
        ("a" * 128, True),
        ("Root=1-67/a+b:c@d.e_f", True),
        ("", False),
        ("a" * 129, False),
        *[(text, False) for text in ("eyJhbGciOi.x.y", "id=eyJhbGciOi.x.y")],
        *[(text, False) for text in ("a b", "a\tb", "\xe4", "a,b", '"', "{}", "a%0Ab", "a\n", "a\x1b[31m")],
    ],
)
def test_an_id_of_a_request_is_shown_if_a_trusted_proxy_gave_it_and_it_is_plain(given: str, shown: bool) -> None:
    request = Request({"HTTP_X_REQUEST_ID": given}, "GET", b"")
    assert read_request_id(request, 1) == (given if shown else "")
    assert read_request_id(request, 0) == ""
