"""A growing log file is published line by line, and two independent clients read all of it.

Their connections are cut again and again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.client import Parser
from tests.proxies import TcpProxy
from tests.servers import ROOT, Gunicorn, Nginx, RedisServer, wait_until
from tests.tokens import KEY

CHANNEL = "app/log"
CERTIFICATE = "throughline.crt"
CUTS = 20
LONGEST = 45.0  # seconds in which both clients have to be cut that often


@dataclass
class Heard:
    """The lines that a client received, and how often it was cut."""

    lines: list[str] = field(default_factory=list)
    opened: int = 0
    cuts: int = 0
    trouble: list[str] = field(default_factory=list)

    def note(self, type: str, data: str) -> None:
        if type == "message":
            self.lines.append(data)
        elif type == "sse.open":
            self.opened += 1
        elif type == "sse.reset":
            self.trouble.append(data)


@contextlib.contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None, **pipes: Any) -> Iterator[Any]:
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(env or {}), **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@contextlib.contextmanager
def beside(*works: Callable[[], None]) -> Iterator[None]:
    """Run each work in its own thread during the block. The first failure fails the test."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(LONGEST + 30)
    if failures:
        raise failures[0]


def write_log(path: Path, written: list[str], done: Callable[[], bool], rng: random.Random) -> None:
    """Append lines at random times, some in bursts and some in two halves, until `done`."""
    words = "GET POST 200 503 /checkout grün 日本 🙂 timeout \t \\ \" ' { } data: id: event:".split(" ")
    with path.open("ab", buffering=0) as log:
        while not done():
            for _ in range(rng.choice((1, 1, 1, 2, 30))):
                line = " ".join([f"{len(written):05}", *rng.choices(words, k=rng.randrange(12))])
                written.append(line)
                raw = f"{line}\n".encode()
                half = rng.randrange(len(raw)) if rng.random() < 0.2 else 0
                log.write(raw[:half])
                if half:
                    time.sleep(rng.uniform(0, 0.02))
                log.write(raw[half:])
            time.sleep(rng.expovariate(15))


@contextlib.contextmanager
def publishing(log: Path, nginx: Nginx) -> Iterator[tuple[Any, Any]]:
    """Run `tail -F LOG | flask sse publish CHANNEL --lines` over HTTPS."""
    publish = [sys.executable, "-m", "flask", "--app", "wsgi", "sse", "publish", CHANNEL, "--lines"]
    env = {"THROUGHLINE_KEY": KEY, "SSL_CERT_FILE": str(nginx.dir / CERTIFICATE)}
    with (
        running(["tail", "-n", "+1", "-F", str(log)], stdout=subprocess.PIPE) as tail,
        running([*publish, "--url", f"{nginx.url}/sse"], env, stdin=tail.stdout, stderr=subprocess.PIPE) as publisher,
    ):
        yield tail, publisher


def read_with_curl(url: str, heard: Heard, done: Callable[[], bool], rng: random.Random) -> None:
    """Read with curl, killed at random. Each next one goes on from what this parser had dispatched by then."""
    last_event_id = ""
    while not done():
        resume = ["-H", f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        parser = Parser(last_event_id)
        life = rng.uniform(0.2, 1.2) if heard.cuts < CUTS else LONGEST
        opened = heard.opened
        with running(["curl", "-sSkN", *resume, url], stdout=subprocess.PIPE) as curl:
            ends = time.monotonic() + life
            while not done() and (time.monotonic() < ends or parser.last_event_id == ""):
                if select.select([curl.stdout], [], [], 0.05)[0]:
                    chunk = os.read(curl.stdout.fileno(), rng.randrange(1, 4096))
                    if not chunk:
                        break  # the stream's life was over
                    for event in parser.feed(chunk):
                        if event.data is not None:
                            heard.note(event.event, event.data)
            else:
                heard.cuts += heard.opened > opened
        last_event_id = parser.last_event_id


def read_with_eventsource(url: str, ca: Path, heard: Heard, done: Callable[[], bool]) -> None:
    """Read with the npm client, which reconnects by itself when its connection is cut."""
    command = ["node", "tests/clients/read.js", url]
    with running(command, {"NODE_EXTRA_CA_CERTS": str(ca)}, stdout=subprocess.PIPE) as node:
        pending = b""
        while not done():
            if select.select([node.stdout], [], [], 0.05)[0]:
                chunk = os.read(node.stdout.fileno(), 65536)
                assert chunk, "the client has given up"
                *lines, pending = (pending + chunk).split(b"\n")
                for item in map(json.loads, lines):
                    heard.note(item["type"], item["data"])


def cut_at_random(proxy: TcpProxy, heard: Heard, done: Callable[[], bool], rng: random.Random) -> None:
    """Cut the client's connection each time after it has reconnected."""
    while heard.cuts < CUTS and not done():
        opened = heard.opened
        time.sleep(rng.uniform(0.05, 1))
        proxy.cut()
        heard.cuts += 1
        wait_until(lambda opened=opened: heard.opened > opened or done(), 15, what="the client came back")  # type: ignore[misc]


def test_each_line_of_a_growing_log_arrives_once_and_in_order_at_clients_that_are_cut(
    tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.option.hypothesis_seed)
    environment = {
        "SSE_REDIS_URL": redis_server.url,
        "SSE_PUBLIC": CHANNEL,
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_RETRY": "200",
        "SSE_STREAM_LIFETIME": "5",
    }
    log = tmp_path / "app.log"
    log.touch()
    written: list[str] = []
    curl, node = Heard(), Heard()
    started = time.monotonic()
    over = threading.Event()

    def cut_enough() -> bool:
        return over.is_set() or (curl.cuts >= CUTS and node.cuts >= CUTS) or time.monotonic() > started + LONGEST

    def all_heard() -> bool:
        return over.is_set() or time.monotonic() > started + LONGEST + 10

    with contextlib.ExitStack() as stack:
        gunicorn = stack.enter_context(Gunicorn(tmp_path, env=environment, workers=4))
        nginx = stack.enter_context(Nginx(tmp_path, gunicorn.bind))
        proxy = stack.enter_context(TcpProxy(nginx.https_port))
        path = f"/sse/stream?channel={CHANNEL}"
        with beside(
            lambda: read_with_curl(f"{nginx.url}{path}", curl, all_heard, random.Random(seed)),
            lambda: read_with_eventsource(
                f"https://127.0.0.1:{proxy.port}{path}", nginx.dir / CERTIFICATE, node, all_heard
            ),
        ):
            try:
                wait_until(lambda: curl.opened and node.opened, 15, what="both clients are connected")
                tail, publisher = stack.enter_context(publishing(log, nginx))
                with beside(
                    lambda: write_log(log, written, cut_enough, random.Random(seed + 1)),
                    lambda: cut_at_random(proxy, node, cut_enough, random.Random(seed + 2)),
                ):
                    pass
                wait_until(lambda: len(curl.lines) >= len(written) <= len(node.lines), 15, what="every line is heard")
                time.sleep(0.5)  # for what must not come
                tail.terminate()
                _, told = publisher.communicate(timeout=15)
            finally:
                over.set()
    assert publisher.returncode == 0
    assert told.decode().endswith(f"lines: {len(written)} published\n")
    assert curl.lines == written
    assert node.lines == written
    assert min(curl.cuts, node.cuts) >= CUTS
    assert min(curl.opened, node.opened) > CUTS
    assert curl.trouble == node.trouble == []
