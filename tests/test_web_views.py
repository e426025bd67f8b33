"""The routes over HTTP: statuses, headers, parameters, CORS and publishing, as the wire contract has them."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, after_this_request
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse import SSE, InvalidEvent
from sse.web.answers import ALLOWED_HEADERS
from tests import client as wire
from tests.conftest import MakeApp
from tests.publishing import post, publish_in_app
from tests.servers import RedisServer, wait_until
from tests.tokens import KEY, SECRET, claims, signed

OTHER_KEY = "q" * 22
ORIGIN = "https://a.example"
VARY = "Origin, Cookie, Authorization, Last-Event-ID"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": VARY,
}


class Reader:
    """A stream in the test client, read block by block."""

    def __init__(self, response: TestResponse) -> None:
        self.response = response
        self.body = b""
        self._chunks = iter(response.iter_encoded())
        self._parser = wire.Parser()
        self._events: list[wire.Event] = []

    def take(self, count: int) -> list[wire.Event]:
        """The next blocks; fewer at the end of the body."""
        for _ in range(10_000):
            if len(self._events) >= count:
                break
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self.body += chunk
            self._events += self._parser.feed(chunk)
        taken, self._events = self._events[:count], self._events[count:]
        return taken

    def opening(self) -> dict[str, Any]:
        opened, heartbeat = self.take(2)
        assert (opened.event, heartbeat.event, heartbeat.data) == ("sse.open", "sse.heartbeat", "")
        told: dict[str, Any] = opened.json()
        return told

    def opened_at(self) -> set[str]:
        """The entries of the opening block's id."""
        name, _, text = self.body.splitlines()[1].decode().partition(": ")
        assert name == "id"
        return set(text.split("~"))


@contextmanager
def stream(client: FlaskClient, query: str, **headers: str) -> Iterator[Reader]:
    response = client.get(
        f"/sse/stream?{query}", headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    try:
        assert response.status_code == 200, response.text
        yield Reader(response)
    finally:
        response.close()


@pytest.fixture
def app(make_app: MakeApp, store_url: str | None) -> Flask:
    return make_app(
        SSE_REDIS_URL=store_url, SSE_PUBLISH_KEYS=[KEY, OTHER_KEY], SSE_ORIGINS=[ORIGIN, "http://[::1]:8000"]
    )


@pytest.fixture
def small(make_app: MakeApp) -> Flask:
    """An app over the memory store, for tests where the store does not matter."""
    return make_app(SSE_PUBLISH_KEYS=[KEY, OTHER_KEY], SSE_ORIGINS=[ORIGIN, "http://[::1]:8000"])


def code(response: TestResponse) -> tuple[int, str]:
    error = response.get_json()["error"]
    assert set(error) - {"channels"} == {"code", "message", "hint"}
    assert response.content_type == "application/json"
    return response.status_code, error["code"]


def is_unborn(app: Flask, channel: str = "a") -> bool:
    return bool(app.extensions["sse"].store.newest([channel]) == [None])


# The stream


def test_a_stream_s_headers_are_exactly_these(app: Flask) -> None:
    with stream(app.test_client(), "channel=a") as reader:
        assert dict(reader.response.headers) == STREAM_HEADERS


def test_a_stream_opens_with_its_position_its_settings_and_a_heartbeat(app: Flask) -> None:
    ids = publish_in_app(app, "a", "1", "2")
    with stream(app.test_client(), f"channel=a&channel=b&last_event_id={ids[0]}") as reader:
        told = reader.opening()
        assert re.match(rb"retry: 3000\nid: [ab]=[01]-\d+~[ab]=[01]-\d+\nevent: sse.open\ndata: {", reader.body)
        assert list(told["channels"]) == ["a", "b"]
        assert told["channels"]["a"] == {"position": ids[0].removeprefix("a="), "resumed": True}
        assert told["channels"]["b"]["resumed"] is False
        assert re.fullmatch(r"0-[0-9]+", told["channels"]["b"]["position"])
        assert (told["heartbeat"], told["retry"]) == (15, 3000)
        assert 720 <= told["lifetime"] <= 1080
        (event,) = reader.take(1)
        assert (event.id, event.event, event.data) == (
            f"{ids[1]}~b={told['channels']['b']['position']}",
            "message",
            "2",
        )


def test_an_event_of_each_channel_moves_its_own_position_and_comes_first_in_the_id(app: Flask) -> None:
    with stream(app.test_client(), "channel=a&channel=b&channel=a") as reader:
        places = {name: told["position"] for name, told in reader.opening()["channels"].items()}
        assert list(places) == ["a", "b"]
        (b1,) = publish_in_app(app, "b", "x")
        assert [event.id for event in reader.take(1)] == [f"{b1}~a={places['a']}"]
        (a1,) = publish_in_app(app, "a", "y")
        assert [event.id for event in reader.take(1)] == [f"{a1}~{b1}"]


def test_a_header_resumes_and_replaces_the_parameter(app: Flask) -> None:
    ids = publish_in_app(app, "a", *range(4))
    client = app.test_client()
    with stream(client, f"channel=a&last_event_id={ids[0]}", Last_Event_ID=ids[2]) as reader:
        assert reader.opening()["channels"]["a"]["position"] == ids[2].removeprefix("a=")
        assert [event.data for event in reader.take(1)] == ["3"]
    with stream(client, f"channel=a&last_event_id={ids[1]}", Last_Event_ID="") as reader:
        reader.opening()
        assert [event.data for event in reader.take(2)] == ["2", "3"]
    with stream(client, f"channel=a&lastEventId={ids[2]}") as reader:
        reader.opening()
        assert [event.data for event in reader.take(1)] == ["3"]


def test_a_channel_without_an_entry_is_missing_in_a_header_and_added_in_a_parameter(app: Flask) -> None:
    (a,), (b,) = publish_in_app(app, "a", "x"), publish_in_app(app, "b", "y")
    with stream(app.test_client(), "channel=a&channel=b", Last_Event_ID=a) as reader:
        told = reader.opening()["channels"]
        assert told["b"] == {"position": None, "resumed": False}
        assert reader.opened_at() == {a, "b="}
        (reset,) = reader.take(1)
        assert (reset.event, reset.id) == ("sse.reset", f"{b}~{a}")
        assert reset.json() == {"channel": "b", "reason": "missing", "missed": None}
    with stream(app.test_client(), f"channel=a&channel=b&last_event_id={a}") as reader:
        assert reader.opening()["channels"]["b"] == {"position": b.removeprefix("b="), "resumed": False}
        publish_in_app(app, "a", "end")
        assert [event.data for event in reader.take(1)] == ["end"]


def test_a_reset_keeps_the_client_s_own_entry_until_it_is_told(make_app: MakeApp, store_url: str | None) -> None:
    app = make_app(SSE_REDIS_URL=store_url, SSE_RING=5)
    ids = publish_in_app(app, "a", *range(10))
    with stream(app.test_client(), "channel=a&channel=b&channel=c", Last_Event_ID=f"{ids[0]}~b=x~c=7-7") as reader:
        told = reader.opening()["channels"]
        assert told == {
            "a": {"position": ids[0].removeprefix("a="), "resumed": False},
            "b": {"position": None, "resumed": False, "whole": True},
            "c": {"position": "7-7", "resumed": False, "whole": True},
        }
        assert reader.opened_at() == {ids[0], "b=", "c=7-7"}
        resets = reader.take(3)
        assert {reset.json()["channel"]: (reset.json()["reason"], reset.json()["missed"]) for reset in resets} == {
            "a": ("trimmed", 9),
            "b": ("invalid", None),
            "c": ("unknown", None),
        }
        assert ids[-1] in resets[-1].id.split("~")


def test_entries_of_other_channels_are_left_out(app: Flask) -> None:
    (a,) = publish_in_app(app, "a", "x")
    with stream(app.test_client(), "channel=a", Last_Event_ID=f"z=5-5~{a}~y=6-6") as reader:
        reader.opening()
        assert reader.opened_at() == {a}


def test_a_position_that_is_not_known_stays_so_when_the_client_is_cut_before_its_reset(app: Flask) -> None:
    publish_in_app(app, "a", "x")
    for text, reason in (("rubbish", "invalid"), ("~", "missing"), ("a=", "invalid")):
        with stream(app.test_client(), "channel=a", Last_Event_ID=text) as reader:
            reader.opening()
            assert reader.opened_at() == {"a="}
            assert [reset.json()["reason"] for reset in reader.take(1)] == [reason]
    with stream(app.test_client(), "channel=a&last_event_id=a%3D") as reader:
        reader.opening()
        assert [reset.json()["reason"] for reset in reader.take(1)] == ["invalid"]


def test_delta_ids_name_their_own_channel_only(app: Flask) -> None:
    (a,) = publish_in_app(app, "a", "x")
    with stream(app.test_client(), f"channel=a&channel=b&channel=c&ids=delta&last_event_id={a}~c=1-1") as reader:
        told = reader.opening()["channels"]
        assert reader.opened_at() == {a, f"b={told['b']['position']}", "c=1-1"}
        (reset,) = reader.take(1)
        assert re.fullmatch(r"c=0-[0-9]+", reset.id)
        (b1,), (a2,) = publish_in_app(app, "b", "y"), publish_in_app(app, "a", "z")
        assert {event.id for event in reader.take(2)} == {b1, a2}


def test_types_in_the_data_go_with_delta_ids(app: Flask) -> None:
    with stream(app.test_client(), "channel=a&channel=b&ids=delta&types=data") as reader:
        reader.opening()
        answer = post(app, [{"channel": "a", "data": {"id": 7}, "type": "created"}, {"channel": "b", "data": "x"}])
        assert {(event.event, event.id, event.data) for event in reader.take(2)} == {
            ("sse.event", answer.get_json()["ids"][0], 'created\n{"id":7}'),
            ("sse.event", answer.get_json()["ids"][1], "message\nx"),
        }


@pytest.mark.parametrize(("asked", "wanted"), [("0", []), ("2", ["3", "4"]), ("99", list("01234")), ("-5", [])])
def test_a_replay_begins_before_the_newest_and_counts_without_an_id_only(
    app: Flask, asked: str, wanted: list[str]
) -> None:
    ids = publish_in_app(app, "a", *range(5))
    with stream(app.test_client(), f"channel=a&replay={asked}") as reader:
        reader.opening()
        publish_in_app(app, "a", "end")
        assert [event.data for event in reader.take(len(wanted) + 1)] == [*wanted, "end"]
    with stream(app.test_client(), f"channel=a&replay={asked}&last_event_id={ids[3]}") as reader:
        reader.opening()
        assert [event.data for event in reader.take(2)] == ["4", "end"]


@pytest.mark.parametrize(
    ("asked", "used"),
    [("3", 3), ("0", 3), ("-7", 3), ("999", 15), ("9" * 5000, 15), ("-" + "9" * 5000, 3), ("+5", 5), ("007", 7)],
)
def test_a_number_out_of_range_is_clamped_and_what_is_used_is_told(small: Flask, asked: str, used: int) -> None:
    with stream(small.test_client(), f"channel=a&heartbeat={asked}".replace("+", "%2B")) as reader:
        assert reader.opening()["heartbeat"] == used


def test_a_clamped_replay_is_told(make_app: MakeApp) -> None:
    with stream(make_app(SSE_RING=5).test_client(), "channel=a&replay=1000") as reader:
        assert reader.opening()["replay"] == 5


def test_a_replay_that_does_not_count_is_told(small: Flask) -> None:
    last = publish_in_app(small, "a", 1, 2)[0]
    for query in ("channel=a&replay=-5", f"channel=a&replay=1&last_event_id={last}"):
        with stream(small.test_client(), query) as reader:
            assert reader.opening()["replay"] == 0
    with stream(small.test_client(), "channel=a") as reader:
        assert "replay" not in reader.opening()


def test_a_heartbeat_below_three_seconds_is_the_service_s_own_only(make_app: MakeApp) -> None:
    with stream(make_app(SSE_HEARTBEAT=3).test_client(), "channel=a&heartbeat=99") as reader:
        assert reader.opening()["heartbeat"] == 3


@pytest.mark.parametrize("path", ["stream", "poll"])
@pytest.mark.parametrize(
    "query",
    [
        *(
            "",
            "channel=",
            "channel=a%20b",
            "channel=a&channel=/b",
            "channel=sse.x",
            "channel=a%0Ab",
            "channel=%ff",
            "Channel=a",
        ),
        *(
            "channel=a&replay=x",
            "channel=a&replay=",
            "channel=a&replay=1.5",
            "channel=a&replay=1e3",
            "channel=a&replay=%D9%A3",
        ),
        *("channel=a&replay=1&replay=1", "channel=a&last_event_id=a%3D1-1&last_event_id=a%3D1-1"),
        *("channel=a&last_event_id=&lastEventId=", "channel=a&lastEventId=x&lastEventId=y"),
        *("channel=a&token=x", "channel=a&token=", "channel=a&token=x&token=y"),
        "&".join(f"channel=c{number}" for number in range(51)),
        "&".join(f"channel={'x' * 120}{number}" for number in range(30)),
    ],
)
def test_a_query_that_cannot_be_read_is_400(small: Flask, path: str, query: str) -> None:
    answer = small.test_client().get(f"/sse/{path}?{query}", headers={"Origin": ORIGIN})
    assert code(answer)[0] == 400
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize(
    "query",
    [
        *("ids=full", "ids=", "ids=delta&ids=delta", "types=event", "types=", "types=data&types=data"),
        *("heartbeat=x", "heartbeat=", "heartbeat=5&heartbeat=5"),
        *("form=Bare", "form=", "form=bare&form=bare", "form=bare&ids=delta", "types=data&form=bare", "form=bare&ids="),
        *("end=Cut", "end=", "end=cut&end=cut", "end=clean"),
    ],
)
def test_a_stream_s_own_parameters_are_checked(small: Flask, query: str) -> None:
    assert code(small.test_client().get(f"/sse/stream?channel=a&{query}"))[0] == 400
    assert small.test_client().get(f"/sse/poll?channel=a&timeout=0&{query}").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        *("timeout=x", "timeout=", "timeout=1&timeout=1", "timeout=0.5"),
        *("max_bytes=x", "max_bytes=", "max_bytes=5000&max_bytes=5000", "max_bytes=4e3", "max_bytes=4k"),
    ],
)
def test_a_poll_s_own_parameters_are_checked(small: Flask, query: str) -> None:
    assert code(small.test_client().get(f"/sse/poll?channel=a&{query}"))[0] == 400
    assert small.test_client().head(f"/sse/stream?channel=a&{query}").status_code == 200


@pytest.mark.parametrize(
    ("asked", "used"),
    [("1024", 1024), ("1", 1024), ("0", 1024), ("-9", 1024), ("%2B3000", 3000), ("9" * 5000, 1 << 20)],
)
@pytest.mark.parametrize("timeout", [0, 5])
def test_a_poll_s_bytes_are_clamped(make_app: MakeApp, asked: str, used: int, timeout: int) -> None:
    app = make_app(SSE_RING=1000)
    first, *_ = publish_in_app(app, "a", "before", *["x"] * 100, *["y" * 1500] * 800)
    query = f"channel=a&timeout={timeout}&last_event_id={first}"
    answer = app.test_client().get(f"/sse/poll?{query}&max_bytes={asked}")
    assert used * 0.75 < len(answer.data) <= used
    assert answer.get_json()["more"]


def test_polls_with_bounds_of_their_own_share_their_answers(make_app: MakeApp) -> None:
    app = make_app()
    first, *_ = publish_in_app(app, "a", "before", *["x"] * 99)
    query = f"channel=a&timeout=5&last_event_id={first}"
    answers = {
        bound: app.test_client().get(f"/sse/poll?{query}&max_bytes={bound}").data for bound in range(3000, 4096, 5)
    }
    assert all(bound * 0.7 < len(answer) <= bound for bound, answer in answers.items())
    assert len(set(answers.values())) == 3


def test_unknown_parameters_are_passed_over(small: Flask) -> None:
    assert small.test_client().get("/sse/poll?channel=a&timeout=0&_=123&_=456&x%00=%ff").status_code == 200


def test_names_that_fit_are_taken_and_one_byte_more_is_not(make_app: MakeApp) -> None:
    client = make_app(SSE_MAX_CHANNELS=100).test_client()
    names = [f"{number:02}".ljust(88, "x") for number in range(32)]  # 32 × (88 + 40) = 4,096
    assert client.head("/sse/stream?" + "&".join(f"channel={name}" for name in names)).status_code == 200
    names[0] += "x"
    answer = client.head("/sse/stream?" + "&".join(f"channel={name}" for name in names))
    assert answer.status_code == 400


def test_head_has_the_same_status_and_headers_and_creates_nothing(app: Flask) -> None:
    response = app.test_client().head("/sse/stream?channel=a", headers={"Origin": ORIGIN})
    with stream(app.test_client(), "channel=b", Origin=ORIGIN) as reader:
        assert (response.status_code, dict(response.headers)) == (200, dict(reader.response.headers))
    assert response.data == b""
    assert is_unborn(app)
    response = app.test_client().head("/sse/poll?channel=a")
    assert (response.status_code, response.data, response.content_type) == (200, b"", "application/json")
    assert is_unborn(app)
    assert app.test_client().head("/sse/stream").status_code == 400


def test_a_stream_that_is_closed_leaves_no_subscriber(app: Flask) -> None:
    hub = app.extensions["sse"].hub
    with stream(app.test_client(), "channel=a") as reader:
        assert hub.subscribers == 1
        reader.opening()
    assert hub.subscribers == 0


def assert_busy(response: TestResponse, retry: int = 3000) -> None:
    assert response.status_code == 200
    for name, value in STREAM_HEADERS.items():
        assert response.headers[name] == value
    (event,) = wire.Parser().feed(response.data)
    assert (event.event, event.json(), event.own_id) == ("sse.close", {"reason": "busy", "retry": event.retry}, None)
    assert event.retry is not None
    assert retry <= event.retry <= 4 * retry + 2000  # of Retry-After


def test_over_the_limit_a_stream_is_told_busy_and_a_poll_503(make_app: MakeApp) -> None:
    app = make_app(SSE_MAX_SUBSCRIBERS=1, SSE_ORIGINS=ORIGIN)
    client = app.test_client()
    with stream(client, "channel=a"):
        answer = client.get("/sse/stream?channel=a", headers={"Origin": ORIGIN})
        assert_busy(answer)
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        answer = client.get("/sse/poll?channel=a&timeout=1", headers={"Origin": ORIGIN})
        assert code(answer) == (503, "busy")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/sse/poll?channel=a&timeout=0").status_code == 200
    with stream(client, "channel=a") as reader:
        reader.opening()


def test_many_busy_answers_do_not_come_back_all_at_once(make_app: MakeApp) -> None:
    client = make_app(SSE_MAX_SUBSCRIBERS=1).test_client()
    with stream(client, "channel=a"):
        assert len({client.get("/sse/stream?channel=a").data for _ in range(20)}) > 10


def test_with_redis_away_a_stream_is_told_busy_after_five_seconds_and_the_rest_503(
    make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app(SSE_REDIS_URL=RedisServer(tmp_path).url, SSE_PUBLISH_KEYS=KEY).test_client()
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        streaming = pool.submit(client.get, "/sse/stream?channel=a")
        polling = pool.submit(client.application.test_client().get, "/sse/poll?channel=a&timeout=2")
        assert code(client.application.test_client().get("/sse/poll?channel=a&timeout=0")) == (503, "store_unavailable")
        answer = post(client.application, {"channel": "a", "data": 1})
        assert code(answer) == (503, "store_unavailable")
        assert answer.headers["Retry-After"]
        assert_busy(streaming.result(10))
        assert code(polling.result(10)) == (503, "store_unavailable")
    assert 4 < time.monotonic() - begun < 8


@pytest.mark.parametrize("many", [{"wsgi.multiprocess": True}])
def test_the_memory_store_refuses_several_processes_with_the_remedy(small: Flask, many: dict[str, Any]) -> None:
    client = small.test_client()
    assert_busy(client.get("/sse/stream?channel=a", environ_overrides=many))
    answer = client.get("/sse/poll?channel=a&timeout=0", environ_overrides=many)
    assert code(answer) == (503, "memory_store")
    assert "SSE_REDIS_URL" in answer.get_json()["error"]["hint"]
    assert code(post(small, {"channel": "a", "data": 1}, environ_overrides=many)) == (503, "memory_store")
    assert is_unborn(small)


def test_over_redis_several_processes_are_fine(make_app: MakeApp, redis_url: str) -> None:
    client = make_app(SSE_REDIS_URL=redis_url).test_client()
    answer = client.get("/sse/poll?channel=a&timeout=0", environ_overrides={"wsgi.multiprocess": True})
    assert answer.status_code == 200


def test_a_key_of_a_wrong_type_is_503_for_publishers_and_busy_for_streams(
    make_app: MakeApp, redis_url: str, shared_redis: RedisServer
) -> None:
    app = make_app(SSE_REDIS_URL=redis_url, SSE_PUBLISH_KEYS=KEY)
    with shared_redis.client() as client:
        client.set("sse:{a}", "precious")
        answer = post(app, {"channel": "a", "data": 1})
        assert code(answer) == (503, "store_unavailable")
        assert "sse:{a}" in answer.get_json()["error"]["message"]
        assert_busy(app.test_client().get("/sse/stream?channel=a"))
        for timeout in (0, 1):
            assert code(app.test_client().get(f"/sse/poll?channel=a&timeout={timeout}"))[0] == 503
        assert client.get("sse:{a}") == "precious"


# The bare stream


def assert_refused(response: TestResponse, low: int, high: int) -> None:
    assert code(response) == (503, "busy")
    assert low <= int(response.headers["Retry-After"]) <= high
    assert response.headers["Cache-Control"] == "private, no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_bare_stream_has_a_stream_s_status_and_headers_and_takes_its_seat_once(small: Flask) -> None:
    client, hub = small.test_client(), small.extensions["sse"].hub
    answer = client.head("/sse/stream?channel=a&form=bare")
    assert (answer.status_code, answer.data, hub.subscribers) == (200, b"", 0)
    answer = client.get("/sse/stream?channel=a&form=bare")
    for name, value in STREAM_HEADERS.items():
        assert answer.headers[name] == value
    assert next(answer.iter_encoded()).startswith(b': open {"channels":{"a":{"position":')
    assert hub.subscribers == 1
    answer.close()
    assert hub.subscribers == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by_header", [False, True])
@pytest.mark.parametrize(
    ("given", "reason", "missed"),
    [("a=9-1", "diverged", None), ("a=?", "invalid", None), ("{trimmed}", "trimmed", 9), ("x=1-1", "missing", None)],
)
def test_a_bare_stream_that_would_be_reset_is_410_with_the_way_on(
    make_app: MakeApp, given: str, reason: str, missed: int | None, by_header: bool, method: str
) -> None:
    app = make_app(SSE_RING=5, SSE_ORIGINS=ORIGIN)
    client = app.test_client()
    ids = publish_in_app(app, "a", *range(10))
    (kept,) = publish_in_app(app, "b", "x")
    last = f"{given.format(trimmed=ids[0])}~{kept}"
    query, headers = {"channel": ["a", "b", "new"], "form": "bare"}, {"Origin": ORIGIN}
    if by_header:
        headers["Last-Event-ID"] = f"{last}~new=0-0" if reason != "missing" else last
    else:
        query["last_event_id"] = last
    answer = client.open("/sse/stream", method=method, query_string=query, headers=headers)
    if reason == "missing" and not by_header:
        assert answer.status_code == 200  # it is a channel that is being added
        answer.close()
        return
    assert answer.status_code == 410
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert app.extensions["sse"].hub.subscribers == 0
    if method == "HEAD":
        assert answer.data == b""
        return
    told = answer.get_json()
    assert told.keys() == {"error", "resets", "last_event_id"}
    assert code(answer) == (410, "gone")
    assert told["resets"][0] == {"channel": "a", "reason": reason, "missed": missed}
    positions = dict(entry.split("=") for entry in told["last_event_id"].split("~"))
    assert list(positions) == ["a", "b", "new"]
    assert f"b={positions['b']}" == kept
    assert f"a={positions['a']}" == ids[-1]
    publish_in_app(app, "new", "on")
    query["last_event_id"] = told["last_event_id"]
    on = client.get("/sse/stream", query_string=query)  # it never leads to another 410
    chunks: Iterator[bytes] = iter(on.iter_encoded())
    (event,) = wire.Parser(bare=True).feed(next(chunks) + next(chunks))
    assert event.data == "on"
    on.close()


def test_a_bare_stream_that_cannot_be_served_now_is_503(make_app: MakeApp) -> None:
    app = make_app(SSE_MAX_SUBSCRIBERS=1, SSE_ORIGINS=ORIGIN)
    client = app.test_client()
    assert_refused(client.get("/sse/stream?channel=a&form=bare", environ_overrides={"wsgi.multiprocess": True}), 3, 14)
    with stream(client, "channel=a"):
        waits = set()
        for _ in range(20):
            answer = client.get("/sse/stream?channel=a&form=bare", headers={"Origin": ORIGIN})
            assert_refused(answer, 3, 12)
            assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
            waits.add(answer.headers["Retry-After"])
        assert len(waits) > 3
        assert client.head("/sse/stream?channel=a&form=bare").status_code == 503


def test_over_the_limit_on_how_often_a_bare_stream_is_503(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="1/hour").test_client()
    client.environ_base["REMOTE_ADDR"] = "192.0.2.1"
    client.get("/sse/stream?channel=a&form=bare").close()
    assert_refused(client.get("/sse/stream?channel=a&form=bare"), 3500, 3612)


# The poll


def test_a_poll_s_answer_is_exactly_this(app: Flask) -> None:
    ids = publish_in_app(app, "a", "1", {"n": 2})
    response = app.test_client().get(f"/sse/poll?channel=a&channel=b&last_event_id={ids[0]}~b=5-5")
    assert dict(response.headers) == {
        "Content-Type": "application/json",
        "Content-Length": str(len(response.data)),
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Vary": VARY,
    }
    answer = response.get_json()
    b = answer["last_event_id"].split("~b=")[1]
    assert answer == {
        "last_event_id": f"{ids[1]}~b={b}",
        "events": [{"channel": "a", "id": ids[1], "type": "message", "data": '{"n":2}'}],
        "resets": [{"channel": "b", "reason": "unknown", "missed": None}],
        "more": False,
        "retry": 3000,
    }


def test_transports_can_change_at_every_request(app: Flask) -> None:
    client, place, heard = app.test_client(), "", list[str | None]()
    publish_in_app(app, "a", "before")
    for number in range(5):
        answer = client.get(f"/sse/poll?channel=a&timeout=1&last_event_id={place}").get_json()
        heard += [event["data"] for event in answer["events"]]
        publish_in_app(app, "a", number)
        with stream(client, "channel=a", Last_Event_ID=answer["last_event_id"]) as reader:
            reader.opening()
            (event,) = reader.take(1)
            heard.append(event.data)
            place = event.id
        publish_in_app(app, "a", f"{number}.5")
    assert heard == ["0", "0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4"]


# Publishing


def test_publishing_gives_ids_in_order(app: Flask) -> None:
    answer = post(app, [{"channel": ["a", "b"], "data": 1}, {"channel": "a", "type": "t", "data": "x"}])
    assert answer.status_code == 201
    assert re.fullmatch(r"a=1-\d+ b=1-\d+ a=2-\d+", " ".join(answer.get_json()["ids"]))
    assert answer.headers["Cache-Control"] == "private, no-store"
    polled = app.test_client().get("/sse/poll?channel=a&replay=9&timeout=0").get_json()["events"]
    assert [(event["type"], event["data"]) for event in polled] == [("message", "1"), ("t", "x")]


def raw(app: Flask, body: bytes, content_type: str | None, path: str = "/sse/publish/a") -> str:
    answer = post(app, path=path, data=body, content_type=content_type)
    assert answer.status_code == 201, answer.text
    return str(app.test_client().get("/sse/poll?channel=a&replay=1&timeout=0").get_json()["events"][0]["data"])


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("text/plain", "ä\r\nb".encode(), "ä\nb"),
        ("text/html; charset=UTF-8", b"<p>", "<p>"),
        ("application/json", b'{ "n": 1 }', '{ "n": 1 }'),
        ("application/ld+json", b"not even JSON", "not even JSON"),
        ("application/x-www-form-urlencoded", b"a=1&b=%20", "a=1&b=%20"),
        ("image/png", b"\x89PNG", "data:image/png;base64,iVBORw=="),
        ("IMAGE/PNG; x=y", b"", "data:image/png;base64,"),
        (None, b"\0", "data:application/octet-stream;base64,AA=="),
        ("text/plain", b"", ""),
        ("text/plain", b"id: 5\n\nevent: sse.close\n", "id: 5\n\nevent: sse.close\n"),
    ],
)
def test_a_raw_body_is_taken_as_it_is(small: Flask, content_type: str | None, body: bytes, data: str) -> None:
    assert raw(small, body, content_type) == data


def test_a_raw_publish_takes_a_type_and_any_channel(small: Flask) -> None:
    answer = post(small, path="/sse/publish/news/a.b:c@d?type=created&_=1", data="x", content_type="text/plain")
    assert answer.get_json()["ids"][0].startswith("news/a.b:c@d=1-")
    events = small.test_client().get("/sse/poll?channel=news/a.b:c@d&replay=1&timeout=0").get_json()["events"]
    assert events[0]["type"] == "created"


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("a%20b", (422, "invalid_channel")),
        ("sse.x", (422, "invalid_channel")),
        ("a/../b", (422, "invalid_channel")),
        ("a//b", (422, "invalid_channel")),
        ("a/", (422, "invalid_channel")),
        ("a%2F%2Fb", (422, "invalid_channel")),
        ("a?type=open", (422, "invalid_type")),
        ("a?type=", (422, "invalid_type")),
        ("a?type=x%0Aid:5", (422, "invalid_type")),
        ("a?type=x&type=x", (400, "bad_request")),
    ],
)
def test_a_raw_publish_is_checked(small: Flask, path: str, refused: tuple[int, str]) -> None:
    assert code(post(small, path=f"/sse/publish/{path}", data="x", content_type="text/plain")) == refused
    assert not small.extensions["sse"].store._rings


@pytest.mark.parametrize("path", ["a%0Ab", "a%0A", "%0A", "a%00"])
def test_a_line_break_in_the_path_is_refused(small: Flask, path: str) -> None:
    answer = post(small, path=f"/sse/publish/{path}", data="x", content_type="text/plain")
    assert code(answer)[0] in (404, 422)
    assert not small.extensions["sse"].store._rings


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
def test_without_keys_publishing_does_not_exist(make_app: MakeApp, path: str) -> None:
    app = make_app()
    answer = post(app, {"channel": "a", "data": 1}, path)
    assert code(answer) == (404, "not_found")
    assert is_unborn(app)


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
@pytest.mark.parametrize("key", [None, "", "wrong" * 5, KEY[:-1]])
def test_without_the_right_key_publishing_is_401(small: Flask, path: str, key: str | None) -> None:
    answer = post(small, {"channel": "a", "data": 1}, path, key)
    assert code(answer) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert is_unborn(small)


def test_each_key_publishes(small: Flask) -> None:
    assert [post(small, {"channel": "a", "data": 1}, key=key).status_code for key in (KEY, OTHER_KEY)] == [201, 201]


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
def test_an_idempotency_key_answers_with_the_same_ids_and_stores_once(app: Flask, path: str) -> None:
    body = {"channel": "a", "data": 1}
    first = post(app, body, path, headers={"Idempotency-Key": "A.b:c_9-"})
    assert first.status_code == 201
    again = post(app, body, path, headers={"Idempotency-Key": "A.b:c_9-"})
    assert (again.status_code, again.json) == (201, first.json)
    conflict = post(app, {"channel": "a", "data": 2}, path, headers={"Idempotency-Key": "A.b:c_9-"})
    assert code(conflict) == (422, "idempotency_conflict")
    assert app.extensions["sse"].store.newest(["a"])[0].offset == 1


def test_an_idempotency_key_is_its_publisher_s_and_its_place_s_own(app: Flask) -> None:
    body = [{"channel": "a", "data": 1}, {"channel": "a", "data": 2}, {"channel": "a", "data": 1}]
    headers = {"Idempotency-Key": "key"}
    first = post(app, body, headers=headers)
    assert [name.partition("-")[0] for name in first.get_json()["ids"]] == ["a=1", "a=2", "a=3"]
    assert post(app, body, headers=headers).json == first.json
    other = post(app, body, key=OTHER_KEY, headers=headers)
    assert [name.partition("-")[0] for name in other.get_json()["ids"]] == ["a=4", "a=5", "a=6"]


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "a/b", "ä", "a,b", "~"])
def test_an_idempotency_key_that_is_none_is_400(small: Flask, key: str) -> None:
    answer = post(small, {"channel": "a", "data": 1}, headers={"Idempotency-Key": key})
    assert code(answer)[0] == 400
    assert is_unborn(small)


def test_a_batch_is_stored_whole_or_not_at_all(small: Flask) -> None:
    good: dict[str, object] = {"channel": "a", "data": 1}
    for bad in ({"channel": "a b", "data": 1}, {"channel": "a"}, {"channel": "a", "data": "x" * 65_537}, 5):
        assert post(small, [good, bad]).status_code in (413, 422)
    assert post(small, [good] * 101).status_code == 422
    assert is_unborn(small)
    assert post(small, [good] * 100).status_code == 201


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
def test_a_body_over_its_limit_is_413(small: Flask, path: str) -> None:
    body = json.dumps({"channel": "a", "data": "x"}).encode().ljust((1 << 20) + 1)
    answer = post(small, body, path)
    assert code(answer) == (413, "too_large")
    assert is_unborn(small)
    assert (
        code(post(small, body[:-1], path))[0] == 413
        if path.endswith("a")
        else post(small, body[:-1]).status_code == 201
    )


@pytest.mark.parametrize("body", [b"", b"x" * (1 << 20), b"x" * ((1 << 20) + 1)])
def test_a_chunked_body_has_the_same_limit(small: Flask, body: bytes) -> None:
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    answer = post(small, path="/sse/publish/a", data=body, content_type="text/plain", environ_overrides=environ)
    assert answer.status_code == (413 if body else 201)


@pytest.mark.parametrize("more", [0, 1, 300_000])
def test_a_chunked_body_of_more_than_1_mib_is_not_cut_and_stored(make_app: MakeApp, more: int) -> None:
    app = make_app(SSE_PUBLISH_KEYS=KEY, SSE_PUBLIC="*", SSE_MAX_EVENT_BYTES=1 << 20)
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    environ["wsgi.input"] = io.BytesIO(b"x" * ((1 << 20) + more))
    answer = post(app, path="/sse/publish/a", content_type="text/plain", environ_overrides=environ)
    assert answer.status_code == (413 if more else 201)
    assert is_unborn(app) is bool(more)


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
@pytest.mark.parametrize("length", ["35", "9" * 6, "34abc", "abc", "-5", "0x22", "3_4", " 34", "9" * 5000, "3٤"])
def test_a_body_that_is_shorter_than_its_length_or_whose_length_is_none_is_400(
    small: Flask, path: str, length: str
) -> None:
    body = b'{"channel": "a", "data": "123456"}'  # of 34 bytes
    environ = {"wsgi.input_terminated": True, "CONTENT_LENGTH": length}
    answer = post(small, path=path, data=body, content_type="application/json", environ_overrides=environ)
    assert answer.status_code == 400
    assert is_unborn(small)
    assert post(small, path=path, data=body, content_type="application/json").status_code == 201


class Broken(io.BytesIO):
    """A body that breaks off with a server's own error."""

    fault: Exception = OSError("no more")

    def read(self, size: int | None = -1) -> bytes:
        raise self.fault

    readinto = read  # type: ignore[assignment]


@pytest.mark.parametrize("fault", [OSError("gone"), ValueError("no chunk"), RuntimeError("the server's own")], ids=repr)
def test_a_body_that_a_server_cannot_read_to_its_end_is_400(small: Flask, fault: Exception) -> None:
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    environ["wsgi.input"] = Broken()
    environ["wsgi.input"].fault = fault
    answer = post(small, path="/sse/publish/a", content_type="text/plain", environ_overrides=environ)
    assert code(answer) == (400, "bad_request")
    assert "the same Idempotency-Key" in answer.get_json()["error"]["hint"]
    assert is_unborn(small)


def test_a_body_with_a_length_and_chunks_is_400(small: Flask) -> None:
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "1"}
    answer = post(small, path="/sse/publish/a", data="x", content_type="text/plain", environ_overrides=environ)
    assert answer.status_code == 400
    assert is_unborn(small)


@pytest.mark.parametrize("path", ["/sse/stream?channel=a", "/sse/poll?channel=a&timeout=0"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_nobody_asked_for_is_dropped_up_to_16_kb(
    small: Flask, path: str, method: str, chunked: bool
) -> None:
    environ = {"wsgi.input_terminated": True}
    if chunked:
        environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    for size, status in ((0, 200), (1, 200), (16_384, 200), (16_385, 413), (3_000_000, 413)):
        body = io.BytesIO(b"x" * size)
        length = None if chunked else size
        with small.test_client().open(
            path, method=method, input_stream=body, content_length=length, environ_overrides=environ
        ) as answer:
            assert answer.status_code == status, size
            assert body.read() == b""  # the next bytes begin another request
            if status == 413 and method == "GET":
                assert code(answer) == (413, "too_large")
    small.config["MAX_CONTENT_LENGTH"] = 100
    with small.test_client().open(path, method=method, data=b"x" * 101) as answer:
        assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/sse/stream?channel=a", "/sse/poll?channel=a"])
@pytest.mark.parametrize(("length", "status"), [("5", 400), ("20000", 413)])
def test_a_body_that_cannot_be_read_is_answered_and_takes_no_seat(
    small: Flask, path: str, length: str, status: int
) -> None:
    environ = {"wsgi.input": Broken(), "CONTENT_LENGTH": length, "wsgi.input_terminated": True}
    with small.test_client().get(path, environ_overrides=environ) as answer:
        assert code(answer)[0] == status
    assert small.extensions["sse"].hub.subscribers == 0


def test_data_over_its_limit_is_413_counted_in_utf_8(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLISH_KEYS=KEY, SSE_MAX_EVENT_BYTES=30)
    for data, status in (("x" * 30, 201), ("x" * 31, 413), ("ä" * 15, 201), ("ä" * 15 + "x", 413), ("\r\n" * 30, 201)):
        assert post(app, {"channel": "a", "data": data}).status_code == status
        assert post(app, path="/sse/publish/a", data=data, content_type="text/plain").status_code == status
    # Four bytes more are over it once they are a data: URL.
    assert post(app, path="/sse/publish/a", data=b"12", content_type="a/b").status_code == 201
    assert code(post(app, path="/sse/publish/a", data=b"x" * 20, content_type="a/b")) == (413, "too_large")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_json_publishing_takes_json_only(small: Flask, content_type: str | None) -> None:
    answer = post(small, path="/sse/publish", data=b'{"channel":"a","data":1}', content_type=content_type)
    assert code(answer) == (415, "unsupported_media")
    assert is_unborn(small)


@pytest.mark.parametrize("path", ["/sse/publish", "/sse/publish/a"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "Identity"}, 201),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "application/json; charset=UTF-8"}, 201),
    ],
)
def test_a_body_is_taken_in_utf_8_and_not_compressed(
    small: Flask, path: str, headers: Mapping[str, str], status: int
) -> None:
    options = {"headers": headers} if "Content-Type" not in headers else {"content_type": headers["Content-Type"]}
    answer = post(small, {"channel": "a", "data": 1}, path, **options)
    assert answer.status_code == status
    assert is_unborn(small) is (status != 201)


def test_text_that_is_not_utf_8_is_400(small: Flask) -> None:
    answer = post(small, path="/sse/publish/a", data=b"\xff", content_type="text/plain")
    assert code(answer)[0] == 400
    assert code(post(small, b'{"channel": "a", "data": "\xff"}')) == (400, "bad_json")
    assert is_unborn(small)


@pytest.mark.parametrize("content_type", ["image", "image/p ng", "a/b\u00e4", "a/" + "b" * 65, "/"])
def test_a_media_type_that_is_none_is_refused(small: Flask, content_type: str) -> None:
    answer = post(small, path="/sse/publish/a", data=b"x", content_type=content_type)
    assert code(answer) == (422, "invalid_media_type")
    assert is_unborn(small)


def test_what_is_published_over_http_reaches_a_stream(app: Flask) -> None:
    with stream(app.test_client(), "channel=a") as reader:
        reader.opening()
        (published,) = post(app, {"channel": "a", "type": "t", "data": "1\n2"}).get_json()["ids"]
        (event,) = reader.take(1)
        assert (event.id, event.event, event.data) == (published, "t", "1\n2")


# Addresses and methods


@pytest.mark.parametrize(
    "path", ["/sse", "/sse/", "/sse/x", "/sse/streams", "/sse/stream/", "/sse/publish/", "/sse/a/b/c"]
)
def test_elsewhere_there_is_nothing(small: Flask, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = small.test_client().open(path, method=method, headers={"Origin": ORIGIN})
        assert code(answer) == (404, "not_found")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    ("path", "methods", "allowed"),
    [
        ("/sse/stream", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "FOO"], "GET, HEAD, OPTIONS"),
        ("/sse/poll", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"], "GET, HEAD, OPTIONS"),
        ("/sse/sse.js", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"], "GET, HEAD, OPTIONS"),
        ("/sse/sse.0.js", ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"], "GET, HEAD, OPTIONS"),
        ("/sse/publish", ["GET", "HEAD", "PUT", "PATCH", "DELETE"], "POST, OPTIONS"),
        ("/sse/publish/a/b", ["GET", "HEAD", "PUT", "PATCH", "DELETE"], "POST, OPTIONS"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_is_right(
    small: Flask, path: str, methods: list[str], allowed: str
) -> None:
    for method in methods:
        answer = small.test_client().open(path, method=method, headers={"Origin": ORIGIN})
        assert answer.status_code == 405
        assert answer.headers["Allow"] == allowed
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert method == "HEAD" or code(answer) == (405, "method_not_allowed")
    assert small.test_client().options(path).headers["Allow"] == allowed


# CORS


def cors(response: TestResponse) -> dict[str, str]:
    return {
        name.removeprefix("Access-Control-"): value
        for name, value in response.headers.items()
        if name.startswith("Access-Control-")
    }


ALLOWED = {"Allow-Origin": ORIGIN, "Allow-Credentials": "true", "Expose-Headers": "Retry-After"}
REQUESTS = [
    *(("GET", "/sse/stream?channel=a", 200), ("HEAD", "/sse/stream?channel=a", 200), ("GET", "/sse/stream", 400)),
    *(("GET", "/sse/poll?channel=a&timeout=0", 200), ("GET", "/sse/poll", 400), ("GET", "/sse/none", 404)),
    *(("POST", "/sse/publish", 401), ("PUT", "/sse/stream", 405)),
]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
def test_an_allowed_origin_is_told_so_on_every_answer(small: Flask, method: str, path: str, status: int) -> None:
    for origin in (ORIGIN, "http://[::1]:8000"):
        with small.test_client().open(path, method=method, headers={"Origin": origin}) as response:
            assert response.status_code == status
            assert cors(response) == ALLOWED | {"Allow-Origin": origin}
            assert response.headers["Vary"] == VARY


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
@pytest.mark.parametrize(
    "origin",
    [
        *("null", "https://a.example.evil.net", "https://evil.net/a.example", "https://xa.example", "http://a.example"),
        *(
            "https://a.example:443",
            "https://a.example/",
            "https://a.example\n",
            "HTTPS://A.EXAMPLE",
            "https://axexample",
        ),
        *("*", "", "https://a.exampl", "http://1:8000", "http://[::2]:8000", "http://:8000", "a.example"),
    ],
)
def test_any_other_origin_is_told_nothing(small: Flask, method: str, path: str, status: int, origin: str) -> None:
    environ = {"HTTP_ORIGIN": origin}
    with small.test_client().open(path, method=method, environ_overrides=environ) as response:
        assert response.status_code == status
        assert cors(response) == {}
        assert response.headers["Vary"] == VARY


def test_an_origin_is_told_the_same_whoever_asked_before(small: Flask) -> None:
    client = small.test_client()
    first, second = ORIGIN, "http://[::1]:8000"
    strangers = [f"https://{number}.example" for number in range(100)]
    for origin in (first, "null", second, first, "null", *strangers, first):
        told = cors(client.get("/sse/poll?channel=a&timeout=0", headers={"Origin": origin}))
        assert told == (ALLOWED | {"Allow-Origin": origin} if origin in (first, second) else {})


def test_without_an_origin_nothing_is_told(small: Flask) -> None:
    assert cors(small.test_client().head("/sse/stream?channel=a")) == {}


def preflight(app: Flask, path: str, origin: str, method: str = "GET", headers: str = "last-event-id") -> TestResponse:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return app.test_client().options(path, headers=asked)


@pytest.mark.parametrize("path", ["/sse/stream?channel=a", "/sse/poll", "/sse/publish", "/sse/sse.js", "/sse/none"])
def test_a_preflight_with_a_last_event_id_is_allowed(small: Flask, path: str) -> None:
    response = preflight(small, path, ORIGIN, headers="last-event-id, authorization, x-other")
    assert response.status_code == 200
    told = cors(response)
    assert told["Allow-Origin"] == ORIGIN
    assert told["Allow-Credentials"] == "true"
    assert {name.lower() for name in told["Allow-Headers"].split(", ")} == {"last-event-id", "authorization"}
    assert {"GET", "HEAD", "POST"} <= set(told["Allow-Methods"].split(", "))
    assert int(told["Max-Age"]) > 0
    assert is_unborn(small)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_preflight_may_ask_for_all_that_is_allowed_and_is_told_exact_names(small: Flask, method: str) -> None:
    asked = ",".join(name.lower() for name in ALLOWED_HEADERS)  # as browsers do
    for path in ("/sse/stream", "/sse/poll", "/sse/publish"):
        told = cors(preflight(small, path, ORIGIN, method, f"{asked},hx-boosted,x-requested-with"))
        assert told["Allow-Headers"].split(", ") == asked.split(",")


@pytest.mark.parametrize("origin", ["null", "https://a.example.evil.net"])
def test_a_preflight_from_elsewhere_is_told_nothing(small: Flask, origin: str) -> None:
    assert cors(preflight(small, "/sse/stream", origin)) == {}


def test_a_star_goes_to_all_and_never_with_credentials(make_app: MakeApp) -> None:
    app = make_app(SSE_ORIGINS="*", SSE_PUBLISH_KEYS=KEY)
    for origin in (ORIGIN, "null"):
        for method, path, status in REQUESTS:
            with app.test_client().open(path, method=method, headers={"Origin": origin}) as response:
                assert response.status_code == status
                assert cors(response) == {"Allow-Origin": "*", "Expose-Headers": "Retry-After"}
        told = cors(preflight(app, "/sse/stream", origin))
        assert told["Allow-Origin"] == "*"
        assert "Allow-Credentials" not in told


def test_without_origins_other_sites_are_told_nothing(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLISH_KEYS=KEY)
    for method, path, _ in REQUESTS:
        with app.test_client().open(path, method=method, headers={"Origin": ORIGIN}) as response:
            assert cors(response) == {}
    assert cors(preflight(app, "/sse/stream", ORIGIN)) == {}


def test_the_app_s_own_routes_and_headers_stay_its_own() -> None:
    app = Flask("own")
    app.config.from_mapping(SSE_ORIGINS=ORIGIN)
    sse = SSE(app)
    app.add_url_rule("/own", "own", lambda: "own")

    @app.after_request
    def add(response: Any) -> Any:
        response.headers["X-Own"] = "yes"
        response.vary.add("Accept")
        return response

    def vary(response: Any) -> Any:
        response.vary.update(["cookie", "X-Tenant"])
        return response

    sse.authorize(lambda channel: bool(after_this_request(vary)))
    client = app.test_client()
    answer = client.get("/own", headers={"Origin": ORIGIN})
    assert cors(answer) == {}
    assert "X-Content-Type-Options" not in answer.headers
    with client.get("/sse/stream?channel=a", headers={"Origin": ORIGIN}) as answer:
        assert answer.headers["X-Own"] == "yes"
        assert answer.headers["Vary"] == f"{VARY}, X-Tenant, Accept"
    app.extensions["sse"].close()


def test_two_streams_of_one_client_are_two_subscribers_and_each_hears_all(app: Flask) -> None:
    hub = app.extensions["sse"].hub
    with stream(app.test_client(), "channel=a") as one, stream(app.test_client(), "channel=a") as two:
        assert hub.subscribers == 2
        for reader in (one, two):
            reader.opening()
        publish_in_app(app, "a", "x")
        assert [event.data for reader in (one, two) for event in reader.take(1)] == ["x", "x"]
    wait_until(lambda: hub.subscribers == 0, 2)


def test_a_waiting_poll_hears_a_publish_at_once(app: Flask) -> None:
    place = app.test_client().get("/sse/poll?channel=a").get_json()["last_event_id"]
    answered = threading.Event()

    def wait() -> Any:
        answer = app.test_client().get(f"/sse/poll?channel=a&timeout=10&last_event_id={place}").get_json()
        answered.set()
        return answer

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert not answered.wait(0.2)
        (published,) = publish_in_app(app, "a", "x")
        assert answered.wait(2)
        assert [event["id"] for event in waiting.result()["events"]] == [published]


@pytest.mark.parametrize("channel", ["news/*", "*"])
def test_a_pattern_cannot_be_subscribed_to_or_published_on(make_app: MakeApp, channel: str) -> None:
    sse = SSE()
    app = make_app(sse, SSE_PUBLISH_KEYS=KEY, SSE_SECRET=SECRET)
    client = app.test_client()
    headers = {"Authorization": f"Bearer {KEY}"}
    token = {"Authorization": f"Bearer {signed(claims())}"}
    for answer, status in (
        (client.get("/sse/stream", query_string={"channel": channel}), 400),
        (client.get("/sse/poll", query_string={"channel": channel}), 400),
        (client.post("/sse/ticket", query_string={"channel": channel}, headers=token), 400),
        (client.post(f"/sse/publish/{channel}", data="x", headers=headers), 422),
        (client.post("/sse/publish", json={"channel": channel, "data": "x"}, headers=headers), 422),
    ):
        assert (answer.status_code, answer.json["error"]["code"]) == (status, "invalid_channel")
        assert "name each channel" in answer.json["error"]["hint"]
    with app.app_context():
        for call in (sse.publish, lambda channel, _: sse.ticket([channel])):
            with pytest.raises(InvalidEvent, match="name each channel"):
                call(channel, "x")
