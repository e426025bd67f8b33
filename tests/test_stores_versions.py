"""Two versions may share one Redis: today's code goes on from what a former version has written, and the reverse.

The commands below are what the version of 27 November 2026 has left in Redis. If a test here has to change, workers of
both versions cannot run side by side, and docs/versions.md and the CHANGELOG have to say so.
"""

from __future__ import annotations

import pytest
from flask import Flask

from sse import SSE
from tests.conftest import MakeApp
from tests.servers import RedisServer

FORMER = [
    ("XADD", "sse:{a}", "0-3953176399706204", "d", ""),
    ("XADD", "sse:{a}", "1-804096436167574", "d", '{"type":"created","data":"{\\"n\\":1}"}'),
    ("XADD", "sse:{a}", "2-1186734252756140", "d", '{"type":"message","data":"text ünd\\nline"}'),
    ("SET", "sse:{a}:once:app:a-key-of-8", "2-1186734252756140 80fb03f1a06eb5e8508939b1f62d70a222282625"),
    ("XADD", "sse:{run/1}", "0-2254832249362608", "d", "", "r", "1"),
    ("XADD", "sse:{run/1}", "1-4070507308610043", "d", '{"type":"text","data":"hello ","piece":true}', "r", "1"),
    (
        *("XADD", "sse:{run/1}", "2-2487231451783205", "d"),
        *('{"type":"sse.end","data":"{\\"channel\\":\\"run/1\\",\\"reason\\":\\"done\\"}"}', "r", "e"),
    ),
    (
        *("HSET", "sse:{run/1}:run", "token", "3107fb8b98c8703c8cf762c250b766f8", "anchor", "0-2254832249362608"),
        *("written", "70", "held", "70", "max", "4194304", "key", "c00edc4d4b60937c112c7af3281ae2f3"),
        *("last", "1-4070507308610043", "end", "done", "at", "2-2487231451783205", "before", "1-4070507308610043"),
        *("nonce", "771e19c3033e596e6a592c388a9dfd7c"),
    ),
]


@pytest.fixture
def sse() -> SSE:
    return SSE()


@pytest.fixture
def app(redis_url: str, shared_redis: RedisServer, make_app: MakeApp, sse: SSE) -> Flask:
    with shared_redis.client() as client:
        for command in FORMER:
            client.execute_command(*command)
    return make_app(sse, SSE_REDIS_URL=redis_url)


def poll(app: Flask, query: str) -> dict[str, object]:
    answer = app.test_client().get(f"/sse/poll?timeout=0&{query}")
    assert answer.status_code == 200
    return dict(answer.json or {})


def test_a_client_goes_on_from_a_position_that_a_former_version_gave(app: Flask) -> None:
    answer = poll(app, "channel=a&last_event_id=a=1-804096436167574")
    assert answer["resets"] == []
    assert answer["last_event_id"] == "a=2-1186734252756140"
    [event] = answer["events"]  # type: ignore[misc]
    assert (event["type"], event["data"]) == ("message", "text ünd\nline")


def test_a_run_of_a_former_version_is_read_with_its_end(app: Flask) -> None:
    answer = poll(app, "channel=run/1")
    [event] = answer["events"]  # type: ignore[misc]
    assert (event["type"], event["data"], answer["ended"]) == ("text", "hello ", {"run/1": "done"})
    assert answer["last_event_id"] == "run/1=2-2487231451783205"


def test_a_repetition_of_a_publication_to_a_former_version_is_known(app: Flask, sse: SSE) -> None:
    with app.app_context():
        assert sse.publish("a", "text ünd\nline", idempotency_key="a-key-of-8") == "a=2-1186734252756140"


def test_a_former_version_can_read_what_is_written_today(app: Flask, sse: SSE, shared_redis: RedisServer) -> None:
    with shared_redis.client() as client, client.pubsub() as heard:
        heard.subscribe("sse:0:{a}")
        assert heard.get_message(timeout=5)["type"] == "subscribe"
        with app.app_context():
            sse.publish("a", {"n": 2}, type="created")
        [(position, fields)] = client.xrevrange("sse:{a}", count=1)
        assert position.startswith("3-")
        assert fields == {"d": '{"type":"created","data":"{\\"n\\":2}"}'}
        announced = heard.get_message(timeout=5)
        assert announced["data"] == f"2-1186734252756140 {position}\n{fields['d']}"
