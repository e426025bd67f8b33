"""Every browser engine, through every proxy: each event arrives once and in order, whatever the network does.

All pairs of an engine and a proxy run at once, so that all take little longer than one. Each pair is a test of its
own. `make browsers` runs all pairs, and a plain run those in SAMPLE.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sse import SSE
from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin, Report
from tests.proxies import TcpProxy
from tests.proxy_servers import BufferingNginx, Caddy, Haproxy, Lighttpd, PlainNginx, ProxyServer
from tests.publishing import publish_in_app
from tests.servers import Gunicorn, Nginx, RedisServer, wait_until

pytestmark = pytest.mark.browsers

CHANNEL = "matrix"
EVENTS = 200
ACTIVE = 12.5  # seconds, twice
QUIET = 16.5  # seconds between: two cuts by the impatient proxy, and room for a third, which must not come
CUTS = 7
STATES = {"connecting", "live", "polling", "waiting", "closed"}

ENGINES: dict[str, type[Engine]] = {
    "chromium": Chromium,
    "firefox": Firefox,
    "webkit": WebKit,
    "phantomjs": PhantomJS,
    "phantomjs without EventSource": PhantomJS,
}


@dataclass(frozen=True)
class Way:
    """A way to the service: the proxy in between, and whether a stream gets through it."""

    proxy: Callable[[Path, int], Nginx | ProxyServer] | None
    streams: bool


def bundled(directory: Path, upstream: int) -> Nginx:
    return Nginx(directory, f"127.0.0.1:{upstream}")


WAYS = {
    "direct": Way(None, streams=True),
    "nginx bundled": Way(bundled, streams=True),
    "nginx naive": Way(PlainNginx, streams=True),
    "nginx buffering": Way(BufferingNginx, streams=False),
    "lighttpd naive": Way(Lighttpd, streams=False),
    "caddy gzip": Way(Caddy, streams=False),
    "haproxy 5 s": Way(Haproxy, streams=True),
}

SAMPLE = [
    ("chromium", "nginx bundled"),
    ("chromium", "caddy gzip"),
    ("chromium", "haproxy 5 s"),
    ("firefox", "direct"),
    ("firefox", "nginx buffering"),
    ("webkit", "nginx naive"),
    ("webkit", "lighttpd naive"),
    ("webkit", "haproxy 5 s"),
    ("phantomjs", "nginx bundled"),
    ("phantomjs", "nginx buffering"),
    ("phantomjs without EventSource", "direct"),
    ("phantomjs without EventSource", "caddy gzip"),
]
ALL = [(engine, way) for engine in ENGINES for way in WAYS]
PAIRS = ALL if os.environ.get("BROWSERS") == "all" else SAMPLE


@dataclass
class Run:
    """The published events, and the reports of each page."""

    published: list[list[str]] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    quiet_losses: dict[tuple[str, str], int] = field(default_factory=dict)

    def state(self, engine: str, way: str) -> dict[str, Any]:
        return dict(self.reports[engine].state.get(way) or {})

    def log(self, engine: str, way: str, what: str) -> list[Any]:
        return self.reports[engine].logs.get(f"{way} {what}", [])

    def all(self, holds: Callable[[str, str], bool]) -> bool:
        return all(holds(engine, way) for engine, way in PAIRS)

    def settled(self, engine: str, way: str) -> bool:
        return self.state(engine, way).get("state") in ("live", "polling")

    def has_last(self, engine: str, way: str) -> bool:
        return self.log(engine, way, "events")[-1:] == self.published[-1:]

    def losses(self, engine: str, way: str) -> int:
        """Return how often the feed had to reconnect."""
        states = [state for _, state, *_ in self.log(engine, way, "states")]
        return sum(
            before in ("live", "polling") and after not in ("live", "polling")
            for before, after in itertools.pairwise(states)
        )

    def table(self) -> str:
        rows = ["", *ENGINES], ["---"] * (len(ENGINES) + 1), *([way, *self._cells(way)] for way in WAYS)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join(["transport, time to the first event, times that it came back", "", *lines])

    def _cells(self, way: str) -> Iterator[str]:
        for engine in ENGINES:
            state = self.state(engine, way)
            first = state.get("first")
            told = f"{state['transport']}, {'never' if first is None else f'{first / 1000:.1f} s'}" if state else ""
            yield f"{told}, {self.losses(engine, way)}" if state else "–"


@dataclass
class Lab:
    """The service, the proxies before it, and the pages that use them."""

    gunicorn: Gunicorn
    origin: Origin
    app: Flask
    run: Run
    rng: random.Random  # of what is published
    breaker: random.Random
    cutters: list[TcpProxy] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)

    def publish(self, type: str, data: Any, text: str) -> None:
        self.run.published.append([type, text])
        publish_in_app(self.app, CHANNEL, data, type=type)

    def publish_any(self) -> None:
        number = len(self.run.published)
        type = self.rng.choice(["message", "message", "created", "a.b:c", "naïve"])
        data, text = self.rng.choice(
            [
                ({"number": number, "text": "a\n\"b\""}, f'{{"number":{number},"text":"a\\n\\"b\\""}}'),
                (number, str(number)),
                *((text, text) for text in ("", f" {number}", f"{number}\ntwo\n\n: three\n", f"日本 🙂 grün {number}")),
            ]
        )  # fmt: skip
        self.publish(type, data, text)

    def begin(self) -> None:
        """Have every page make its feeds while events are published, and wait until each feed has settled."""
        for number in range(75):
            self.publish("before", number, str(number))
            time.sleep(0.2)
            if number == 5:
                for name in ENGINES:
                    self.origin.command(name, "start", {way: self.urls[way] for engine, way in PAIRS if engine == name})
            if number > 5 and self.run.all(self.run.settled):
                break

    def storm(self) -> None:
        """Publish at random times while the proxies break connections, with a quiet time in the middle."""
        harm: list[Callable[[], None]] = [self.cut] * CUTS + [self.refuse, self.replace_workers, self.restart]
        self.breaker.shuffle(harm)
        half = len(harm) // 2
        self.be_active(harm[:half])
        self.be_quiet()
        self.be_active(harm[half:])

    def be_active(self, harm: list[Callable[[], None]]) -> None:
        began = time.monotonic()
        harmed = sorted(self.breaker.uniform(0.5, ACTIVE - 1) for _ in harm)
        moments = sorted(self.rng.uniform(0, ACTIVE) for _ in range(EVENTS // 2))
        breaking = threading.Thread(target=at_times, args=(began, harmed, harm))
        breaking.start()
        try:
            at_times(began, moments, [self.publish_any] * len(moments))
        finally:
            breaking.join(30)

    def be_quiet(self) -> None:
        time.sleep(1)  # the events before were reported
        before = {pair: self.run.losses(*pair) for pair in PAIRS}
        time.sleep(QUIET)
        self.run.quiet_losses = {pair: self.run.losses(*pair) - before[pair] for pair in PAIRS}

    def cut(self) -> None:
        for cutter in self.cutters:
            cutter.cut(reset=self.breaker.random() < 0.5)

    def refuse(self) -> None:
        for cutter in self.cutters:
            cutter.refuse()
        self.cut()
        time.sleep(2)
        for cutter in self.cutters:
            cutter.admit()

    def replace_workers(self) -> None:
        os.kill(self.gunicorn.pid, signal.SIGHUP)

    def restart(self) -> None:
        self.gunicorn.stop()
        self.gunicorn.start()


def at_times(began: float, moments: list[float], actions: list[Callable[[], None]]) -> None:
    for moment, action in zip(moments, actions, strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        action()


@contextlib.contextmanager
def opened(directory: Path, seed: int) -> Iterator[Lab]:
    """Yield a lab with a page in each engine that has a pair. No page has begun."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory / "redis"))
        origin = stack.enter_context(Origin())
        settings = {"SSE_REDIS_URL": redis.url, "SSE_PUBLIC": CHANNEL}
        more = {"SSE_ORIGINS": origin.url, "SSE_RETRY": "500"}
        gunicorn = stack.enter_context(Gunicorn(directory / "app", env=settings | more, workers=2))
        app = Flask("publisher")
        app.config.from_mapping(settings)
        SSE(app)
        stack.callback(app.extensions["sse"].close)
        lab = Lab(gunicorn, origin, app, Run(reports=origin.reports), random.Random(seed), random.Random(seed + 1))
        upstream = int(gunicorn.bind.rpartition(":")[2])
        for name, way in WAYS.items():
            port, scheme = upstream, "http"
            if way.proxy:
                proxy = stack.enter_context(way.proxy(directory / name.replace(" ", "-"), upstream))
                port, scheme = (proxy.https_port, "https") if isinstance(proxy, Nginx) else (proxy.port, "http")
            cutter = stack.enter_context(TcpProxy(port))
            lab.cutters.append(cutter)
            lab.urls[name] = f"{scheme}://127.0.0.1:{cutter.port}/sse"
        for name, engine in ENGINES.items():
            without = name.partition(" without ")[2]
            page = origin.page("matrix.html", name, script=f"{gunicorn.url}/sse/sse.js", without=without)
            stack.enter_context(engine(directory / name.replace(" ", "-"), page))
        for name, report in origin.reports.items():
            wait_until(lambda report=report: report.state.get("ready"), 60, what=f"{name} has the script")  # type: ignore[misc]
            assert report.state["without"] == name.partition(" without ")[2]
        yield lab


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp("matrix")
    seed = int(request.config.option.hypothesis_seed)
    with opened(directory, seed) as lab:
        run = lab.run
        lab.begin()
        lab.storm()
        lab.publish("last", "", "")
        with contextlib.suppress(AssertionError):  # each pair says for itself what it lacks
            wait_until(lambda: run.all(run.has_last) and run.all(run.settled), 45)
        time.sleep(1)  # for what must not come
    (directory / "matrix.json").write_text(json.dumps({name: report.logs for name, report in run.reports.items()}))
    (directory / "matrix.md").write_text(run.table() + "\n")
    print(f"\n\n{run.table()}\n")
    yield run


@pytest.mark.parametrize(("engine", "way"), PAIRS)
def test_each_event_arrives_once_and_in_order_over_the_transport_that_gets_through(
    run: Run, engine: str, way: str
) -> None:
    state, events, states = run.state(engine, way), run.log(engine, way, "events"), run.log(engine, way, "states")
    story = "\n".join(map(str, states))

    assert run.log(engine, way, "resets") == []
    assert run.reports[engine].logs["errors"] == []
    assert len(events) > EVENTS, story
    assert events == run.published[-len(events) :], story
    assert state["first"] <= 5000
    expected = "poll" if not WAYS[way].streams else "xhr" if engine.endswith("without EventSource") else "eventsource"
    assert state["transport"] == expected, story
    assert {state for _, state, *_ in states} <= STATES - {"closed"}
    assert run.losses(engine, way) >= 1, "it was never cut"
    assert run.quiet_losses[engine, way] <= 2, story
