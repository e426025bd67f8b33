"""The app's own hooks, in the test client. tests/live/test_app_hooks.py tests them under real servers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, make_response, request
from flask.testing import EnvironBuilder

from sse.transports.stream import Cut
from tests import client as wire
from tests.conftest import MakeApp
from tests.publishing import publish_in_app
from tests.tokens import KEY


class OwnResponse(Response):
    """A response class of an app, which adds a method."""


def read(response: Response) -> Response:
    response.add_etag()
    return response


def freeze(response: Response) -> Response:
    response.freeze()
    return response


def write(response: Response) -> Response:
    response.stream.write(b"more")
    return response


def rewrite(response: Response) -> Response:
    response.data = response.data.upper()
    response.headers["Content-Encoding"] = "gzip"
    return response


def fail(_: Response) -> Response:
    raise RuntimeError("a hook fails")


def replace(_: Response) -> Response:
    return Response("other")


def around(response: Response) -> Response:
    return Response(response.response, headers=response.headers)


def ask(app: Flask, path: str, method: str = "GET") -> tuple[str, bytes, dict[str, Any]]:
    """Return the status, the first chunk, and the environ after the request, of a server that can hold streams."""
    statuses: list[str] = []
    environ = EnvironBuilder(app, path, method=method, environ_overrides={"sse.can_hand_off": True}).get_environ()
    body = app.wsgi_app(environ, lambda status, _: statuses.append(status))  # type: ignore[arg-type,return-value]
    chunk = next(iter(body), b"")
    body.close()  # type: ignore[attr-defined]
    return statuses[0], chunk, environ


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(PROPAGATE_EXCEPTIONS=False)


def is_opening(chunk: bytes) -> bool:
    return wire.Parser().feed(chunk)[0].event == "sse.open"


@pytest.mark.parametrize(
    ("hook", "method"), [(read, "add_etag"), (freeze, "freeze"), (write, "write"), (rewrite, "get_data")]
)
def test_a_stream_that_a_hook_has_read_is_handed_off_all_the_same(
    app: Flask, hook: Callable[[Response], Response], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.after_request(hook)
    for _ in range(2):
        status, chunk, environ = ask(app, "/sse/stream?channel=a")
        assert (status, is_opening(chunk), "sse.body" in environ) == ("200 OK", True, True)
    [record] = caplog.records
    place = (
        rf"the app's {hook.__name__} \(\S+test_web_hooks\.py, line \d+\), with {method}\(\), reads the body of a stream"
    )
    assert re.match(place, record.getMessage())


@pytest.mark.parametrize(
    "remake",
    [
        lambda response: Response(response.get_data(), headers=response.headers),
        lambda response: Response(response.get_data(as_text=True) + "<!-- seen -->"),
        lambda response: make_response(response.get_data(), 200, {"ETag": '"a"', "Content-Encoding": "gzip"}),
    ],
)
def test_a_stream_comes_whole_where_a_hook_makes_a_response_of_its_own_of_what_it_read(
    app: Flask, remake: Callable[[Response], Response]
) -> None:
    app.after_request(remake)
    answer = app.test_client().get("/sse/stream?channel=a")
    assert is_opening(next(answer.iter_encoded()))
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    assert not {"Content-Length", "ETag", "Content-Encoding"} & {name for name, _ in answer.headers}
    assert app.extensions["sse"].hub.subscribers == 1
    answer.close()
    assert app.extensions["sse"].hub.subscribers == 0


def test_an_app_s_own_class_of_responses_is_handed_off_and_kept(app: Flask) -> None:
    app.response_class = OwnResponse
    kinds: list[bool] = []

    @app.after_request
    def note(response: Response) -> Response:
        kinds.append(isinstance(response, OwnResponse))
        return response

    place = publish_in_app(app, "a", 1)[0]
    assert "sse.body" in ask(app, "/sse/stream?channel=a")[2]
    waiting = f"/sse/poll?channel=a&timeout=1&last_event_id={place.replace('=', '%3D')}"
    assert "sse.body" in ask(app, waiting)[2]
    assert kinds == [True, True]


@pytest.mark.parametrize("kind", [Response, OwnResponse])
def test_a_busy_answer_breaks_off_whatever_the_app_s_class_of_responses(
    make_app: MakeApp, kind: type[Response]
) -> None:
    app = make_app(SSE_LIMIT_SUBSCRIBE="1/minute")
    app.response_class = kind
    classes = set()
    app.after_request(lambda response: (classes.add(type(response)), response)[1])
    browser = app.test_client()
    path, far = "/sse/stream?channel=a&end=cut", {"REMOTE_ADDR": "203.0.113.9"}
    browser.get(path, environ_base=far).close()
    classes.clear()
    for _ in range(2):
        answer = browser.get(path, environ_base=far)
        assert "Content-Length" not in answer.headers
        chunks = answer.iter_encoded()
        assert wire.Parser().feed(next(chunks))[0].json()["reason"] == "busy"
        with pytest.raises(Cut):
            next(chunks)
    assert [issubclass(one, kind) for one in classes] == [True]


@pytest.mark.parametrize("query", ["", "&form=bare", "&end=cut"])
def test_a_query_that_cannot_be_read_does_not_keep_a_stream_from_being_busy(app: Flask, query: str) -> None:
    app.before_request(lambda: Response("of the app", 429))
    environ = EnvironBuilder(app, "/sse/stream").get_environ() | {"QUERY_STRING": f"channel=a{query}&x=\xff"}
    statuses: list[str] = []
    body = app.wsgi_app(environ, lambda status, _: statuses.append(status))  # type: ignore[arg-type,return-value]
    [event] = wire.Parser().feed(b"".join(body))
    assert (statuses, event.json()["reason"]) == (["200 OK"], "busy")


@pytest.mark.parametrize(("hook", "status"), [(read, "200 OK"), (replace, "200 OK"), (fail, "500"), (around, "200 OK")])
def test_a_poll_that_waits_leaves_no_seat_behind(app: Flask, hook: Callable[[Response], Response], status: str) -> None:
    app.after_request(hook)
    [place] = publish_in_app(app, "a", 1)
    answer = ask(app, f"/sse/poll?channel=a&timeout=1&last_event_id={place.replace('=', '%3D')}")
    assert answer[0].startswith(status)
    assert (place.encode() in answer[1]) == (hook in (read, around))
    assert app.extensions["sse"].hub.subscribers == 0


@pytest.mark.parametrize("hook", [fail, lambda response: (setattr(response, "status_code", 503), response)[1]])
def test_a_hook_that_fails_or_turns_a_stream_has_it_told_busy(app: Flask, hook: Callable[[Response], Response]) -> None:
    app.after_request(hook)
    status, chunk, _ = ask(app, "/sse/stream?channel=a")
    [event] = wire.Parser().feed(chunk)
    assert (status, event.json()["reason"]) == ("200 OK", "busy")


@pytest.mark.parametrize(("status", "told"), [(429, 200), (503, 200), (500, 200), (401, 401), (403, 403)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_the_app_answers_before_the_view_is_busy_or_passes(
    app: Flask, method: str, status: int, told: int
) -> None:
    app.before_request(lambda: Response("of the app", status, {"Retry-After": "30"}))
    answered, chunk, _ = ask(app, "/sse/stream?channel=a", method)
    assert answered.startswith(str(told))
    if method == "GET" and told == 200:
        [event] = wire.Parser().feed(chunk)
        assert event.retry is not None
        assert 33_000 <= event.retry <= 42_000
    assert ask(app, "/sse/poll?channel=a", method)[0].startswith(str(status))


@pytest.mark.parametrize("status", [429, 503, 500])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_bare_stream_is_503_where_the_app_answers_429_or_5xx(app: Flask, method: str, status: int) -> None:
    app.before_request(lambda: Response("of the app", status, {"Retry-After": "30"}))
    answer = app.test_client().open("/sse/stream?channel=a&form=bare", method=method)
    assert (answer.status_code, answer.mimetype) == (503, "application/json")
    assert 33 <= int(answer.headers["Retry-After"]) <= 42
    if method == "GET":
        assert answer.get_json()["error"]["code"] == "busy"


def note_retry(response: Response) -> Response:
    response.headers["Retry-After"] = "77"
    return response


@pytest.mark.parametrize(
    ("hook", "status"),
    [
        *((read, 200), (freeze, 200), (rewrite, 200), (around, 200), (note_retry, 200)),
        *((replace, 200), (fail, 503), (lambda response: (setattr(response, "status_code", 502), response)[1], 503)),
    ],
)
def test_a_bare_stream_leaves_no_seat_behind_whatever_a_hook_does(
    app: Flask, hook: Callable[[Response], Response], status: int
) -> None:
    app.after_request(hook)
    hub = app.extensions["sse"].hub
    answer = app.test_client().get("/sse/stream?channel=a&form=bare")
    assert answer.status_code == status
    first = next(answer.iter_encoded())
    if status == 503:
        assert answer.headers["Retry-After"]
    elif hook is not replace:
        assert first.startswith(b": open ")
        assert hub.subscribers == 1
    answer.close()
    assert hub.subscribers == 0


def test_a_bare_stream_that_is_put_back_and_then_dropped_leaves_no_seat_behind(app: Flask) -> None:
    app.after_request(lambda response: Response(response.get_data()))
    app.after_request_funcs[None].insert(0, replace)  # as if it had been registered before SSE(app)
    answer = app.test_client().get("/sse/stream?channel=a&form=bare")
    assert answer.data == b"other"
    assert app.extensions["sse"].hub.subscribers == 0


@pytest.mark.parametrize("form", ["", "&form=bare"])
def test_a_stream_that_is_put_back_is_told_and_has_one_seat(app: Flask, form: str) -> None:
    app.after_request(lambda response: Response(response.get_data()))
    answer = app.test_client().get(f"/sse/stream?channel=a{form}")
    assert b"heartbeat" in next(answer.iter_encoded())
    assert app.extensions["sse"].hub.subscribers == 1
    answer.close()
    assert app.extensions["sse"].hub.subscribers == 0


def test_a_hook_may_set_when_a_bare_stream_is_to_come_back(app: Flask) -> None:
    app.before_request(lambda: Response(status=503))
    app.after_request(note_retry)
    assert app.test_client().get("/sse/stream?channel=a&form=bare").headers["Retry-After"] == "77"


@pytest.mark.parametrize("ask", ["form", "values", "files", "data", "json"])
@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", "application/json"])
def test_a_hook_that_asks_for_the_body_of_a_publication_leaves_it_whole(
    make_app: MakeApp, ask: str, media_type: str
) -> None:
    app = make_app(SSE_PUBLISH_KEYS=[KEY])

    @app.before_request
    def look() -> None:
        request.get_json(silent=True) if ask == "json" else getattr(request, ask)

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": media_type}
    client = app.test_client()
    assert client.post("/sse/publish/a", data='{"it": "rains"}', headers=headers).status_code == 201
    [event] = client.get("/sse/poll?channel=a&timeout=0&replay=1").json["events"]  # type: ignore[index]
    assert event["data"] == '{"it": "rains"}'
