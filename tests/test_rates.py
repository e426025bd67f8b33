"""Limits on how often: told by name to polls and publishers, as `busy` to streams, and counted where it is set."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse.limits import Counts, client_address
from tests.conftest import MakeApp
from tests.servers import RedisServer, free_port
from tests.tokens import SECRET, claims, signed

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")


def poll(client: FlaskClient, address: str = "192.0.2.1", **headers: str) -> TestResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get("/sse/poll?channel=a&timeout=0", headers=named, environ_base={"REMOTE_ADDR": address})


def publish(client: FlaskClient, channels: list[str], key: str = KEYS[0]) -> TestResponse:
    return client.post(
        "/sse/publish", json={"channel": channels, "data": 1}, headers={"Authorization": f"Bearer {key}"}
    )


def refused(answer: TestResponse, limit: str) -> None:
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    error = answer.get_json()["error"]
    assert (error["code"], error["limit"]) == ("too_many_requests", limit)
    assert limit in error["message"]


def test_each_client_address_has_its_own_count(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="3/hour").test_client()
    assert [poll(client).status_code for _ in range(3)] == [200] * 3
    refused(poll(client), "SSE_LIMIT_SUBSCRIBE")
    assert poll(client, "192.0.2.2").status_code == 200


def test_tickets_count_as_what_they_open_does(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="2/hour", SSE_SECRET=SECRET).test_client()
    asked: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {signed(claims())}"},
        "environ_base": {"REMOTE_ADDR": "192.0.2.1"},
    }
    assert [client.post("/sse/ticket?channel=a", **asked).status_code for _ in range(2)] == [201, 201]
    refused(client.post("/sse/ticket?channel=a", **asked), "SSE_LIMIT_SUBSCRIBE")
    refused(poll(client), "SSE_LIMIT_SUBSCRIBE")


def test_a_stream_over_the_limit_is_told_busy(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="1/hour").test_client()
    assert poll(client).status_code == 200
    answer = client.get("/sse/stream?channel=a", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    told = json.loads(answer.text.partition("data: ")[2].partition("\n")[0])
    assert told["reason"] == "busy"
    assert told["retry"] > 3_500_000  # when the limit begins anew


def test_a_key_s_and_a_channel_s_events_are_counted_each(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_PUBLISH="4/hour", SSE_LIMIT_CHANNEL="3/hour").test_client()
    assert publish(client, ["a", "b", "c"]).status_code == 201
    refused(publish(client, ["d", "e"]), "SSE_LIMIT_PUBLISH")
    assert publish(client, ["a", "b", "b"], KEYS[1]).status_code == 201
    refused(publish(client, ["b"], KEYS[1]), "SSE_LIMIT_CHANNEL")


def test_what_is_over_a_limit_is_not_stored(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_CHANNEL="1/hour")
    client, store = app.test_client(), app.extensions["sse"].store
    assert publish(client, ["a"]).status_code == 201
    before = store.newest(["a"])
    refused(publish(client, ["b", "a"]), "SSE_LIMIT_CHANNEL")
    assert store.newest(["a", "b"]) == [*before, None]


@pytest.mark.parametrize("limit", ["SSE_LIMIT_PUBLISH", "SSE_LIMIT_CHANNEL"])
def test_a_batch_that_no_window_has_room_for_is_not_told_to_try_again(make_app: MakeApp, limit: str) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, **{limit: "3/hour"}).test_client()
    answer = publish(client, ["a"] * 4)
    assert answer.status_code == 413
    assert "Retry-After" not in answer.headers
    assert limit in answer.get_json()["error"]["message"]
    assert publish(client, ["a"] * 3).status_code == 201  # what was too large has not been counted


def test_without_limits_there_are_none(make_app: MakeApp) -> None:
    app = make_app(SSE_LIMIT_SUBSCRIBE="", SSE_LIMIT_PUBLISH=None, SSE_LIMIT_CHANNEL="", SSE_PUBLISH_KEYS=KEYS)
    client = app.test_client()
    assert {poll(client).status_code for _ in range(50)} == {200}
    assert {publish(client, ["a"] * 100).status_code for _ in range(3)} == {201}


def test_the_workers_count_together_where_redis_counts(make_app: MakeApp, redis_url: str) -> None:
    workers = [make_app(SSE_LIMIT_SUBSCRIBE="4/hour", SSE_LIMITS_URL=redis_url).test_client() for _ in range(2)]
    assert [poll(worker).status_code for worker in workers * 2] == [200] * 4
    for worker in workers:
        refused(poll(worker), "SSE_LIMIT_SUBSCRIBE")
    other = make_app(SSE_LIMIT_SUBSCRIBE="4/hour", SSE_LIMITS_URL=redis_url, SSE_NAMESPACE="other").test_client()
    assert poll(other).status_code == 200


def test_nothing_is_limited_while_that_redis_is_away(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(SSE_LIMIT_SUBSCRIBE="1/hour", SSE_LIMITS_URL=f"redis://:hush@127.0.0.1:{free_port()}")
    client = app.test_client()
    assert [poll(client).status_code for _ in range(3)] == [200] * 3
    assert "nothing is limited" in caplog.text
    assert "hush" not in caplog.text


def test_a_window_begins_anew_and_those_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    for clock in ("time", "monotonic"):
        monkeypatch.setattr(f"sse.limits.time.{clock}", lambda: now[0])
    counts = Counts()
    assert [counts.incr("a", 10), counts.incr("a", 10, 5), counts.get("a")] == [1, 6, 6]
    assert (counts.get_expiry("a"), counts.get("b")) == (1010, 0)
    now[0] += 10
    assert (counts.get("a"), counts.incr("a", 10)) == (0, 1)
    now[0] += 61
    counts.incr("b", 10)
    assert counts._windows.keys() == {"b"}
    counts.clear("b")
    counts.reset()
    assert not counts._windows
    assert counts.check()


def test_the_counts_may_be_kept_behind_a_unix_socket(make_app: MakeApp, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(tmp_path, unixsocket=path):
        workers = [make_app(SSE_LIMIT_SUBSCRIBE="2/hour", SSE_LIMITS_URL=f"unix://{path}?db=1") for _ in range(2)]
        assert [poll(worker.test_client()).status_code for worker in workers] == [200, 200]
        refused(poll(workers[0].test_client()), "SSE_LIMIT_SUBSCRIBE")


def test_a_redis_for_counts_that_does_not_answer_holds_up_nobody_for_long(make_app: MakeApp) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}"
        client = make_app(SSE_LIMIT_SUBSCRIBE="1/hour", SSE_LIMITS_URL=url).test_client()
        began = time.monotonic()
        assert {poll(client).status_code for _ in range(50)} == {200}
        assert time.monotonic() - began < 5


def test_a_host_app_is_left_alone(make_app: MakeApp) -> None:
    app: Flask = make_app()
    assert "limiter" not in app.extensions
    assert not [name for name in app.config if name.startswith("RATELIMIT")]


@pytest.mark.parametrize(
    ("remote", "forwarded", "proxies", "address"),
    [
        ("192.0.2.1", "", 0, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", 0, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", 1, "198.51.100.1"),
        ("192.0.2.1", "203.0.113.9, 198.51.100.1", 1, "198.51.100.1"),
        ("192.0.2.1", "203.0.113.9, 198.51.100.1 , 192.0.2.7", 2, "198.51.100.1"),
        ("192.0.2.1", "", 1, "192.0.2.1"),
        ("127.0.0.1", "198.51.100.1", 1, "198.51.100.1"),
        ("127.0.0.1", "", 0, None),
        ("::1", "", 0, None),
        ("", "", 0, None),
        (None, "", 0, None),
        ("192.0.2.1", "198.51.100.1:4711", 1, "198.51.100.1"),
        ("192.0.2.1", "[2001:db8:1:2::7]:4711", 1, "2001:db8:1:2::/64"),
        ("192.0.2.1", "[2001:db8:1:2::7]", 1, "2001:db8:1:2::/64"),
        ("192.0.2.1", '"[2001:db8:1:2::7]:4711"', 1, "2001:db8:1:2::/64"),
        ("192.0.2.1", "nonsense", 1, "192.0.2.1"),
        ("192.0.2.1", "unknown", 1, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", 2, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9, ", 1, "192.0.2.1"),
        ("127.0.0.1", "_hidden", 1, "127.0.0.1"),
        ("192.0.2.1", "1" * 61, 1, "192.0.2.1"),
        ("::ffff:198.51.100.1", "", 1, "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "", 0, "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "", 0, "192.0.2.1"),
        ("::ffff:127.0.0.1", "", 0, None),
    ],
)
def test_whose_address_it_is(remote: str | None, forwarded: str, proxies: int, address: str | None) -> None:
    assert client_address(remote, forwarded, proxies) == address


def test_what_is_too_large_is_not_counted(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_PUBLISH="1/hour", SSE_MAX_EVENT_BYTES=1024).test_client()
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    for _ in range(3):
        assert client.post("/sse/publish/a", data="x" * 1025, headers=headers).status_code == 413
    assert publish(client, ["a"]).status_code == 201
    refused(publish(client, ["a"]), "SSE_LIMIT_PUBLISH")


def test_a_client_cannot_choose_its_address(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="2/hour", SSE_PROXIES=1).test_client()
    for number in range(2):
        assert poll(client, "127.0.0.1", X_Forwarded_For=f"10.0.0.{number}, 198.51.100.1").status_code == 200
    refused(poll(client, "127.0.0.1", X_Forwarded_For="10.0.0.9, 198.51.100.1"), "SSE_LIMIT_SUBSCRIBE")
    assert poll(client, "127.0.0.1", X_Forwarded_For="10.0.0.9, 198.51.100.2").status_code == 200


def test_the_answer_is_json_as_all_errors_are(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_SUBSCRIBE="1/hour").test_client()
    poll(client)
    assert json.loads(poll(client).data)["error"]["hint"].startswith("try again in ")
