"""After the end of a channel, under real servers: how a body ends, who comes back, and that nobody does so again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sse.stores import Store, connect
from tests import client
from tests.client import Stream
from tests.live.load import APP, ENV, ORIGIN
from tests.live.test_stream_forms import KINDS, make
from tests.proxies import AnsweringProxy
from tests.servers import ROOT, Gunicorn, Nginx, RedisServer, wait_until
from tests.writing import Run

QUIET = 10.0  # seconds in which no request may come

# Prints the texts, and its state after each error: 0 is CONNECTING, 2 is CLOSED.
EVENT_SOURCE = """
import { EventSource } from "eventsource";
const source = new EventSource(process.argv[2]);
source.addEventListener("text", (event) => console.log("text", event.data));
source.addEventListener("sse.end", (event) => console.log("end", JSON.parse(event.data).reason));
source.addEventListener("error", (event) => console.log("error", event.code, source.readyState));
setInterval(() => {}, 1000);  // the package's own timer does not keep the program alive
"""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def store(redis: RedisServer) -> Iterator[Store]:
    store = connect(redis.url, ring=1000, ring_ttl=3600)
    yield store
    store.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[dict[str, Gunicorn]]:
    env = ENV | {"SSE_REDIS_URL": redis.url, "SSE_RETRY": "1000"}
    with ExitStack() as stack:
        yield {kind: stack.enter_context(make(kind, tmp_path_factory.mktemp("end"), env)) for kind in KINDS}


@pytest.fixture
def handed_off(servers: dict[str, Gunicorn]) -> Gunicorn:
    return servers["handed off"]


def test_a_body_ends_normally_after_the_end_on_each_server(servers: dict[str, Gunicorn], store: Store) -> None:
    for number, (kind, server) in enumerate(servers.items()):
        channel = f"bodies/{number}"
        run = Run(store, channel)
        run.write("Hello")
        with Stream(server.url, {"channel": channel, "end": "cut"}) as stream:
            stream.until("text")
            run.end("failed")
            end = stream.until("sse.end")
            assert end.json() == {"channel": channel, "reason": "failed"}
            assert end.retry is not None, kind
            assert list(stream.events()) == [], kind
            assert stream.complete, f"{kind}: a clean end, with end=cut, too"
        headers = {"Last-Event-ID": end.id, "Origin": ORIGIN}
        for method in ("GET", "HEAD"):
            answer = client.request(server.url, method, "/sse/stream", {"channel": channel}, headers=headers)
            assert (answer.status, answer.body) == (204, b""), kind
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Content-Length" not in answer.headers
            assert "Transfer-Encoding" not in answer.headers
        bare = client.request(server.url, "GET", "/sse/stream", {"channel": channel, "form": "bare"}, headers=headers)
        assert (bare.status, bare.json()["ended"]) == (410, {channel: "failed"}), kind


def test_a_text_that_has_ended_comes_whole_in_one_body(servers: dict[str, Gunicorn], store: Store) -> None:
    run = Run(store, "whole")
    run.write(*[f"{number}\n" for number in range(2000)])
    run.end()
    text = "".join(f"{number}\n" for number in range(2000))
    for kind, server in servers.items():
        with Stream(server.url, {"channel": "whole"}) as stream:
            events = [event for event in stream.events() if event.event == "text"]
            assert stream.complete
        assert "".join(event.data or "" for event in events) == text, kind
        assert len(events) <= 4, kind  # 2,000 pieces


def test_curl_gets_204(handed_off: Gunicorn, store: Store) -> None:
    run = Run(store, "curl")
    run.write("x")
    end = run.end()
    command = ["curl", "-sN", "-w", "%{http_code}", "-H", f"Last-Event-ID: curl={end}"]
    done = subprocess.run(
        [*command, f"{handed_off.url}/sse/stream?channel=curl"], capture_output=True, timeout=20, check=True
    )
    assert done.stdout == b"204"


def test_an_event_source_of_node_comes_back_once_and_never_again(
    handed_off: Gunicorn, store: Store, tmp_path: Path
) -> None:
    run = Run(store, "node")
    run.write("Hello")
    program = tmp_path / "program.mjs"
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "node_modules")
    program.write_text(EVENT_SOURCE)
    with AnsweringProxy(int(handed_off.url.rpartition(":")[2])) as proxy:
        address = f"{proxy.url}/sse/stream?channel=node"
        with subprocess.Popen(["node", str(program), address], stdout=subprocess.PIPE, text=True) as node:
            assert node.stdout
            try:
                assert node.stdout.readline() == "text Hello\n"
                run.write(" world")
                run.end("stopped")
                lines = [node.stdout.readline() for _ in range(4)]
                assert lines == ["text  world\n", "end stopped\n", "error undefined 0\n", "error 204 2\n"]
                assert len(proxy.requests) == 2
                time.sleep(QUIET)
                assert len(proxy.requests) == 2
            finally:
                node.kill()


def test_the_reconnects_of_a_row_are_spread(handed_off: Gunicorn, store: Store) -> None:
    """All of these streams are one row, which gets the end in one round."""
    run = Run(store, "many")
    run.write("x")
    streams = [Stream(handed_off.url, {"channel": "many"}) for _ in range(300)]
    try:
        for stream in streams:
            stream.until("text")
            run.renew()
        run.end()
        waits = [stream.until("sse.end").retry or 0 for stream in streams]
        assert all(100 <= wait <= 1000 for wait in waits)
        assert len(set(waits)) > 150
        tenths = [sum(100 + 90 * tenth <= wait < 190 + 90 * tenth for wait in waits) for tenth in range(10)]
        assert min(tenths) >= 10, "they are spread evenly"
        for stream in streams:
            list(stream.events())
            assert stream.complete
    finally:
        for stream in streams:
            stream.close()
    wait_until(lambda: client.request(handed_off.url, "GET", "/inspect").json()["subscribers"] == 0)


def test_nginx_passes_the_204_on(redis: RedisServer, store: Store, tmp_path: Path) -> None:
    run = Run(store, "nginx")
    run.write("x")
    end = run.end()
    env = ENV | {"SSE_REDIS_URL": redis.url}
    with Gunicorn(tmp_path, APP, env) as server, Nginx(tmp_path, server.bind) as nginx:
        headers = {"Last-Event-ID": f"nginx={end}", "Origin": ORIGIN}
        answer = client.request(nginx.url, "GET", "/sse/stream", {"channel": "nginx"}, headers=headers)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        with Stream(nginx.url, {"channel": "nginx", "end": "cut"}) as stream:
            assert [event.event for event in stream.events()][-1] == "sse.end"
            assert stream.complete
