"""A load balancer's probe during the life of gunicorn's workers: a start, a reload and a stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, GREENLETS, KEY
from tests.servers import Gunicorn, RedisServer, wait_until

DELAY = 2  # seconds for which a worker that stops goes on


def probe(server: Gunicorn) -> tuple[int, list[str]]:
    """Return the status of `/sse/ready` and the codes of its reasons, over a new connection."""
    answer = client.request(server.url, "GET", "/sse/ready", timeout=20)  # a new worker takes a while to load
    return answer.status, [reason["code"] for reason in answer.json()["reasons"]]


def test_a_worker_that_stops_is_unready_and_serves_until_its_delay_is_over(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_DRAIN_DELAY": str(DELAY)}) as server:
        assert probe(server) == (200, [])
        with Stream(server.url, {"channel": "a"}) as stream:
            stream.until("sse.open")
            begun = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: probe(server) == (503, ["drain"]), 1)
            while time.monotonic() - begun < DELAY - 0.7:  # new clients are served as ever
                assert probe(server) == (503, ["drain"])
                time.sleep(0.2)
            with Stream(server.url, {"channel": "a"}) as late:
                late.until("sse.open")
                client.publish(server.url, "a", "still here", key=KEY)
                assert late.until("message").data == stream.until("message").data == "still here"
                assert stream.until("sse.close", DELAY + 3).json()["reason"] == "drain"
                assert time.monotonic() - begun > DELAY - 0.1
                assert late.until("sse.close").json()["reason"] == "drain"
        server.process.wait(5)  # type: ignore[union-attr]
        assert time.monotonic() - begun < DELAY + 3
        assert "cut" not in server.logs()


def test_in_a_reload_no_probe_fails_and_the_old_workers_do_not_wait(tmp_path: Path, redis_server: RedisServer) -> None:
    env = ENV | {"SSE_DRAIN_DELAY": "20", "SSE_REDIS_URL": redis_server.url}
    with Gunicorn(tmp_path, APP, env, workers=2) as server:
        wait_until(lambda: {probe(server)[0] for _ in range(8)} == {200}, 15)
        old = set(server.worker_pids())
        stop, failed = threading.Event(), []

        def ask() -> int:
            for count in range(2000):
                if stop.is_set():
                    return count
                if (answer := probe(server))[0] != 200:
                    failed.append(answer)
                time.sleep(0.005)
            return 2000

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(ask) for _ in range(2)]
            os.kill(server.pid, signal.SIGHUP)
            try:
                wait_until(lambda: server.worker_pids() and not old & set(server.worker_pids()), 30)
            finally:
                stop.set()
            assert min(each.result() for each in asking) > 0
        # A new worker is unready until it has reached the store. No old one may say that it ends.
        assert {reason for _, reasons in failed for reason in reasons} <= {"store"}


@pytest.mark.parametrize("arguments", [(), GREENLETS, ("-k", "gthread", "--threads", "4"), ("--preload",)])
def test_several_workers_with_the_memory_store_do_not_start(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    server = Gunicorn(tmp_path, APP, ENV, workers=2, arguments=arguments)
    with pytest.raises(AssertionError, match="ended with 3"):
        server.start()
    told = [line for line in server.logs().splitlines() if "memory store" in line]
    assert told
    assert all("[CRITICAL]" in line and "set SSE_REDIS_URL, or WEB_CONCURRENCY=1" in line for line in told)
    assert "Traceback" not in server.logs()
