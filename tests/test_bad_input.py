"""No input to any entry point causes a 500, is stored in part, or forges a frame of a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from sse import SSE
from sse.event import Event, check_channel
from sse.stores import Publication
from sse.wire import Parser, encode_body
from tests import client as wire
from tests.publishing import post
from tests.tokens import KEY

STREAM_TYPES = {"sse.open", "sse.heartbeat", "sse.reset", "sse.close", "sse.event", "message"}

NASTY = [
    *(
        "",
        " ",
        "\0",
        "\n",
        "\r",
        "\r\n",
        "\t",
        "\x0b",
        "\x1f",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ufffe",
        "\ud800",
        "é",
        "😀",
    ),
    *(
        "~",
        "=",
        "==",
        "~~",
        "&",
        "%",
        "%00",
        "%0a",
        "{}",
        "[]",
        "null",
        "*",
        "../..",
        "a/../b",
        "a//b",
        "sse.x",
        "a" * 129,
    ),
    *("NaN", "Infinity", "1e400", "-1", "+1", "0x1", "1_0", "1.5", "9" * 5000, "-" + "9" * 5000, "٣", "a" * 5000),
    *("x\nid: a=9-9", "x\r\ndata: forged\r\n\r\n", "x\n\nevent: sse.close\ndata: {}\n\n", "x\rretry: 1\r\r"),
    *(
        "a=1-1~",
        "a=",
        "a=-",
        "a=0-0",
        "a=1-0",
        "a=" + "9" * 5000 + "-1",
        "a=1-1\nid: forged",
        "a=1-1~a=2-2",
        "~" * 5000,
    ),
]
TEXT = st.sampled_from(NASTY) | st.text() | st.text(st.sampled_from("a=~-019/.\r\n\0: "), max_size=20)
NAMES = st.sampled_from(
    [
        *("channel", "last_event_id", "lastEventId", "replay", "ids", "types"),
        *("heartbeat", "timeout", "token", "type", "_", "", "\0"),
    ]
)
HEADERS = st.sampled_from(
    [
        *("Last-Event-ID", "Idempotency-Key", "Content-Type", "Content-Encoding", "Authorization", "Origin", "Accept"),
        *("Cookie", "Access-Control-Request-Method", "Access-Control-Request-Headers", "X-Forwarded-For", "Range"),
    ]
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def app() -> Iterator[Flask]:
    """One app for all examples, so that a later example shows what an earlier one broke."""
    app = Flask("tests")
    app.config.from_mapping(
        SSE_PUBLIC=["a", "b", "c/*"],
        SSE_PUBLISH_KEYS=KEY,
        SSE_ORIGINS="https://a.example",
        SSE_RING=5,
        PROPAGATE_EXCEPTIONS=False,
    )
    SSE(app)
    app.extensions["sse"].publish([Publication("a", Event(number)) for number in range(3)])
    assert app.test_client().get("/sse/poll?channel=a").status_code == 200  # its hub runs from here on
    yield app
    assert app.extensions["sse"].hub.subscribers == 0
    app.extensions["sse"].close()


def stored(app: Flask) -> dict[str, Any]:
    store = app.extensions["sse"].store
    return {channel: store._rings[channel].newest for channel in store._rings if store._rings[channel].newest.offset}


def percent(text: str) -> str:
    """Any text in a query, with lone surrogates as the invalid bytes for them."""
    return quote(text.encode(errors="surrogatepass"), safe="")


def header(text: str) -> str:
    """Any text in a header, as a WSGI server hands it over: bytes as Latin-1, without line ends or NUL."""
    return re.sub(r"[\r\n\0]", " ", text.encode(errors="surrogatepass").decode("latin-1"))


def assert_told(response: TestResponse) -> None:
    """Check that the answer is an error in the documented form."""
    assert 400 <= response.status_code < 500 or response.status_code == 503, response.text
    assert response.content_type == "application/json"
    error = response.get_json()["error"]
    assert set(error) - {"channels"} == {"code", "message", "hint"}
    assert re.fullmatch("[a-z_]+", error["code"])
    assert error["message"]
    assert len(error["message"]) < 3000


def assert_frames(body: bytes) -> None:
    """Check that a stream has only frames of the service and the published events, `0` to `2`."""
    ours, independent = list(Parser().feed(body)), wire.Parser().feed(body)
    assert [(block.type, block.data) for block in ours] == [(event.event, event.data) for event in independent]
    for event in independent:
        assert event.event in STREAM_TYPES
        assert event.event != "message" or event.data in {"0", "1", "2"}
        assert event.event == "message" or event.data == "" or isinstance(event.json(), dict)
        for entry in event.id.split("~"):
            assert not entry or re.fullmatch(r"[A-Za-z0-9_./-]+=([0-9]+-[0-9]+)?", entry)


def read(app: Flask, path: str, query: str, headers: dict[str, str] | None = None) -> None:
    """Send the request and check the answer. Of a stream, check the bytes that come without waiting."""
    environ = {f"HTTP_{name.upper().replace('-', '_')}": header(text) for name, text in (headers or {}).items()}
    before = stored(app)
    with app.test_client().get(path, query_string=query, environ_overrides=environ) as response:
        if response.status_code != 200:
            assert_told(response)
        elif response.mimetype == "text/event-stream":
            chunks = iter(response.iter_encoded())
            body = next(chunks)
            if b'"position":null' in body or b'"resumed":true' in body:
                body += next(chunks)  # resets or a replay; nothing else comes without waiting
            assert_frames(body)
        else:
            answer = response.get_json()
            assert answer.keys() - {"whole"} == {"last_event_id", "events", "resets", "more", "retry"}
            assert {event["data"] for event in answer["events"]} <= {"0", "1", "2"}
        for name, text in response.headers.items():
            assert "\r" not in name + text
            assert "\n" not in name + text
    assert stored(app) == before


# Reading


@pytest.mark.parametrize("path", ["/sse/stream", "/sse/poll"])
@given(query=st.lists(st.tuples(NAMES, TEXT), max_size=5), with_channel=st.booleans())
def test_any_query(app: Flask, path: str, query: list[tuple[str, str]], with_channel: bool) -> None:
    wait = [] if path == "/sse/stream" or any(name == "timeout" for name, _ in query) else [("timeout", "0")]
    # A waiting poll answers at once where a channel has no position, so no example waits long.
    parts = [*([("channel", "a")] if with_channel else []), *query, *wait]
    read(app, path, "&".join(f"{percent(name)}={percent(text)}" for name, text in parts))


@pytest.mark.parametrize("path", ["/sse/stream", "/sse/poll"])
@pytest.mark.parametrize(
    "name", ["channel", "last_event_id", "lastEventId", "replay", "ids", "types", "heartbeat", "token"]
)
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_each_nasty_text_in_each_parameter(app: Flask, path: str, name: str, text: str) -> None:
    rest = "" if path == "/sse/stream" else "&timeout=0"
    read(app, path, ("" if name == "channel" else "channel=a&") + f"{name}={percent(text)}{rest}")


@pytest.mark.parametrize(
    "query",
    [
        *("channel=%ff%fe", "%ff=%ff", "channel", "=", "&&&", "channel=a;channel=b", "channel=a&" + "x=1&" * 5000),
        *("channel=a&replay=" + "1" * 100_000, "channel=a&last_event_id=" + "a" * 100_000, "channel=a&" * 5000),
        "&".join(f"channel=b{number}" for number in range(5000)),
    ],
    ids=range(11),
)
def test_raw_queries(app: Flask, query: str) -> None:
    for path in ("/sse/stream", "/sse/poll"):
        read(app, path, f"{query}&timeout=0")


@pytest.mark.parametrize("path", ["/sse/stream?channel=a&channel=b", "/sse/poll?channel=a&channel=b&timeout=0"])
@given(text=TEXT)
def test_any_last_event_id_in_the_header(app: Flask, path: str, text: str) -> None:
    address, _, query = path.partition("?")
    read(app, address, query, {"Last-Event-ID": text})


@pytest.mark.parametrize("path", ["/sse/stream?channel=a", "/sse/poll?channel=a&timeout=0", "/sse/none"])
@given(headers=st.dictionaries(HEADERS, TEXT, max_size=4))
def test_any_headers(app: Flask, path: str, headers: dict[str, str]) -> None:
    address, _, query = path.partition("?")
    read(app, address, query, headers)


# Publishing


def publish_and_judge(app: Flask, path: str, body: bytes, content_type: str | None, **headers: str) -> TestResponse:
    """Publish, and check that a 201 has stored as many events as it says, and any other answer none."""
    before = stored(app)
    environ = {f"HTTP_{name.upper()}": header(text) for name, text in headers.items()}
    if content_type is not None:
        environ["CONTENT_TYPE"] = header(content_type)
    response = post(app, body, path, content_type=None, environ_overrides=environ)
    if response.status_code == 201:
        ids = response.get_json()["ids"]
        assert ids
        assert all(re.fullmatch(r"[^~=]+=[1-9][0-9]*-[1-9][0-9]*", id) for id in ids)
        for id in ids:
            check_channel(id.partition("=")[0])
    else:
        assert_told(response)
        assert stored(app) == before
    return response


def assert_stream_is_sound(app: Flask, channels: set[str]) -> None:
    """Check that the events published on these channels come complete, and nothing else."""
    for channel in channels:
        store = app.extensions["sse"].store
        entries = store._rings[channel].after(store._rings[channel].base)
        from_wire = wire.Parser().feed(b"".join(encode_body(entry.event) for entry in entries))
        assert [(event.event, event.data) for event in from_wire] == [
            (entry.event.type, entry.event.data) for entry in entries
        ]


MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "channel": st.sampled_from(["p", ["p", "q"], [], "p q"]) | JSON,
        "data": JSON,
        "type": st.sampled_from(["t", "open", "sse.x"]) | JSON,
        "extra": JSON,
    },
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()  # NaN and Infinity too, and lone surrogates as escapes


@given(body=MEMBERS | st.lists(MEMBERS, max_size=4) | JSON)
def test_any_json_published(app: Flask, body: Any) -> None:
    response = publish_and_judge(app, "/sse/publish", dumped(body), "application/json")
    if response.status_code == 201:
        assert_stream_is_sound(app, {id.partition("=")[0] for id in response.get_json()["ids"]})


@given(body=st.binary(max_size=200) | TEXT.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_published_as_json(app: Flask, body: bytes) -> None:
    publish_and_judge(app, "/sse/publish", body, "application/json")


@given(
    body=st.binary(max_size=200),
    channel=st.just("p") | TEXT,
    type=st.none() | TEXT,
    content_type=st.sampled_from(["text/plain", "application/json", "image/png", "text/plain; charset=utf-16"]) | TEXT,
    key=st.none() | TEXT,
)
def test_anything_published_raw(
    app: Flask, body: bytes, channel: str, type: str | None, content_type: str, key: str | None
) -> None:
    query = "" if type is None else f"?type={percent(type)}"
    headers = {} if key is None else {"Idempotency_Key": key}
    path = f"/sse/publish/{percent(channel)}{query}"
    if "//" in f"/{channel}" or not channel:
        return  # the address of another route
    response = publish_and_judge(app, path, body, content_type, **headers)
    if response.status_code == 201:
        assert_stream_is_sound(app, {id.partition("=")[0] for id in response.get_json()["ids"]})


@pytest.mark.parametrize("member", ["channel", "type", "data"])
@pytest.mark.parametrize("value", [None, True, 5, 1.5, [], {}, [[]], [None], {"a": 1}, *NASTY], ids=repr)
def test_each_nasty_value_in_each_member(app: Flask, member: str, value: Any) -> None:
    good = {"channel": "p", "type": "t", "data": "x"}
    response = publish_and_judge(app, "/sse/publish", dumped(good | {member: value}), "application/json")
    # In a batch the good one beside it must not be stored alone.
    batch = publish_and_judge(app, "/sse/publish", dumped([good, good | {member: value}]), "application/json")
    assert batch.status_code == response.status_code
    if response.status_code == 201:
        assert_stream_is_sound(app, {"p"})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"channel":"p","data":NaN}', 400),
        (b'{"channel":"p","data":[Infinity,-Infinity]}', 400),
        (b'{"channel":"p","data":1e400}', 422),
        (b'{"channel":"p","data":' + b"9" * 5000 + b"}", 400),
        (b'{"channel":"p","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"channel":' * 90_000, 400),
        (b'{"channel":"p","channel":"q","data":1}', 400),
        (b'{"channel":"p","data":{"a":1,"a":2}}', 400),
        (b'{"channel":"p","data":"\\ud800"}', 422),
        (b'{"channel":"p","data":{"\\udfff":1}}', 422),
        (b'{"channel":"p","data":"\xed\xa0\x80"}', 400),
        (b'{"channel":"p","data":"\xff"}', 400),
        (b'{"channel":"p\\nid: 5","data":1}', 422),
        (b'{"channel":"p\\u0000","data":1}', 422),
        (b'{"channel":"p","type":"t\\r\\nid: 5","data":1}', 422),
        (b'{"channel":"p","data":"\x00"}', 400),
        (b'{"channel":"p","data":"\\u0000\\r\\n\\n"}', 201),
        (b'{"channel":"p","data":' + b"[" * 500 + b"]" * 500 + b"}", 201),
        (b"", 400),
        (b"null", 422),
        (b"[]", 422),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_each_kind_of_bad_json_has_its_status(app: Flask, body: bytes, status: int) -> None:
    assert publish_and_judge(app, "/sse/publish", body, "application/json").status_code == status


@pytest.mark.parametrize(
    "name", ["Idempotency_Key", "Content_Encoding", "Authorization", "Origin", "Last_Event_ID", "Expect"]
)
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_each_nasty_text_in_each_header_of_a_publish(app: Flask, name: str, text: str) -> None:
    for path in ("/sse/publish", "/sse/publish/p"):
        publish_and_judge(app, path, b'{"channel":"p","data":1}', "application/json", **{name: text})


@pytest.mark.parametrize("content_type", NASTY, ids=range(len(NASTY)))
def test_each_nasty_content_type(app: Flask, content_type: str) -> None:
    for path in ("/sse/publish", "/sse/publish/p"):
        for text in (content_type, f"text/plain; charset={content_type}", f"image/{content_type}"):
            publish_and_judge(app, path, b"\xff", text)


def test_a_body_that_cannot_be_stored_whole_is_not_stored_at_all(app: Flask) -> None:
    before = stored(app)
    for bad in ({"channel": "p"}, {"channel": ["p", "sse.x"], "data": 1}, {"channel": "p", "data": "x" * 65_537}):
        response = publish_and_judge(
            app, "/sse/publish", dumped([{"channel": "p", "data": 1}] * 50 + [bad]), "application/json"
        )
        assert response.status_code in (413, 422)
    assert stored(app) == before
