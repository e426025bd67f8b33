"""Requests at the largest allowed size, and a worker that has few file descriptors.

Settings of the service that gunicorn has to know reach it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import client
from tests.client import Stream
from tests.live.app_servers import FewFilesGunicorn
from tests.live.load import APP, ENV, GREENLETS, KEY, Crowd, inspect
from tests.servers import ROOT, Gunicorn, RedisServer, open_fds, wait_until

FILES = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    folder: Path = tmp_path_factory.mktemp("limits")
    with Gunicorn(folder, env={"SSE_PUBLIC": "*", "SSE_PUBLISH_KEYS": KEY}) as server:
        yield server


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
def test_a_body_that_is_too_large_is_answered_and_not_reset(server: Gunicorn, connection: str) -> None:
    client = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {KEY}", "Connection": connection, "Content-Type": "text/plain"}
    for _ in range(2):
        client.request("POST", "/sse/publish/a", b"x" * 3_000_000, headers)
        with client.getresponse() as response:
            assert response.status == 413
            assert json.loads(response.read())["error"]["code"] == "too_large"
    client.close()


def test_the_longest_request_line_and_header_are_taken_and_longer_ones_are_not(server: Gunicorn) -> None:
    def status(line: int, header: int) -> int:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            query = f"/sse/poll?channel=a&timeout=0&unknown={'x' * line}"
            head = f"GET {query} HTTP/1.1\r\nHost: a\r\nCookie: {'c' * header}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            return int(connection.makefile("rb").readline().split()[1])

    assert status(24_000, 9_000) == 200
    assert status(40_000, 10) == 414
    assert status(10, 40_000) == 431


@pytest.mark.parametrize("arguments", [(), GREENLETS], ids=["handed off", "greenlets"])
def test_a_worker_lets_in_as_many_as_its_files_allow_and_answers_all_else(
    arguments: Sequence[str], redis_server: RedisServer, tmp_path: Path
) -> None:
    environment = ENV | {"SSE_REDIS_URL": redis_server.url}
    with (
        FewFilesGunicorn(tmp_path, APP, environment, arguments=arguments, files=FILES) as server,
        Crowd(server.url) as crowd,
        contextlib.ExitStack() as silent,
    ):
        told = re.search(rf"\[WARNING\] {FILES} open files: only (\d+) subscribers a worker, not 10000", server.logs())
        assert told
        room = int(told[1])
        assert FILES / 3 < room < FILES

        members = crowd.open(room, lambda: "a")
        crowd.settle()
        for _ in range(40):
            silent.enter_context(client.connect(server.url))
        for _ in range(3):
            with Stream(server.url, {"channel": "a"}) as stream:
                assert stream.status == 200
                assert [event.json()["reason"] for event in stream.events()] == ["busy"]
            answer = client.poll(server.url, ["a"], timeout=5)
            assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
        started = time.monotonic()
        assert client.request(server.url, "GET", "/healthz").status == 200
        assert client.publish(server.url, "a", "to all", key=KEY).status == 201
        assert client.poll(server.url, ["a"], timeout=0).status == 200
        assert time.monotonic() - started < 1

        with contextlib.ExitStack() as flood:  # it waits in the listener, and no client gets an error
            for _ in range(FILES):
                flood.enter_context(client.connect(server.url))
            time.sleep(0.5)
            [worker] = server.worker_pids()
            assert open_fds(worker) <= FILES
            assert crowd.read(0) == []
        assert client.request(server.url, "GET", "/healthz").status == 200

        for member in members[:20]:
            crowd.cut(member, "reset")
        wait_until(lambda: inspect(server)["subscribers"] == room - 20)
        crowd.open(20, lambda: "a")
        crowd.settle()
        for fault in ("Too many open files", "Errno 24", "EMFILE", "Traceback"):
            assert fault not in server.logs()


@pytest.mark.parametrize("then", ["wait", "begin a request"])
def test_connections_kept_alive_after_a_poll_keep_nobody_out(then: str, tmp_path: Path) -> None:
    with FewFilesGunicorn(tmp_path, APP, ENV, files=FILES) as server, contextlib.ExitStack() as kept:
        request = b"GET /sse/poll?channel=a&timeout=5&last_event_id=%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(6):
            id = client.poll(server.url, ["a"], timeout=5).json()["last_event_id"]
            wait_until(lambda: inspect(server)["subscribers"] == 0)
            polls = [kept.enter_context(client.connect(server.url)) for _ in range(FILES // 5)]
            for sock in polls:
                sock.sendall(request % id.encode())
            wait_until(lambda: inspect(server)["subscribers"] == FILES // 5)
            assert client.publish(server.url, "a", "x", key=KEY).status == 201
            for sock in polls:
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
                if then == "begin a request":
                    sock.sendall(b"GET /")
        with Stream(server.url, {"channel": "a"}) as stream:
            stream.until("sse.open")
        [worker] = server.worker_pids()
        assert open_fds(worker) <= FILES
        assert "Too many open files" not in server.logs()


IDLE = {
    "nothing yet": b"",
    "the script": b"GET /sse/sse.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a refused publication": b"POST /sse/publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nnever read",
    "busy": b"GET /sse/stream?channel=a HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("after", IDLE)
def test_connections_kept_alive_hold_no_greenlet_and_keep_nobody_out(after: str, tmp_path: Path) -> None:
    env = ENV | {"SSE_MAX_SUBSCRIBERS": "1"}
    with (
        FewFilesGunicorn(tmp_path, APP, env, files=FILES) as server,
        contextlib.ExitStack() as kept,
        Crowd(server.url) as crowd,
    ):
        crowd.open(1, lambda: "a")
        crowd.settle()
        before = inspect(server)["greenlets"]
        idle = [kept.enter_context(client.connect(server.url)) for _ in range(FILES // 3)]
        for sock in idle:
            sock.sendall(IDLE[after])
            if IDLE[after]:
                sock.recv(65536)
        wait_until(lambda: inspect(server)["greenlets"] <= before + 1, 5, 0.3)
        # So many that some of them have to go.
        for _ in range(2):
            idle += [kept.enter_context(client.connect(server.url)) for _ in range(FILES - 100)]
            started = time.monotonic()
            assert client.request(server.url, "GET", "/healthz").status == 200
            assert time.monotonic() - started < 2
        assert "Too many open files" not in server.logs()
        assert "Traceback" not in server.logs()
        assert inspect(server)["subscribers"] == 1


def test_requests_that_come_all_at_once_wait_for_a_greenlet_and_are_all_answered(tmp_path: Path) -> None:
    with FewFilesGunicorn(tmp_path, APP, ENV, files=FILES) as server, contextlib.ExitStack() as kept:
        kept_alive = [kept.enter_context(client.connect(server.url)) for _ in range(150)]
        for _ in range(3):
            for sock in kept_alive:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for sock in kept_alive:
                sock.settimeout(10)
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_start_says_once_how_many_may_subscribe(tmp_path: Path, redis_server: RedisServer) -> None:
    environment = ENV | {"SSE_REDIS_URL": redis_server.url, "SSE_MAX_SUBSCRIBERS": "77", "SSE_LANE": "auto"}
    with Gunicorn(tmp_path, APP, environment, workers=2) as server:
        wait_until(lambda: "open files: " in server.logs())
        time.sleep(1)  # until the other worker has started too
        assert len(re.findall(r"\[INFO\] \d+ open files: up to 77 subscribers a worker", server.logs())) == 1
        assert "WARNING" not in server.logs()


def as_gunicorn_knows(tmp_path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return gunicorn's settings, as gunicorn prints them."""
    server = Gunicorn(tmp_path, env=environment)
    told = subprocess.run(
        [*server.command(), "--print-config"], check=True, capture_output=True, text=True, cwd=ROOT,
        env=dict(server.environment()), timeout=20,
    ).stdout  # fmt: skip
    return dict(re.findall(r"^(\w+) += (.*)$", told, re.MULTILINE))


def test_a_worker_that_stops_may_take_as_long_as_its_streams_or_its_runs(tmp_path: Path) -> None:
    assert as_gunicorn_knows(tmp_path, {})["graceful_timeout"] == "37"
    assert as_gunicorn_knows(tmp_path, {"SSE_DRAIN": "30"})["graceful_timeout"] == "42"
    assert as_gunicorn_knows(tmp_path, {"SSE_DRAIN": "30", "SSE_RUN_GRACE": "40"})["graceful_timeout"] == "52"


def test_a_worker_that_stops_spreads_the_ends_of_its_streams_and_is_let(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, APP, ENV | {"SSE_DRAIN": "4"}) as server, Crowd(server.url) as crowd:
        members = crowd.open(40, lambda: "a")
        crowd.settle()
        process = server.process
        assert process
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        ends: list[float] = []
        while crowd.members and time.monotonic() < asked + 10:
            ends += [time.monotonic() - asked] * len(crowd.read(0.1))
        assert len(ends) == 40
        assert all(b'data: {"reason":"drain",' in member.head for member in members)
        assert 2 < ends[-1] - ends[0] < 5
        assert ends[0] + 0.5 < ends[20] < ends[-1] - 0.5
        process.wait(5)
        assert process.returncode == 0
        server.process = None


@pytest.mark.parametrize("name", ["SSE_DRAIN", "SSE_SEND_BUFFER", "SSE_RUN_GRACE"])
@pytest.mark.parametrize("value", ["soon", "-1", "9" * 30, ""])
def test_a_bad_value_that_gunicorn_would_need_is_refused_like_any_other(tmp_path: Path, name: str, value: str) -> None:
    server = Gunicorn(tmp_path, env={name: value})
    with pytest.raises(AssertionError, match="ended with 3"):
        server.start()
    assert f"{name} is {value!r}: give a whole number" in server.logs()
    assert "Traceback" not in server.logs()
