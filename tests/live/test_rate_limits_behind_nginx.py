"""Rate limits hold across two workers behind nginx.conf, for handed-off streams and for greenlets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, GREENLETS, KEY
from tests.servers import Gunicorn, Nginx, RedisServer


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_a_client_behind_nginx_is_counted_by_its_own_address(
    arguments: Sequence[str], redis_server: RedisServer, tmp_path: Path
) -> None:
    env = {
        "SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY, "SSE_REDIS_URL": redis_server.url, "SSE_PROXIES": "1",
        "SSE_LIMITS_URL": redis_server.url, "SSE_LIMIT_SUBSCRIBE": "4/hour", "SSE_LIMIT_PUBLISH": "2/hour",
    }  # fmt: skip
    with (
        Gunicorn(tmp_path, APP, env, workers=2, arguments=arguments) as server,
        Nginx(tmp_path, server.bind) as nginx,
    ):
        for number in range(4):
            forged = {"X-Forwarded-For": f"198.51.100.{number}"}
            assert client.poll(nginx.url, ["a"], headers=forged, timeout=0).status == 200
        answer = client.poll(nginx.url, ["a"], headers={"X-Forwarded-For": "198.51.100.9"}, timeout=0)
        assert (answer.status, answer.json()["error"]["limit"]) == (429, "SSE_LIMIT_SUBSCRIBE")
        assert int(answer.headers["Retry-After"]) > 0
        with Stream(nginx.url, {"channel": "a"}) as stream:
            assert stream.until("sse.close").json()["reason"] == "busy"
        statuses = [client.publish(nginx.url, "a", "x", key=KEY) for _ in range(3)]
        assert [answer.status for answer in statuses] == [201, 201, 429]
        assert statuses[-1].json()["error"]["limit"] == "SSE_LIMIT_PUBLISH"
