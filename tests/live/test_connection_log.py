"""A line in the log for each stream and held poll that ends, whatever holds it, and none that tells a secret."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import ENV, GREENLETS, KEY
from tests.servers import Gunicorn, wait_until
from tests.tokens import SECRET, claims, signed

APP = "tests.live.apps.own:application"
PROXIED = ENV | {"SSE_PROXIES": "1", "SSE_SECRET": SECRET, "SSE_LOG": "json", "SSE_POLL_TIMEOUT": "1"}
THREADS = ("-k", "gthread", "--threads", "8")


@pytest.fixture(scope="module", params=[(), GREENLETS, THREADS], ids=["handed off", "greenlets", "threads"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    arguments = ["--log-level", "debug", *request.param]
    with Gunicorn(tmp_path_factory.mktemp("lines"), APP, PROXIED, arguments=arguments) as server:
        yield server


def text_of(server: Gunicorn) -> str:
    """Return all that was logged."""
    return server.log.read_text()


def of(server: Gunicorn, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a request, each of which is an object."""
    lines = [line for line in text_of(server).splitlines() if line.startswith("{")]
    return [told for line in lines if (told := json.loads(line)).get("request_id") == request_id]


def ended(server: Gunicorn, request_id: str) -> dict[str, Any]:
    """Return the fields of the one line about the end of a request, after the one about its opening."""
    wait_until(lambda: len(of(server, request_id)) == 2, 8)
    opened, last = of(server, request_id)
    assert (opened["severity"], last["severity"]) == ("DEBUG", "INFO")
    assert opened["message"] == f"{last['transport']} opened, request {request_id}"
    return last


def named(request_id: str) -> dict[str, str]:
    return {"X-Request-ID": request_id}


def test_a_stream_that_a_client_leaves(server: Gunicorn) -> None:
    with Stream(server.url, {"channel": "a"}, headers=named("leaves-1")) as stream:
        stream.until("sse.open")
        for number in range(3):
            client.publish(server.url, "a", number, key=KEY)
        stream.take(3)
        time.sleep(0.3)
    client.publish(server.url, "a", "notice that it has gone", key=KEY)
    client.publish(server.url, "a", "and again", key=KEY)
    told = ended(server, "leaves-1")
    assert (told["transport"], told["reason"]) == ("stream", "left")
    assert told["events"] in (3, 4, 5)  # without the hand-off, the next writes tell that it has gone
    assert 0.3 < told["seconds"] < 5
    assert told["bytes"] > 200
    assert re.fullmatch(
        r"stream ended: left after \d\.\d s, [345] events, \d+ bytes, request leaves-1", told["message"]
    )


def test_a_poll_that_is_answered_and_one_that_is_not(server: Gunicorn) -> None:
    start = client.poll(server.url, ["b"]).json()["last_event_id"]
    quiet = client.poll(server.url, ["b"], start, timeout=1, headers=named("quiet-1"))
    assert quiet.json()["events"] == []
    told = ended(server, "quiet-1")
    assert (told["transport"], told["reason"], told["events"], told["bytes"]) == ("poll", "timeout", 0, len(quiet.body))


def test_a_poll_with_events_counts_them(server: Gunicorn) -> None:
    start = client.poll(server.url, ["c"]).json()["last_event_id"]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.poll, server.url, ["c"], start, timeout=20, headers=named("events-1"))
        wait_until(lambda: len(of(server, "events-1")) == 1)
        client.publish(server.url, "c", "x", key=KEY)
        answer = waiting.result(10)
    told = ended(server, "events-1")
    assert (told["transport"], told["reason"], told["events"], told["bytes"]) == (
        "poll",
        "answered",
        1,
        len(answer.body),
    )
    assert told["seconds"] < 10


def test_views_of_the_app(server: Gunicorn) -> None:
    with Stream(server.url, path="/pages/channels", headers=named("view-1")) as stream:
        stream.until("sse.open")
        client.request(server.url, "POST", "/revoke")
        stream.until("sse.close")
    told = ended(server, "view-1")
    assert (told["transport"], told["reason"]) == ("stream", "expired")
    with Stream(server.url, path="/pages/items/ends", headers=named("items-1")) as stream:
        stream.until("sse.end")
    told = ended(server, "items-1")
    assert (told["transport"], told["reason"], told["events"]) == ("stream", "done", 2)
    with Stream(server.url, path="/pages/items/fails", headers=named("items-2")) as stream:
        stream.until("sse.end")
    assert (ended(server, "items-2")["reason"], ended(server, "items-2")["events"]) == ("failed", 1)
    with Stream(server.url, path="/pages/items/0.2", headers=named("items-3")) as stream:
        stream.take(4)
    told = ended(server, "items-3")
    assert (told["reason"], told["events"] >= 2) == ("left", True)


def test_an_id_that_cannot_be_shown_is_left_out(server: Gunicorn) -> None:
    before = len(text_of(server))
    for given in ("a b", "x" * 129, "a,b", "{}"):
        with Stream(server.url, {"channel": "d"}, headers=named(given)) as stream:
            stream.until("sse.open")
    wait_until(lambda: text_of(server)[before:].count("stream opened") == 4)
    told = [json.loads(line) for line in text_of(server)[before:].splitlines() if "stream opened" in line]
    assert [line["message"] for line in told] == ["stream opened"] * 4
    assert not [line for line in told if "request_id" in line]


def test_no_line_has_a_channel_a_token_or_a_query(server: Gunicorn) -> None:
    token = signed(claims(sub="bob", subscribe=["secret/room"]))
    ticket = client.request(
        server.url, "POST", "/sse/ticket", {"channel": "secret/room"}, headers={"Authorization": f"Bearer {token}"}
    ).json()["ticket"]
    with Stream(server.url, {"channel": "secret/room", "token": ticket}, headers=named("tokens-1")) as stream:
        stream.until("sse.open")
        stream.sock.shutdown(socket.SHUT_RDWR)
        client.publish(server.url, "secret/room", "gone?", key=KEY)
        client.publish(server.url, "secret/room", "gone?", key=KEY)
        ended(server, "tokens-1")
    assert not [text for text in ("secret/room", "eyJ", ticket, KEY, SECRET) if text in text_of(server)]


# In a deploy


def test_a_drain_tells_some_ends_and_sums_up_the_others_and_counts_all(tmp_path: Path) -> None:
    count, rate = 120, 20
    env = ENV | {"SSE_LOG_RATE": str(rate), "SSE_DRAIN": "1"}
    with Gunicorn(tmp_path, APP, env) as server, ExitStack() as stack:
        for _ in range(count):
            stream = stack.enter_context(Stream(server.url, {"channel": "a"}, headers=named("not-trusted")))
            stream.until("sse.open")
        os.kill(server.pid, signal.SIGTERM)
        server.process.wait(10)  # type: ignore[union-attr]
        text = text_of(server)
    assert "not-trusted" not in text  # without SSE_PROXIES, a client may have sent it
    assert "opened" not in text
    lines = re.findall(
        r"^\[.*?\] \[\d+\] \[INFO\] stream ended: drain after \d+\.\d s, 0 events, \d+ bytes$", text, re.MULTILINE
    )
    sums = re.findall(r"\[INFO\] (\d+) more ended within \d+\.\d s: \1 streams drain$", text, re.MULTILINE)
    assert len(lines) + sum(map(int, sums)) == count
    assert rate <= len(lines) <= 3 * rate
    assert 1 <= len(sums) <= 3


@pytest.mark.parametrize("arguments", [("--log-level", "warning"), ()], ids=["by the level", "by the setting"])
def test_the_lines_can_be_switched_off(tmp_path: Path, arguments: Sequence[str]) -> None:
    env = ENV | ({} if arguments else {"SSE_LOG_RATE": "0"})
    with Gunicorn(tmp_path, APP, env, arguments=arguments) as server:
        with Stream(server.url, {"channel": "a"}) as stream:
            stream.until("sse.open")
        wait_until(lambda: client.request(server.url, "GET", "/healthz").json()["seats"] == 0)
        server.stop(by=signal.SIGTERM)
        assert "ended" not in text_of(server)


def test_a_log_whose_handler_waits_leaves_the_event_loop_alone(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, "tests.live.apps.logs_slowly:application", ENV) as server:
        for _ in range(3):
            with ExitStack() as stack:
                for stream in [stack.enter_context(Stream(server.url, {"channel": "a"})) for _ in range(2)]:
                    stream.until("sse.open")
        wait_until(lambda: text_of(server).count("stream ended: left") == 6)
        server.stop(by=signal.SIGTERM)
        assert "Traceback" not in text_of(server)
