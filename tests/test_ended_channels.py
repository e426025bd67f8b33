"""The end of a channel on the wire: streams, polls and requests that come after it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse import SSE
from sse.errors import Ended
from sse.event import Event, LastEventId, Position
from sse.hub.subscriber import starting_points
from sse.service import Service
from sse.stores import Publication, Receipt
from tests import client
from tests.driven_streams import poll
from tests.publishing import post
from tests.tokens import KEY
from tests.writing import Run

RETRY = 1000
FORMS = {"": "", "delta": "&ids=delta", "typed": "&types=data", "cut": "&end=cut"}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=[name or "plain" for name in FORMS])


@pytest.fixture
def app(store_url: str | None) -> Iterator[Flask]:
    app = Flask("tests")
    app.config.update(
        SSE_PUBLIC="*", SSE_REDIS_URL=store_url, SSE_RETRY=RETRY, SSE_PUBLISH_KEYS=KEY, SSE_ORIGINS="https://a.example"
    )
    SSE(app)
    yield app
    service: Service = app.extensions["sse"]
    left = service.hub.subscribers
    service.close()
    assert left == 0


@pytest.fixture
def browser(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def service(app: Flask) -> Service:
    found: Service = app.extensions["sse"]
    return found


def run(service: Service, channel: str = "a", *texts: str, end: Any = None) -> Run:
    made = Run(service.store, channel)
    made.write(*texts)
    if end:
        made.end(end)
    return made


def ask(browser: FlaskClient, channels: str = "a", query: str = "", place: str = "", **options: Any) -> TestResponse:
    """Ask for a stream, with the last event id in the header."""
    address = "/sse/stream?" + "&".join(f"channel={name}" for name in channels) + query
    headers = {"Last-Event-ID": place} if place else {}
    return browser.get(address, headers=headers, **options)


def read(response: TestResponse) -> bytes:
    """Return the whole body of a stream, which ends by itself; a cut is seen as an error of the body."""
    assert response.status_code == 200
    body = b""
    try:
        for chunk in response.iter_encoded():
            body += chunk
    finally:
        response.close()
    return body


def blocks(body: bytes) -> list[client.Event]:
    return list(client.Parser().feed(body))


def kinds(body: bytes) -> list[str]:
    return [block.event for block in blocks(body) if block.event != "sse.heartbeat"]


# The stream


@every_form
def test_a_stream_ends_normally_after_the_end_of_its_channel(browser: FlaskClient, service: Service, form: str) -> None:
    run(service, "a", "Hello", " world", end="done")
    body = read(ask(browser, "a", form))
    *_, text, end = blocks(body)
    assert kinds(body) == ["sse.open", "sse.event" if "types" in form else "text", "sse.end"]
    assert text.data == ("text\nHello world" if "types" in form else "Hello world")
    assert end.json() == {"channel": "a", "reason": "done"}
    (newest,) = service.store.newest(["a"])
    assert end.own_id == f"a={newest}"
    assert b"retry: " in body.partition(b"event: text" if "types" not in form else b"event: sse.event")[2]


def test_the_retry_before_the_end_is_another_one_for_each_client(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="done")
    waits = [int(re.findall(rb"retry: (\d+)", read(ask(browser)))[-1]) for _ in range(30)]
    assert all(RETRY / 10 <= wait <= RETRY for wait in waits)
    assert max(waits) - min(waits) > RETRY / 3


def test_the_stream_goes_on_for_the_channels_that_live(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="failed")
    other = run(service, "b", "y")
    response = ask(browser, "ab")
    seen: list[client.Event] = []
    parser = client.Parser()
    chunks = response.iter_encoded()
    while not any(block.event == "sse.end" for block in seen):
        seen += parser.feed(next(chunks))
    assert service.hub.subscribers == 1
    other.write("z")
    other.end("stopped")
    rest = b"".join(chunks)
    response.close()
    seen += parser.feed(rest)
    ends = [block.json() for block in seen if block.event == "sse.end"]
    assert ends == [{"channel": "a", "reason": "failed"}, {"channel": "b", "reason": "stopped"}]
    places = dict(part.split("=") for part in seen[-1].id.split("~"))
    newest = dict(zip("ab", map(str, service.store.newest(["a", "b"])), strict=True))
    assert places == newest
    assert rest.count(b"retry: ") == 1


def test_an_opening_says_what_is_whole_and_what_has_ended(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="lost")
    live = run(service, "b", "y")
    service.publish([Publication("c", Event("1")), Publication("c", Event("2"))])
    newest = dict(zip("abc", map(str, service.store.newest(["a", "b", "c"])), strict=True))
    response = ask(browser, "abc", place="~".join(f"{name}={place}" for name, place in newest.items()))
    opening = client.Parser().feed(next(response.iter_encoded()))[0]
    response.close()
    assert opening.json()["channels"] == {
        "a": {"position": newest["a"], "resumed": True, "ended": "lost"},
        "b": {"position": newest["b"], "resumed": True},
        "c": {"position": newest["c"], "resumed": True},
    }
    response = ask(browser, "abc")
    opening = client.Parser().feed(next(response.iter_encoded()))[0]
    response.close()
    told = opening.json()["channels"]
    assert {name: told[name].get("whole") for name in "abc"} == {"a": True, "b": True, "c": None}
    live.end()


def test_whole_tells_of_what_follows_a_reset(browser: FlaskClient, service: Service) -> None:
    live = run(service, "a", "x", "y")
    response = ask(browser, "a", place="a=77-77")
    chunks = response.iter_encoded()
    first, _ = client.Parser().feed(next(chunks))
    rest = list(client.Parser().feed(next(chunks)))
    response.close()
    assert first.json()["channels"]["a"] == {"position": "77-77", "resumed": False, "whole": True}
    assert [(block.event, block.data) for block in rest][1:] == [("text", "xy")]
    live.end()


def test_an_end_that_comes_is_pushed(browser: FlaskClient, service: Service) -> None:
    live = run(service, "a", "x")
    response = ask(browser, "a")
    chunks = response.iter_encoded()
    body = b""
    while b"data: x" not in body:
        body += next(chunks)
    live.write("y")
    live.end("interrupted")
    body += b"".join(chunks)
    response.close()
    assert [block.data for block in blocks(body) if block.event == "text"] == ["x", "y"]
    assert blocks(body)[-1].json()["reason"] == "interrupted"


# 204


@pytest.mark.parametrize("form", [*FORMS.values(), "&form=bare"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by_header", [True, False])
def test_a_request_that_stands_at_the_end_gets_204(
    browser: FlaskClient, service: Service, form: str, method: str, by_header: bool
) -> None:
    run(service, "a", "x", end="done")
    run(service, "b", "y", end="done")
    place = "~".join(f"{name}={newest}" for name, newest in zip("ab", service.store.newest(["a", "b"]), strict=True))
    query = form if by_header else f"{form}&last_event_id={place}"
    answer = ask(browser, "ab", query, place if by_header else "", method=method)
    answer = browser.open(
        answer.request.path + "?" + answer.request.query_string.decode(),
        method=method,
        headers={"Origin": "https://a.example"} | ({"Last-Event-ID": place} if by_header else {}),
    )
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "no-store" in answer.headers["Cache-Control"]
    assert "Content-Type" not in answer.headers
    assert "Content-Length" not in answer.headers


@every_form
def test_a_client_that_has_not_had_the_end_gets_it(browser: FlaskClient, service: Service, form: str) -> None:
    made = run(service, "a")
    (before,) = made.write("x")
    made.end("stopped")
    body = read(ask(browser, "a", form, place=f"a={before}"))
    assert kinds(body) == ["sse.open", "sse.end"]
    assert ask(browser, "a", form, place=blocks(body)[-1].id).status_code == 204


def test_one_channel_that_lives_keeps_the_stream(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="done")
    service.publish([Publication("b", Event("1"))])
    place = "~".join(f"{name}={newest}" for name, newest in zip("ab", service.store.newest(["a", "b"]), strict=True))
    response = ask(browser, "ab", place=place)
    assert response.status_code == 200
    response.close()


def test_a_run_that_is_begun_again_is_reset_and_told_from_its_beginning(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "old", end="failed")
    (end,) = service.store.newest(["a"])
    again = Run(service.store, "a", restart=True)
    again.write("new")
    again.end()
    body = read(ask(browser, "a", place=f"a={end}"))
    assert kinds(body) == ["sse.open", "sse.reset", "text", "sse.end"]
    assert blocks(body)[-2].data == "new"


# form=bare


def bare_events(body: bytes) -> list[client.Event]:
    return list(client.Parser(bare=True).feed(body))


def test_a_bare_stream_has_the_end_as_a_comment(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", "y", end="failed")
    response = ask(browser, "a", "&form=bare")
    body = read(response)
    (event,) = bare_events(body)
    assert (event.event, event.data) == ("text", "xy")
    assert body.endswith(b'\n\n: end {"channel":"a","reason":"failed"}\n')
    assert body.count(b"retry: ") == 1
    answer = ask(browser, "a", "&form=bare", place=event.id)
    assert answer.status_code == 410
    assert answer.json is not None
    assert answer.json["error"]["code"] == "ended"
    assert answer.json["ended"] == {"a": "failed"}
    assert ask(browser, "a", "&form=bare", place=answer.json["last_event_id"]).status_code == 410


def test_a_bare_client_that_has_the_text_gets_204_after_done(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="done")
    (event,) = bare_events(read(ask(browser, "a", "&form=bare")))
    assert ask(browser, "a", "&form=bare", place=event.id).status_code == 204


@pytest.mark.parametrize(("reason", "status"), [("done", 204), ("lost", 410)])
def test_a_bare_stream_without_any_event_is_not_opened_after_the_end(
    browser: FlaskClient, service: Service, reason: str, status: int
) -> None:
    run(service, "a", end=reason)
    assert ask(browser, "a", "&form=bare").status_code == status


def test_a_bare_stream_goes_on_for_the_channel_that_lives(browser: FlaskClient, service: Service) -> None:
    made = run(service, "a")
    (before,) = made.write("x")
    made.end("failed")
    other = run(service, "b")
    (there,) = other.write("y")
    response = ask(browser, "ab", "&form=bare", place=f"a={before}~b={there}")
    chunks = response.iter_encoded()
    body = b""
    while b": end" not in body:
        body += next(chunks)
    other.write("z")
    other.end()
    body += b"".join(chunks)
    response.close()
    (event,) = bare_events(body)
    (end,) = service.store.newest(["a"])
    assert event.id.endswith(f"~a={end}"), "the end of the other channel has been said before"
    assert event.data == "z"


# Polls


def ask_poll(browser: FlaskClient, channels: str = "a", place: str = "", timeout: int = 0, extra: str = "") -> Any:
    query = "&".join(f"channel={name}" for name in channels) + (f"&last_event_id={place}" if place else "")
    began = time.monotonic()
    answer = browser.get(f"/sse/poll?{query}&timeout={timeout}{extra}")
    assert answer.status_code == 200
    assert time.monotonic() - began < 5, "it does not wait"
    return answer.json


@pytest.mark.parametrize("timeout", [0, 20])
def test_a_poll_has_the_text_and_then_that_it_has_ended(browser: FlaskClient, service: Service, timeout: int) -> None:
    run(service, "a", "x", "y", end="done")
    (end,) = service.store.newest(["a"])
    answer = ask_poll(browser, timeout=timeout)
    assert [(event["type"], event["data"]) for event in answer["events"]] == [("text", "xy")]
    assert (answer["last_event_id"], answer["ended"], answer["whole"]) == (f"a={end}", {"a": "done"}, ["a"])
    assert not answer["more"]
    again = ask_poll(browser, place=answer["last_event_id"], timeout=timeout)
    assert again == {
        "last_event_id": f"a={end}", "events": [], "resets": [], "ended": {"a": "done"}, "more": False, "retry": RETRY
    }  # fmt: skip


@pytest.mark.parametrize("timeout", [0, 20])
def test_a_poll_before_the_end_has_the_end_alone(browser: FlaskClient, service: Service, timeout: int) -> None:
    made = run(service, "a")
    (before,) = made.write("x")
    end = made.end("stopped")
    answer = ask_poll(browser, place=f"a={before}", timeout=timeout)
    assert (answer["last_event_id"], answer["events"], answer["ended"]) == (f"a={end}", [], {"a": "stopped"})
    assert "whole" not in answer


def test_a_poll_waits_for_the_channels_that_live(browser: FlaskClient, service: Service) -> None:
    run(service, "a", "x", end="done")
    run(service, "b", "y")
    place = "~".join(f"{name}={newest}" for name, newest in zip("ab", service.store.newest(["a", "b"]), strict=True))
    began = time.monotonic()
    answer = ask_poll(browser, "ab", place, timeout=1)
    assert time.monotonic() - began > 0.9
    assert (answer["events"], answer["ended"], answer["last_event_id"]) == ([], {"a": "done"}, place)


def test_polls_that_share_an_answer_hear_of_the_end(service: Service) -> None:
    made = run(service, "a", "x")
    (place,) = service.store.newest(["a"])
    end = made.end("lost")
    starts = starting_points(["a"], LastEventId.parse(f"a={place}"))
    first = poll(service.hub, starts, timeout=5, retry=RETRY)
    assert service.hub.last_answer[0] is not None
    assert poll(service.hub, starts, timeout=5, retry=RETRY) == first
    assert (first["ended"], first["last_event_id"]) == ({"a": "lost"}, f"a={end}")


@pytest.mark.parametrize("timeout", [0, 5])
@pytest.mark.parametrize("max_bytes", [1024, 3000, 20_000])
def test_a_bounded_poll_has_the_whole_text_in_answers_that_keep_the_bound(
    browser: FlaskClient, service: Service, timeout: int, max_bytes: int
) -> None:
    texts = [f'"{number}"\n\\é' for number in range(600)]
    run(service, "a", *texts, end="done")
    text, place, answers = "", "", 0
    while True:
        address = f"/sse/poll?channel=a&timeout={timeout}&max_bytes={max_bytes}"
        raw = browser.get(address + (f"&last_event_id={place}" if place else ""))
        assert len(raw.data) <= max_bytes
        answer = raw.json
        assert answer is not None
        assert answer.get("whole") == (["a"] if not place else None)
        text += "".join(event["data"] for event in answer["events"])
        place, answers = answer["last_event_id"], answers + 1
        if "ended" in answer:
            break
        assert answer["more"]
    assert text == "".join(texts)
    size = len(json.dumps(text, ensure_ascii=False).encode())
    assert answers <= size / (max_bytes * 0.45) + 2, "an answer is not left half empty"


# Late joiners


@pytest.mark.parametrize("words", [1, 20])
def test_many_pieces_come_late_in_few_blocks(browser: FlaskClient, service: Service, words: int) -> None:
    texts = [f"{number} " * words for number in range(600)]
    run(service, "a", *texts, end="done")
    for query in ("", "&form=bare", "&types=data"):
        body = read(ask(browser, "a", query))
        found = [block.data for block in (bare_events(body) if "bare" in query else blocks(body)) if block.own_id]
        found = [data for data in found if data and not data.startswith("{")]
        assert "".join(data.removeprefix("text\n") for data in found) == "".join(texts)
        assert len(found) == -(-len("".join(texts)) // 16_000)


# Publishing


def test_publishing_on_an_ended_channel_is_409(app: Flask, service: Service) -> None:
    run(service, "a", "x", end="done")
    for answer in (
        post(app, {"channel": "a", "data": 1}),
        post(app, "text", "/sse/publish/a", content_type="text/plain"),
        post(app, [{"channel": "b", "data": 1}, {"channel": "a", "data": 1}]),
    ):
        assert answer.status_code == 409
        assert answer.json is not None
        assert answer.json["error"]["code"] == "ended"
        assert "ids" not in answer.json["error"], "nothing is stored"
    assert service.store.newest(["b"]) == [None]


def test_an_end_that_comes_between_refuses_its_event_alone(
    app: Flask, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has checked all channels, and one of them ends before its event is stored."""
    there = Position(1, 5)
    refused = [Receipt(there, "new"), Ended("channel a has ended", "stop")]
    monkeypatch.setattr(service.store, "publish_each", lambda calls: [refused])
    answer = post(app, [{"channel": "b", "data": 1}, {"channel": "a", "data": 1}])
    assert answer.status_code == 409
    assert answer.json == {
        "error": {"code": "ended", "message": "channel a has ended", "hint": "stop", "ids": ["b=1-5", None]}
    }
