"""Hooks of the app neither hold up a stream nor end an EventSource for good, whatever they do."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FlaskRun
from tests.live.load import ENV, KEY, ORIGIN
from tests.publishing import publish
from tests.servers import Gunicorn, wait_until

APP = "tests.live.apps.hooked:application"
READING = (
    "get_data",
    "data",
    "add_etag",
    "freeze",
    "make_sequence",
    "iterate",
    "iter_encoded",
    "make_conditional",
    "set_length",
    "by_helper",
    "set_what_it_read",
    "put_what_it_read",
    "wrap_and_read",
    "write",
    "zip_it",
    "by_signal",
    "decorated",
    "after_this_request",
)
HARMLESS = (
    "nothing",
    "wrong_length",
    "wrap",
    "wrap_in_context",
    "is_streamed",
    "repr",
    "remember",
    "call_on_close",
    "another_around_it",
)
CHANGES_ANY_BODY = {"write", "zip_it", "set_what_it_read", "wrap_and_read", "wrong_length"}
TURNED = {
    "429": 0,
    "429 after 30": 30,
    "503": 0,
    "503 after 30": 30,
    "503 at a date": 86_400,
    "503 after words": 0,
    "an answer of 503 after 30": 30,
    "500": 0,
    "502": 0,
    "an error": 0,
    "an error that the app answers": 0,
}
RETRY = 3000


@pytest.fixture(scope="module", params=["handed off", "own responses", "flask run"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    directory = tmp_path_factory.mktemp("hooks")
    kinds = {
        "handed off": Gunicorn(directory, APP, ENV),
        "own responses": Gunicorn(directory, "tests.live.apps.hooked:make_own()", ENV),
        "flask run": FlaskRun(directory, APP, ENV),
    }
    with kinds[request.param] as server:
        yield server


def told(server: Gunicorn) -> str:
    return server.log.read_text()


@pytest.mark.parametrize("hook", [*READING, *HARMLESS])
def test_a_stream_arrives_whole_whatever_a_hook_does_with_its_body(server: Gunicorn, hook: str) -> None:
    [place] = publish(server, hook, "before")
    with Stream(server.url, {"channel": hook}, last_event_id=place, headers={"X-Hook": hook}) as stream:
        assert stream.status == 200
        assert "Content-Length" not in stream.headers
        assert "ETag" not in stream.headers
        assert "Content-Encoding" not in stream.headers
        opened = stream.next()
        assert opened
        assert opened.event == "sse.open"
        publish(server, hook, "after")
        assert [event.data for event in stream.take(1)] == ["after"]


@pytest.mark.parametrize("hook", [*READING, *HARMLESS])
def test_a_bare_stream_arrives_whole_and_gives_its_seat_back_whatever_a_hook_does(server: Gunicorn, hook: str) -> None:
    bare = {"channel": hook, "form": "bare"}
    [place] = publish(server, hook, "before")
    with Stream(server.url, bare, last_event_id=place, headers={"X-Hook": hook}) as stream:
        assert stream.status == 200
        publish(server, hook, "after")
        assert [event.data for event in stream.take(1)] == ["after"]
        assert stream.received.startswith(b": open ")
    head = client.request(server.url, "HEAD", "/sse/stream", bare, headers={"X-Hook": hook})
    assert head.status == 200
    # A greenlet or thread notices at a write that its client has gone, so there is something to write.
    wait_until(lambda: publish(server, hook, "again") and seats(server) == 0)


@pytest.mark.parametrize("hook", READING)
def test_the_log_names_the_hook_that_reads_a_stream_once(server: Gunicorn, hook: str) -> None:
    for _ in range(2):
        with Stream(server.url, {"channel": "a"}, headers={"X-Hook": hook}) as stream:
            assert stream.next()
    others = {
        "after_this_request": "before.<locals>.<lambda>",
        "by_signal": "by_signal",
        "decorated": "decorated.<locals>.inner",
    }
    name = others.get(hook, "hook")
    found = re.findall(
        rf"the app's {re.escape(name)} \(\S+/hooked\.py, line \d+\).* reads the body of a stream, .*is_streamed",
        told(server),
    )
    assert found
    assert len(found) == len(set(found))


@pytest.mark.parametrize("hook", [*READING, *HARMLESS])
def test_head_is_as_get_whatever_a_hook_does(server: Gunicorn, hook: str) -> None:
    answer = client.request(server.url, "HEAD", "/sse/stream", {"channel": "a"}, headers={"X-Hook": hook})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert "Content-Length" not in answer.headers or hook == "another_around_it"
    assert "ETag" not in answer.headers


@pytest.mark.parametrize("hook", [hook for hook in (*READING, *HARMLESS) if hook not in CHANGES_ANY_BODY])
def test_a_poll_that_waits_is_answered_with_the_event_whatever_a_hook_does(server: Gunicorn, hook: str) -> None:
    [place] = publish(server, hook, "before")
    later = threading.Timer(0.3, client.publish, (server.url, hook, "after"), {"key": KEY})
    later.start()
    answer = client.poll(server.url, [hook], place, headers={"X-Hook": hook}, timeout=10)
    later.join()
    assert [event["data"] for event in answer.json()["events"]] == ["after"]


def seats(server: Gunicorn) -> int:
    return int(client.request(server.url, "GET", "/seats").json()["seats"])


@pytest.mark.parametrize("hook", ["fail", "set_403"])
def test_a_poll_whose_answer_a_hook_drops_leaves_no_seat_behind(server: Gunicorn, hook: str) -> None:
    [place] = publish(server, "a", "before")
    wait_until(lambda: seats(server) == 0)  # of streams before
    answer = client.poll(server.url, ["a"], place, headers={"X-Hook": hook}, timeout=1)
    assert answer.status == {"fail": 500, "set_403": 403}[hook]
    assert seats(server) == 0


def assert_busy(answer: client.Answer, after: int = 0) -> None:
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "no-store" in answer.headers["Cache-Control"]
    assert "Content-Encoding" not in answer.headers
    assert "ETag" not in answer.headers
    [event] = client.Parser().feed(answer.body)
    assert event.event == "sse.close"
    assert event.json()["reason"] == "busy"
    assert event.retry is not None
    assert after * 1000 + RETRY <= event.retry <= after * 1000 + 4 * RETRY


def ask(server: Gunicorn, path: str = "/sse/stream", method: str = "GET", **headers: str) -> client.Answer:
    lines = {"Origin": ORIGIN, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return client.request(server.url, method, path, {"channel": "a", "timeout": 0}, headers=lines)


@pytest.mark.parametrize("before", TURNED)
def test_a_stream_is_told_busy_where_the_app_answers_429_or_5xx(server: Gunicorn, before: str) -> None:
    assert_busy(ask(server, X_Before=before), TURNED[before])


def test_the_log_tells_why_a_stream_is_told_busy(server: Gunicorn) -> None:
    # Once in ten seconds, so perhaps of another test's.
    ask(server, X_Before="503")
    why = r"a stream is told that this service is busy, because the app answered (429|50\d) [A-Z ]+ in its place"
    assert re.search(why, told(server))
    assert 'request.blueprint == "sse"' in told(server)


def test_a_stream_is_told_busy_where_the_app_refuses_before_it_looks_at_the_address(server: Gunicorn) -> None:
    assert_busy(ask(server, X_Preprocess="1"))


@pytest.mark.parametrize("hook", ["fail", "set_503"])
def test_a_stream_is_told_busy_where_a_hook_after_it_fails_or_turns_it(server: Gunicorn, hook: str) -> None:
    assert_busy(ask(server, X_Hook=hook))


@pytest.mark.parametrize("hook", ["get_data", "data", "iterate", "iter_encoded", "make_conditional", "by_helper"])
def test_a_busy_answer_stays_one_when_a_hook_reads_it(server: Gunicorn, hook: str) -> None:
    assert_busy(ask(server, X_Before="503", X_Hook=hook))


@pytest.mark.parametrize("hook", ["", "get_data", "data", "iterate", "iter_encoded", "make_conditional", "by_helper"])
def test_a_busy_answer_to_end_cut_is_cut_also_when_a_hook_reads_it(server: Gunicorn, hook: str) -> None:
    headers = {"Origin": ORIGIN, "X-Before": "503", "X-Hook": hook or "nothing"}
    before = len(told(server))
    with pytest.raises(http.client.IncompleteRead) as broken:
        client.request(server.url, "GET", "/sse/stream", {"channel": "a", "end": "cut"}, headers=headers)
    [event] = client.Parser().feed(broken.value.partial)
    assert event.json()["reason"] == "busy"
    assert "Traceback" not in told(server)[before:]


@pytest.mark.parametrize("before", TURNED)
def test_a_bare_stream_is_503_where_the_app_answers_429_or_5xx(server: Gunicorn, before: str) -> None:
    bare = {"channel": "a", "form": "bare"}
    answer = client.request(server.url, "GET", "/sse/stream", bare, headers={"Origin": ORIGIN, "X-Before": before})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "busy")
    assert answer.headers.get_all("Content-Type") == ["application/json"]
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert TURNED[before] + 3 <= int(answer.headers["Retry-After"]) <= TURNED[before] + 13


def test_a_retry_after_that_a_later_hook_adds_counts(server: Gunicorn) -> None:
    assert_busy(ask(server, X_Before="429", X_Hook="late_retry_after"), 40)


def test_a_retry_after_on_a_stream_that_is_open_means_nothing(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "a"}, headers={"X-Hook": "late_retry_after"}) as stream:
        opened = stream.next()
        assert opened
        assert opened.event == "sse.open"


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_other_errors_of_the_app_pass(server: Gunicorn, status: int) -> None:
    assert ask(server, X_Before=str(status)).status == status


def test_an_error_of_the_app_keeps_its_headers(server: Gunicorn) -> None:
    answer = ask(server, X_Before="401 for a password")
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="a b"')
    assert answer.headers.get_all("Content-Type") == ["application/json"]


def test_a_hook_that_refuses_after_the_view_refuses(server: Gunicorn) -> None:
    answer = ask(server, X_Hook="set_403")
    assert (answer.status, answer.body) == (403, b"no")


@pytest.mark.parametrize("status", [429, 503])
def test_head_says_as_get_does_and_polls_and_preflights_get_the_error(server: Gunicorn, status: int) -> None:
    before = str(status)
    assert ask(server, method="HEAD", X_Before=before).status == 200
    assert ask(server, method="OPTIONS", X_Before=before).status == status
    assert ask(server, "/sse/poll", X_Before=before).status == status
    assert ask(server, "/own", X_Before=before).status == status


def test_a_poll_is_told_when_to_come_again(server: Gunicorn) -> None:
    answer = ask(server, "/sse/poll", X_Before="429 after 30")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "30")


def test_teardown_and_cookies_of_the_app_are_as_ever(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "a"}, headers={"X-Hook": "remember"}) as stream:
        assert stream.headers.get_all("Set-Cookie")
        assert any(cookie.startswith("session=") for cookie in stream.headers.get_all("Set-Cookie", []))
