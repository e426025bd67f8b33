"""A stream or poll that has been let in, but is not attached to its channels yet.

Revocation, expiry, a drain and a limit that come in that moment take effect, for handed-off streams and greenlets.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from tests import client
from tests.client import Stream
from tests.key_issuer import Issuer
from tests.live.load import GREENLETS, KEY
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET, by_key, claims, signed

APP = "tests.live.apps.slow:application"


@pytest.fixture(params=["handed off", "greenlets"])
def server(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Gunicorn]:
    env = {
        "SSE_REDIS_URL": redis_server.url,
        "SSE_PUBLIC": "open",
        "SSE_SECRET": SECRET,
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_HEARTBEAT": "3",
        "SSE_DRAIN": "3",
    }
    arguments = GREENLETS if request.param == "greenlets" else ()
    with Gunicorn(redis_server.dir / "server", APP, env, arguments=arguments) as server:
        yield server


def revoke(server: Gunicorn, **what: str) -> None:
    with redis.Redis.from_url(server.env["SSE_REDIS_URL"]) as store:
        store.xadd("sse:{sse.revoked}", {"d": json.dumps(what)})


def test_a_stream_that_is_revoked_while_it_is_opened_ends_at_once_and_is_told_nothing(server: Gunicorn) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
    assert client.poll(server.url, ["a"], headers=headers, timeout=0).status == 200
    later = threading.Timer(0.3, revoke, [server], {"sub": "ann"})
    later.start()
    with Stream(server.url, {"channel": "a", "replay": "1", "linger": "1.8"}, headers=headers) as stream:
        assert stream.status == 200
        began = time.monotonic()
        told = [event for event in stream.events(5) if event.event != "sse.heartbeat"]
        assert [event.event for event in told] == ["sse.open", "sse.close"]
        assert told[-1].json()["reason"] == "expired"
        assert stream.complete
    assert time.monotonic() - began < 1.5
    later.join(5)


def test_a_poll_that_is_revoked_while_it_is_opened_waits_for_nothing(server: Gunicorn) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    last = client.poll(server.url, ["a"], headers=headers, timeout=0).json()["last_event_id"]
    query = {"channel": "a", "last_event_id": last, "timeout": "20", "linger": "1.8"}
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        answer = threads.submit(client.request, server.url, "GET", "/sse/poll", query, headers=headers)
        time.sleep(0.3)
        revoke(server, sub="ann")
        assert (answer.result().status, answer.result().json()["events"]) == (200, [])
    assert time.monotonic() - began < 4


def test_a_clock_that_jumps_ends_what_has_ended_by_it(server: Gunicorn) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    with Stream(server.url, {"channel": "a"}, headers=headers) as stream, ThreadPoolExecutor(1) as threads:
        stream.until("sse.open")
        last = client.poll(server.url, ["a"], headers=headers, timeout=0).json()["last_event_id"]
        answer = threads.submit(client.poll, server.url, ["a"], last, headers=headers, timeout=20)
        time.sleep(0.5)
        assert client.request(server.url, "GET", "/jump", {"seconds": "3600"}).body == b"jumped"
        assert stream.until("sse.close", 5).json()["reason"] == "expired"
        assert client.publish(server.url, "a", "secret news", key=KEY).status == 201
        assert b"secret" not in answer.result().body


@pytest.mark.parametrize("server", ["handed off"], indirect=True)
@pytest.mark.parametrize("channel", ["open", "a"])
def test_a_stream_that_comes_during_a_drain_is_told_so(server: Gunicorn, channel: str) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    later = threading.Timer(0.3, os.kill, [server.pid, signal.SIGTERM])
    later.start()
    with Stream(server.url, {"channel": channel, "linger": "1"}, headers=headers) as stream:
        assert stream.until("sse.close", 4).json()["reason"] == "drain"
        assert stream.next() is None
        assert stream.complete
    later.join(5)


def test_a_revoked_channel_that_is_public_ends_nobody_who_reads_it_beside_another(server: Gunicorn) -> None:
    headers = {"Authorization": f"Bearer {signed(claims())}"}
    channels = [("channel", "a"), ("channel", "open")]
    with Stream(server.url, channels, headers=headers) as stream:
        stream.until("sse.open")
        revoke(server, channel="open")
        with pytest.raises(TimeoutError):
            while event := stream.next(2):
                assert event.event == "sse.heartbeat"
        assert client.publish(server.url, "open", "news", key=KEY).status == 201
        assert stream.take(1, 5)[0].data == "news"
    last = client.poll(server.url, ["a", "open"], headers=headers, timeout=0).json()["last_event_id"]
    began = time.monotonic()
    assert client.poll(server.url, ["a", "open"], last, headers=headers, timeout=2).status == 200
    assert time.monotonic() - began > 1.5


@pytest.mark.parametrize("arguments", [(), ("--preload",)])
def test_while_public_keys_are_fetched_others_are_served(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    headers = {"Authorization": f"Bearer {by_key(claims(), 'RS256')}"}
    with Issuer() as issuer, ThreadPoolExecutor(4) as threads:
        issuer.go_on.clear()
        env = {"SSE_JWKS": issuer.url, "SSE_PUBLIC": "open"}
        try:
            with Gunicorn(tmp_path, env=env, arguments=arguments) as server:
                asked = [threads.submit(client.poll, server.url, ["a"], headers=headers, timeout=0) for _ in range(3)]
                wait_until(lambda: issuer.asked, 5)
                assert client.poll(server.url, ["open"], timeout=0).status == 200
                issuer.go_on.set()
                assert [answer.result().status for answer in asked] == [200] * 3
                assert issuer.asked == 1
        finally:
            issuer.go_on.set()
