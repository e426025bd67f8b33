"""Rate limits. A poll or publisher that exceeds one gets an error that names it, a stream gets `busy`."""

from __future__ import annotations

import json
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from sse.access.limits import Counts, client_address
from sse.errors import TooMany
from sse.event import Event
from sse.web.admission import Admission
from sse.web.request import Request
from tests.conftest import MakeApp
from tests.publishing import post
from tests.servers import RedisServer, free_port
from tests.tokens import KEY, SECRET, claims, signed

KEYS = (KEY, "second-key-of-the-tests")


def poll(client: FlaskClient, address: str = "192.0.2.1", **headers: str) -> TestResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get("/sse/poll?channel=a&timeout=0", headers=named, environ_base={"REMOTE_ADDR": address})


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
    assert post(client, {"channel": ["a", "b", "c"], "data": 1}).status_code == 201
    refused(post(client, {"channel": ["d", "e"], "data": 1}), "SSE_LIMIT_PUBLISH")
    assert post(client, {"channel": ["a", "b", "b"], "data": 1}, key=KEYS[1]).status_code == 201
    refused(post(client, {"channel": ["b"], "data": 1}, key=KEYS[1]), "SSE_LIMIT_CHANNEL")


KIB = 1024


def put(client: FlaskClient, channel: str, size: int, key: str = KEYS[0]) -> TestResponse:
    """Publish an event with so many bytes of data."""
    return post(client, "x" * size, f"/sse/publish/{channel}", key, content_type="text/plain")


def test_a_key_s_bytes_are_counted_and_1_kb_for_each_new_ring(make_app: MakeApp, store_url: str | None) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": store_url, "SSE_LIMIT_PUBLISH_BYTES": "10240/hour"}
    app = make_app(**settings)
    client = app.test_client()
    assert put(client, "a", 1 * KIB).status_code == 201
    assert put(client, "a", 3 * KIB).status_code == 201
    assert put(client, "b", 3 * KIB).status_code == 201
    refused(put(client, "c", 200), "SSE_LIMIT_PUBLISH_BYTES")  # its ring has no room
    assert app.extensions["sse"].store.newest(["c"]) == [None]
    assert put(client, "c", 9 * KIB, KEYS[1]).status_code == 201
    refused(put(client, "c", 2 * KIB, KEYS[1]), "SSE_LIMIT_PUBLISH_BYTES")


@pytest.mark.parametrize("channels", [1, 10], ids=["one by one", "a batch"])
def test_new_rings_fill_the_window_exactly(make_app: MakeApp, store_url: str | None, channels: int) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": store_url, "SSE_LIMIT_PUBLISH_BYTES": f"{20 * 1025}/hour"}
    client = make_app(**settings).test_client()
    for start in range(0, 20, channels):
        assert (
            post(client, {"channel": [f"c/{start + number}" for number in range(channels)], "data": 1}).status_code
            == 201
        )
    refused(post(client, {"channel": ["c/0"], "data": 1}), "SSE_LIMIT_PUBLISH_BYTES")


def test_a_ring_that_has_events_is_not_new_whoever_made_it(make_app: MakeApp, redis_url: str) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": redis_url, "SSE_LIMIT_PUBLISH_BYTES": "1100/hour"}
    first, second = (make_app(**settings).test_client() for _ in range(2))
    assert put(first, "a", 10).status_code == 201
    assert [put(second, "a", 10).status_code for _ in range(110)] == [201] * 110
    refused(put(second, "a", 10), "SSE_LIMIT_PUBLISH_BYTES")


@pytest.mark.parametrize("counted_in", ["memory", "redis"])
def test_a_new_ring_that_two_requests_at_once_have_counted_counts_once(
    make_app: MakeApp, redis_url: str, counted_in: str
) -> None:
    """Near the limit, both are told before either is stored that the ring would be new."""
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_LIMIT_PUBLISH_BYTES": "3100/hour"}
    app = make_app(**settings, SSE_LIMITS_URL=redis_url if counted_in == "redis" else None)
    client, service = app.test_client(), app.extensions["sse"]
    assert post(client, {"channel": ["old/1", "old/2"], "data": 1}, key=KEYS[1]).status_code == 201
    admission = Admission(service, lambda: None)
    request = Request({"HTTP_AUTHORIZATION": f"Bearer {KEYS[0]}"}, "POST", b"")
    prepare = partial(admission.prepare, request, admission.publisher(request))
    prepare([("old/1", Event("x" * 100))])  # from now on, three new rings would be over the limit
    prepared = [prepare([(channel, Event("x")) for channel in ("old/1", "old/2", "new")]) for _ in range(2)]
    assert [each.counted for each in prepared] == [1, 1]
    outcomes = service.publish_each([each.publications for each in prepared])
    ids = [admission.stored(*each) for each in zip(prepared, outcomes, strict=True)]
    assert [id.partition("-")[0] for _, _, id in ids] == ["new=1", "new=2"]
    other = prepare([("other", Event("x"))])  # one more has room
    assert len(admission.stored(other, service.publish([*other.publications]))) == 1
    with pytest.raises(TooMany, match="SSE_LIMIT_PUBLISH_BYTES"):
        prepare([("another", Event("x"))])


def test_bytes_are_counted_as_they_are_stored(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_PUBLISH_BYTES=f"{KIB + 600}/hour").test_client()
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    # A control character is stored as 6 bytes, what is no text as base64, a line end as one character and its escape.
    bodies: list[tuple[bytes, str, int]] = [
        (b"\x01" * 20, "text/plain", 120),
        ("ä".encode() * 20, "text/plain", 40),
        (b"\r\n" * 20, "text/plain", 40),
        (b"x" * 90, "image/png", 120 + len("data:image/png;base64,")),
        (b'"' * 20, "text/plain", 40),
    ]
    for body, kind, _ in bodies:
        assert client.post("/sse/publish/a", data=body, content_type=kind, headers=headers).status_code == 201
    left = 600 - sum(size for *_, size in bodies)
    assert put(client, "a", left).status_code == 201
    refused(put(client, "a", 1), "SSE_LIMIT_PUBLISH_BYTES")


def test_an_event_counts_in_each_channel_that_it_goes_to(make_app: MakeApp) -> None:
    """394 KB of escapes, which become 39 MB in the store."""
    app = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_RING=1)
    client = app.test_client()
    channels = [f"c/{number}" for number in range(100)]
    body = json.dumps({"channel": channels, "data": "\x01" * 65_536})
    headers = {"Authorization": f"Bearer {KEYS[0]}", "Content-Type": "application/json"}
    assert len(body) < 400_000
    assert client.post("/sse/publish", data=body, headers=headers).status_code == 201
    before = app.extensions["sse"].store.newest(channels)
    refused(client.post("/sse/publish", data=body, headers=headers), "SSE_LIMIT_PUBLISH_BYTES")
    assert app.extensions["sse"].store.newest(channels) == before


def test_a_token_s_bytes_are_counted_by_its_subject(make_app: MakeApp) -> None:
    client = make_app(SSE_SECRET=SECRET, SSE_LIMIT_PUBLISH_BYTES="2048/hour").test_client()
    tokens = [signed(claims(jti=id)) for id in "12"]
    assert [put(client, "a", 300, key=token).status_code for token in tokens] == [201, 201]
    refused(put(client, "a", 500, key=tokens[0]), "SSE_LIMIT_PUBLISH_BYTES")
    assert put(client, "a", 500, key=signed(claims(sub="bob"))).status_code == 201


@pytest.mark.parametrize("given", [{"size": 3001}, {"channels": 3}, {"size": 1000, "channels": 2}], ids=str)
def test_bytes_that_no_window_has_room_for_are_413_and_not_counted(
    make_app: MakeApp, store_url: str | None, given: dict[str, int]
) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": store_url, "SSE_LIMIT_PUBLISH_BYTES": "3000/hour"}
    app = make_app(**settings)
    client = app.test_client()
    channels = [f"c/{number}" for number in range(given.get("channels", 1))]
    events = [{"channel": channel, "data": "x" * given.get("size", 1)} for channel in channels]
    answer = client.post("/sse/publish", json=events, headers={"Authorization": f"Bearer {KEYS[0]}"})
    assert answer.status_code == 413
    assert "Retry-After" not in answer.headers
    assert "SSE_LIMIT_PUBLISH_BYTES" in answer.get_json()["error"]["message"]
    assert app.extensions["sse"].store.newest(channels) == [None] * len(channels)
    assert put(client, "a", 3000 - KIB).status_code == 201
    refused(put(client, "a", 1), "SSE_LIMIT_PUBLISH_BYTES")


def test_the_store_is_asked_about_rings_only_near_the_limit(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, store_url: str | None
) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": store_url, "SSE_LIMIT_PUBLISH_BYTES": "20480/hour"}
    app = make_app(**settings)
    client, store = app.test_client(), app.extensions["sse"].store
    asked = list[list[str]]()
    newest = store.newest
    monkeypatch.setattr(store, "newest", lambda channels: asked.append(channels) or newest(channels))
    for number in range(18):
        assert post(client, {"channel": [f"c/{number}"] * 2, "data": 1}).status_code == 201
    assert asked == []
    assert post(client, {"channel": ["c/0", "c/18", "c/18"], "data": 1}).status_code == 201
    assert asked == [["c/0", "c/18"]]
    refused(post(client, {"channel": ["c/19"], "data": 1}), "SSE_LIMIT_PUBLISH_BYTES")


def test_a_repetition_is_stored_once_and_counted_again(make_app: MakeApp) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_PUBLISH_BYTES="5000/hour").test_client()
    headers = {"Authorization": f"Bearer {KEYS[0]}", "Idempotency-Key": "once"}
    first, *others = (client.post("/sse/publish/a", data=b"x" * 700, headers=headers) for _ in range(3))
    assert [answer.get_json() for answer in others] == [first.get_json()] * 2


def test_a_store_that_is_away_near_the_limit_is_told_as_ever(make_app: MakeApp) -> None:
    settings = {"SSE_PUBLISH_KEYS": KEYS, "SSE_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    client = make_app(**settings, SSE_LIMIT_PUBLISH_BYTES="1000/hour").test_client()
    answer = put(client, "a", 10)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "store_unavailable")
    assert "same Idempotency-Key" in answer.get_json()["error"]["hint"]


def test_the_workers_count_bytes_together_where_redis_counts(make_app: MakeApp, redis_url: str) -> None:
    settings = {"SSE_LIMIT_PUBLISH_BYTES": "4000/hour", "SSE_LIMITS_URL": redis_url, "SSE_REDIS_URL": redis_url}
    workers = [make_app(SSE_PUBLISH_KEYS=KEYS, **settings).test_client() for _ in range(2)]
    assert [put(worker, "a", 1000).status_code for worker in workers] == [201, 201]
    for worker in workers:
        refused(put(worker, "a", 1000), "SSE_LIMIT_PUBLISH_BYTES")


def test_what_is_over_a_limit_is_not_stored(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLISH_KEYS=KEYS, SSE_LIMIT_CHANNEL="1/hour")
    client, store = app.test_client(), app.extensions["sse"].store
    assert post(client, {"channel": ["a"], "data": 1}).status_code == 201
    before = store.newest(["a"])
    refused(post(client, {"channel": ["b", "a"], "data": 1}), "SSE_LIMIT_CHANNEL")
    assert store.newest(["a", "b"]) == [*before, None]


@pytest.mark.parametrize("limit", ["SSE_LIMIT_PUBLISH", "SSE_LIMIT_CHANNEL"])
def test_a_batch_that_no_window_has_room_for_is_not_told_to_try_again(make_app: MakeApp, limit: str) -> None:
    client = make_app(SSE_PUBLISH_KEYS=KEYS, **{limit: "3/hour"}).test_client()
    answer = post(client, {"channel": ["a"] * 4, "data": 1})
    assert answer.status_code == 413
    assert "Retry-After" not in answer.headers
    assert limit in answer.get_json()["error"]["message"]
    assert post(client, {"channel": ["a"] * 3, "data": 1}).status_code == 201  # the first was not counted


def listen(client: FlaskClient, *channels: str, address: str = "192.0.2.1", **headers: str) -> TestResponse:
    """Poll, so that each of the channels gets a ring. Without a position, the answer comes at once."""
    query = "&".join(f"channel={name}" for name in channels)
    return client.get(f"/sse/poll?{query}&timeout=1", headers=headers, environ_base={"REMOTE_ADDR": address})


def test_each_client_s_new_channels_are_counted_and_no_others(make_app: MakeApp, store_url: str | None) -> None:
    app = make_app(SSE_LIMIT_NEW_CHANNELS="4/hour", SSE_PUBLISH_KEYS=KEYS, SSE_REDIS_URL=store_url)
    client, store = app.test_client(), app.extensions["sse"].store
    born = [f"born/{number}" for number in range(10)]
    assert post(client, {"channel": born, "data": 1}).status_code == 201
    for _ in range(3):
        assert listen(client, *born).status_code == 200
        assert listen(client, "a", "b", "c", *born).status_code == 200
        assert client.get("/sse/poll?channel=z&timeout=0", environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 200
    refused(listen(client, "d", "e"), "SSE_LIMIT_NEW_CHANNELS")
    assert store.newest(["d", "e"]) == [None, None]
    assert listen(client, "a", *born).status_code == 200
    assert listen(client, "d", "e", address="192.0.2.2").status_code == 200
    assert listen(client, "d", "e").status_code == 200
    refused(listen(client, "f"), "SSE_LIMIT_NEW_CHANNELS")


def test_a_stream_with_too_many_new_channels_is_told_busy_until_it_may_come_back(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_NEW_CHANNELS="1/hour").test_client()
    assert listen(client, "a").status_code == 200
    answer = client.get("/sse/stream?channel=a&channel=b", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert (answer.status_code, answer.mimetype) == (200, "text/event-stream")
    told = json.loads(answer.text.partition("data: ")[2].partition("\n")[0])
    assert told["reason"] == "busy"
    assert told["retry"] > 3_500_000


def test_new_channels_are_counted_by_token_where_there_is_one(make_app: MakeApp) -> None:
    app = make_app(SSE_PUBLIC="", SSE_LIMIT_NEW_CHANNELS="2/hour", SSE_SECRET=SECRET)
    client = app.test_client()

    def as_sub(sub: str, *channels: str, address: str = "192.0.2.1") -> TestResponse:
        token = signed(claims(sub=sub, subscribe=["*"]))
        return listen(client, *channels, address=address, Authorization=f"Bearer {token}")

    assert as_sub("ann", "a", "b").status_code == 200
    assert as_sub("bob", "c", "d").status_code == 200
    for address in ("192.0.2.1", "192.0.2.9", "127.0.0.1"):
        refused(as_sub("ann", "e", address=address), "SSE_LIMIT_NEW_CHANNELS")


def test_a_request_for_more_new_channels_than_a_window_has_takes_a_whole_window(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_NEW_CHANNELS="2/hour").test_client()
    assert listen(client, *"abc").status_code == 200
    refused(listen(client, "d"), "SSE_LIMIT_NEW_CHANNELS")


def test_new_channels_of_loopback_are_not_limited_without_proxies(make_app: MakeApp) -> None:
    client = make_app(SSE_LIMIT_NEW_CHANNELS="2/hour").test_client()
    for number in range(4):
        assert listen(client, f"a/{number}", f"b/{number}", address="127.0.0.1").status_code == 200


def test_without_limits_there_are_none(make_app: MakeApp) -> None:
    limits = ("SUBSCRIBE", "PUBLISH", "CHANNEL", "PUBLISH_BYTES", "NEW_CHANNELS")
    app = make_app(**{f"SSE_LIMIT_{name}": "" for name in limits}, SSE_PUBLISH_KEYS=KEYS)
    client = app.test_client()
    assert {poll(client).status_code for _ in range(50)} == {200}
    assert {listen(client, f"new/{number}").status_code for number in range(50)} == {200}
    assert {post(client, {"channel": ["a"] * 100, "data": 1}).status_code for _ in range(3)} == {201}


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


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"requirepass": "hush"}, "put the password into SSE_LIMITS_URL"),
        ({"cluster_enabled": "yes"}, "have SSE_LIMITS_URL name a Redis that runs without cluster-enabled"),
    ],
)
def test_a_redis_that_cannot_count_is_told_with_its_setting_and_the_remedy(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, tmp_path: Path, config: dict[str, str], fault: str
) -> None:
    ports = {"cluster_port": free_port()} if "cluster_enabled" in config else {}
    with RedisServer(tmp_path, **config, **ports) as redis:
        app = make_app(SSE_LIMIT_SUBSCRIBE="1/hour", SSE_LIMITS_URL=redis.url)
        assert poll(app.test_client()).status_code == 200
    assert "nothing is limited" in caplog.text
    assert fault in caplog.text
    assert "SSE_REDIS_URL" not in caplog.text


def test_a_window_begins_anew_and_those_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    for clock in ("time", "monotonic"):
        monkeypatch.setattr(f"sse.access.limits.time.{clock}", lambda: now[0])
    counts = Counts()
    assert [counts.incr("a", 10), counts.incr("a", 10, 5), counts.get("a")] == [1, 6, 6]
    assert (counts.get_expiry("a"), counts.get("b")) == (1010, 0)
    now[0] += 10
    assert (counts.get("a"), counts.incr("a", 10)) == (0, 1)
    now[0] += 61
    counts.incr("b", 10)
    assert counts._windows.keys() == {"b"}


def test_the_counts_are_kept_in_the_database_that_the_address_names(
    make_app: MakeApp, shared_redis: RedisServer, redis_url: str
) -> None:
    url = redis_url.replace("/0", "?db=3")
    assert poll(make_app(SSE_LIMIT_SUBSCRIBE="2/hour", SSE_LIMITS_URL=url).test_client()).status_code == 200
    with shared_redis.client(db=3) as counts, shared_redis.client() as other:
        assert (counts.dbsize(), other.dbsize()) == (1, 0)


def test_the_key_of_a_count_names_the_limit_whose_it_is_and_the_rate(
    make_app: MakeApp, shared_redis: RedisServer, redis_url: str
) -> None:
    """Workers of different versions count together, so the keys stay as they are."""
    app = make_app(SSE_LIMIT_SUBSCRIBE="2/minute", SSE_LIMITS_URL=redis_url, SSE_NAMESPACE="shop")
    assert poll(app.test_client()).status_code == 200
    key = "shop.limits:LIMITER/SSE_LIMIT_SUBSCRIBE/192.0.2.1/2/1/minute"
    with shared_redis.client() as counts:
        assert counts.keys("shop.limits:*") == [key]
        assert counts.get(key) == "1"
        assert 50 < counts.ttl(key) <= 60


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
    assert post(client, {"channel": ["a"], "data": 1}).status_code == 201
    refused(post(client, {"channel": ["a"], "data": 1}), "SSE_LIMIT_PUBLISH")


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
