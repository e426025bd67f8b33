"""While Redis hangs, the service answers every request in time."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import client
from tests.client import Answer
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import KEY, SECRET, claims, signed

TIMEOUT = 2


def test_all_is_answered_in_time_and_a_repetition_stores_nothing_twice(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    env = {
        "SSE_REDIS_URL": redis_server.url,
        "SSE_REDIS_TIMEOUT": str(TIMEOUT),
        "SSE_PUBLIC": "*",
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_SECRET": SECRET,
    }
    token = signed(claims(publish=["*"]))

    def publish_late(number: int, credential: str = KEY) -> Answer:
        time.sleep(number / 20 * TIMEOUT)
        return client.publish(server.url, "a", number, key=credential, idempotency_key=f"k{number}")

    def timed(path: str) -> tuple[int, float]:
        begun = time.monotonic()
        answer = client.request(server.url, "GET", path)
        return answer.status, time.monotonic() - begun

    with Gunicorn(tmp_path, env=env) as server, ThreadPoolExecutor(20) as pool:
        assert publish_late(0).status == 201
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            publishing = [pool.submit(publish_late, number) for number in range(1, 11)]
            publishing.append(pool.submit(publish_late, 11, token))  # which is not known before the revocations are
            polling = [pool.submit(timed, "/sse/poll?channel=a&timeout=0") for _ in range(3)]
            assert timed("/healthz")[0] == 200
            answers = [future.result() for future in publishing]
            assert time.monotonic() - begun < 2 * TIMEOUT + 0.55 * TIMEOUT  # the last one began late
            assert {answer.status for answer in answers} == {503}
            assert {answer.headers["Retry-After"] for answer in answers} == {"2"}
            error = json.loads(answers[0].body)["error"]
            assert error["code"] == "store_unavailable" and "same Idempotency-Key" in error["hint"]
            for status, took in (future.result() for future in polling):
                assert status == 503 and took < 2 * TIMEOUT
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        wait_until(lambda: publish_late(1).status == 201, 10)
        assert [publish_late(number).status for number in range(12)] == [201] * 12
        with redis_server.client() as store:
            assert store.xlen("sse:{a}") == 13  # and the anchor
