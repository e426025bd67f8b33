"""The doctor's probes in real servers: clients that leave, workers that end or stand still, and other workers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.servers import Gunicorn, wait_until
from tests.tokens import KEY

OPEN = {"SSE_DOCTOR": "1"}
KINDS = {
    "gevent": ("-k", "gevent"),
    "gthread": ("-k", "gthread", "--threads", "4"),
    "sync": ("-k", "sync"),
}


def ask(server: Gunicorn, path: str, /, **params: Any) -> client.Answer:
    return client.request(server.url, "GET", f"/sse/{path}", params)


def open_stream(server: Gunicorn, **params: Any) -> Any:
    """Return a socket on which a probe of a stream has begun."""
    sock = client.connect(server.url, timeout=20)
    query = "&".join(f"{name}={value}" for name, value in {"probe": 1, **params}.items())
    sock.sendall(f"GET /sse/stream?{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = b""
    while b"doctor.open" not in head:
        part = sock.recv(4096)
        assert part, head
        head += part
    return sock


def left(server: Gunicorn, id: str) -> Any:
    return ask(server, "doctor/left", id=id).json()


@pytest.fixture
def two(tmp_path: Path, redis_url: str) -> Iterator[Gunicorn]:
    """Two workers on one Redis, whose probes need a pass."""
    env = {"SSE_PUBLISH_KEYS": KEY, "SSE_REDIS_URL": redis_url}
    with Gunicorn(tmp_path, env=env, workers=2) as server:
        yield server


@contextlib.contextmanager
def answering(server: Gunicorn, worker: int) -> Iterator[None]:
    """Have one worker answer all requests, because the others stand still."""
    others = [pid for pid in server.worker_pids() if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def test_every_worker_takes_a_pass_and_knows_who_has_left(two: Gunicorn) -> None:
    made = client.request(two.url, "POST", "/sse/doctor/pass", headers={"Authorization": f"Bearer {KEY}"}).json()
    given = {"pass": made["pass"]}
    quiet, busy = secrets.token_hex(10), secrets.token_hex(10)
    with (
        open_stream(two, every=80, count=1, id=quiet, **given),
        open_stream(two, every=0.5, count=60, id=busy, **given),
    ):
        for id in (quiet, busy):
            assert ask(two, "doctor/left", id=id, **given).json()["ended"] is False
    for id in (quiet, busy):
        wait_until(lambda: ask(two, "doctor/left", id=id, **given).json()["ended"], 5, 0.2, "it is noticed")  # noqa: B023
    names = set()
    for worker in two.worker_pids():
        with answering(two, worker):
            names.add(ask(two, "doctor/echo", **given).json()["worker"])
            for id in (quiet, busy):
                told = ask(two, "doctor/left", id=id, **given).json()
                assert told["how"] == "left"
                assert 0 < told["after"] < 15
    assert len(names) == 2


def test_a_worker_that_ends_tells_streams_and_polls_and_is_not_held(tmp_path: Path) -> None:
    with (
        Gunicorn(tmp_path, env=OPEN) as server,
        ThreadPoolExecutor() as pool,
        open_stream(server, every=80, count=1) as stream,
        open_stream(server, count=0, end="keep") as kept,
    ):
        poll = pool.submit(ask, server, "poll", probe=1, wait=80)
        time.sleep(0.5)
        began = time.monotonic()
        server.stop(timeout=15, by=signal.SIGTERM)
        assert time.monotonic() - began < 10
        assert b'"reason":"drain"' in client.read_all(stream)
        assert client.read_all(kept).endswith(b"0\r\n\r\n"), "the end of the body is clean"
        assert poll.result(5).status == 200


def test_a_process_that_stood_still_is_found(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, env=OPEN) as server:
        before = ask(server, "doctor/echo").json()
        [worker] = server.worker_pids()
        time.sleep(0.5)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(worker, signal.SIGCONT)
        after = ask(server, "doctor/echo").json()
        assert before["worker"] == after["worker"]
        assert before["ticks"]["longest_gap"] < 1
        assert 2.4 < after["ticks"]["longest_gap"] < 10
        assert after["ticks"]["ago"] < 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_worker_answers_probes_and_keeps_room_for_others(tmp_path: Path, kind: str) -> None:
    with Gunicorn(tmp_path, env=OPEN, arguments=KINDS[kind]) as server:
        holds = {"gevent": "many", "gthread": "threads", "sync": "one"}[kind]
        assert ask(server, "doctor/echo").json()["holds"] == holds
        id = secrets.token_hex(10)
        body = ask(server, "stream", probe=1, every=0.2, count=3, id=id).body.decode()
        assert body.count("event: doctor.tick") == 3
        assert '"reason":"done"' in body
        assert left(server, id)["how"] == "finished"
        assert ask(server, "poll", probe=1, wait=0.5).json()["waited"] >= 0.5
        if kind == "sync":
            refusal = ask(server, "stream", probe=1, every=20, count=1)
            assert (refusal.status, refusal.json()["error"]["code"]) == (503, "one_at_a_time")
            return
        most = 8 if kind == "gevent" else 2
        opened = [open_stream(server, every=0.5, count=60) for _ in range(most)]
        assert ask(server, "stream", probe=1).status == 429
        assert ask(server, "doctor/echo").status == 200, "others are answered"
        for stream in opened:
            stream.close()
        wait_until(lambda: ask(server, "stream", probe=1, count=0).status == 200, 5, 0.3, "a place is free")


def test_a_hundred_clients_at_once_do_not_load_the_service(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, env=OPEN | {"SSE_PUBLIC": "a"}) as server:
        answers: list[int] = []

        def press() -> None:
            answers.append(ask(server, "stream", probe=1, every=0.1, count=30, size=16384).status)

        threads = [threading.Thread(target=press) for _ in range(100)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        with client.Stream(server.url, {"channel": "a"}) as stream:
            assert stream.next()
        assert time.monotonic() - began < 5
        for thread in threads:
            thread.join(30)
        assert answers.count(200) == 8
        assert answers.count(429) == 92
        assert json.loads(ask(server, "doctor/echo").body)["service"] == "throughline"
