"""Slow networks, and proxies that cut long answers, in every engine.

A page that the user leaves and comes back to has one connection for each proxy.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin, Report
from tests.browser.tabbed_browser import Site, answer
from tests.proxies import AnsweringProxy
from tests.publishing import publish_in_app
from tests.servers import RedisServer, wait_until

A = "public/a"
LONG = pytest.mark.long
ENGINES: dict[str, type[Engine]] = {
    "chromium": Chromium,
    "firefox": Firefox,
    "webkit": WebKit,
    "phantomjs without EventSource": PhantomJS,
}
NATIVE = ["chromium", "firefox", "webkit"]
TRANSPORTS = ["stream", "poll"]
RETRY = 600  # ms, the site's
ROUNDS = 20


class Lab:
    """A page in each engine, with its own proxies between it and the service."""

    def __init__(self, site: Site, origin: Origin) -> None:
        self.site, self.origin = site, origin
        self.fronts: dict[tuple[str, str], AnsweringProxy] = {}

    def start(self, engine: str, transport: str, name: str, channel: str, replay: int, **options: Any) -> None:
        options |= {"url": f"{self.fronts[engine, transport].url}/sse", "channels": [channel], "replay": replay}
        self.origin.command(engine, "start", {name: options})

    def start_native(self, engine: str, name: str, channel: str, replay: int) -> None:
        url = f"{self.fronts[engine, 'stream'].url}/sse/stream?channel={channel}&replay={replay}"
        self.origin.command(engine, "native", {name: url})

    def report(self, engine: str) -> Report:
        return self.origin.reports[engine]

    def log(self, engine: str, name: str) -> list[Any]:
        return self.report(engine).logs.get(name, [])

    def numbers(self, engine: str, name: str) -> list[int]:
        return [number for number, _ in self.log(engine, name)]

    def wait_for(self, engine: str, name: str, count: int, timeout: float) -> None:
        try:
            wait_until(lambda: len(self.log(engine, name)) >= count, timeout, 0.1, what=f"{count} events")
        except AssertionError as error:
            error.add_note(f"{engine} has {len(self.log(engine, name))}: {self.log(engine, f'{name} states')}")
            raise
        assert self.numbers(engine, name) == list(range(count))
        assert self.log(engine, f"{name} resets") == []
        assert self.log(engine, "errors") == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("lines")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory / "redis"))
        origin = stack.enter_context(Origin())
        settings = {"SSE_ORIGINS": origin.url, "SSE_RETRY": RETRY, "SSE_HEARTBEAT": 3}
        site = stack.enter_context(Site(directory / "site", redis, **settings))
        for name, engine in ENGINES.items():
            page = origin.page("feeds.html", name, without=name.partition(" without ")[2])
            stack.enter_context(engine(directory / name.replace(" ", "-"), page))
        for name, report in origin.reports.items():
            wait_until(lambda report=report: report.state.get("ready"), 60, what=f"{name} is ready")  # type: ignore[misc]
        yield Lab(site, origin)


@pytest.fixture
def fronts(lab: Lab) -> Iterator[dict[tuple[str, str], AnsweringProxy]]:
    """New proxies for each engine, of which it knows nothing yet. Those for polls refuse streams."""
    with contextlib.ExitStack() as stack:
        lab.fronts = {
            key: stack.enter_context(AnsweringProxy(lab.site.port)) for key in itertools.product(ENGINES, TRANSPORTS)
        }
        for (_, transport), front in lab.fronts.items():
            if transport == "poll":
                front.answer = lambda target: answer(502) if "/stream" in target else None
        yield lab.fronts
        for name in ENGINES:
            lab.origin.command(name, "close")
        for name in ENGINES:
            lab.origin.wait_for_report(name)


def test_behind_a_proxy_that_cuts_what_is_long_events_come_no_later_than_to_a_native_eventsource(
    lab: Lab, fronts: dict[tuple[str, str], AnsweringProxy]
) -> None:
    channel, count = "public/long", 100
    for number in range(count):
        publish_in_app(lab.site.publisher, channel, [number, "x" * 300])
    for (engine, transport), front in fronts.items():
        front.room = 6000
        lab.start(engine, transport, transport, channel, count, share=False)
    for engine in NATIVE:
        lab.start_native(engine, "native", channel, count)
    for engine, transport in fronts:
        lab.wait_for(engine, transport, count, timeout=40)
    for engine in NATIVE:
        lab.wait_for(engine, "native", count, timeout=40)
    for engine in ENGINES:
        native = lab.log(engine if engine in NATIVE else "chromium", "native times")[-1]
        print(f"{engine}: streams {lab.log(engine, 'stream times')[-1]} s, natively {native} s")
        assert lab.log(engine, "stream times")[-1] <= 1.25 * native + 3, lab.log(engine, "stream states")
        assert "polling" not in {state for state, *_ in lab.log(engine, "stream states")}


@pytest.mark.parametrize(("pace", "count"), [(4000, 20), pytest.param(8000, 60, marks=LONG)])
def test_over_a_slow_line_the_first_event_comes_soon_and_the_others_in_order(
    lab: Lab, fronts: dict[tuple[str, str], AnsweringProxy], pace: int, count: int
) -> None:
    channel = f"public/slow/{pace}"
    for number in range(count):
        publish_in_app(lab.site.publisher, channel, [number, "x" * 2000])
    for (engine, transport), front in fronts.items():
        front.pace = pace  # bytes a second
        lab.start(engine, transport, f"{transport} at {pace}", channel, count, share=engine == "chromium")
    for engine, transport in fronts:
        name = f"{transport} at {pace}"
        lab.wait_for(engine, name, count, timeout=60)
        times = lab.log(engine, f"{name} times")
        print(f"{engine}, {name}: the first event after {times[0]} s, the last after {times[-1]} s")
        assert times[0] < 5


def test_a_page_that_is_left_and_come_back_to_again_and_again_has_one_connection_for_each_line(
    lab: Lab, fronts: dict[tuple[str, str], AnsweringProxy]
) -> None:
    wait_until(lambda: lab.site.subscribers() == 0, 15, what="the streams of other tests have ended")
    report, channel = lab.report("webkit"), "public/back"
    before = len(report.logs["shows"])
    for name in ("shared", "own"):
        lab.start("webkit", "stream", name, channel, 0, share=name == "shared")
    lab.origin.wait_for_report("webkit")
    wait_until(lambda: report.state["settled"], 10, what="it is live")
    lab.origin.command("webkit", "rounds", ROUNDS)
    wait_until(lambda: len(report.logs["shows"]) == before + ROUNDS, 180, what=f"{ROUNDS} times back")
    wait_until(lambda: report.state["settled"] and not report.state["rounds"], 10, what="it is live again")
    assert report.logs["shows"][before:] == [True] * ROUNDS  # it was kept, and not loaded anew
    for number in range(3):
        publish_in_app(lab.site.publisher, channel, [number, ""])
    for name in ("shared", "own"):
        lab.wait_for("webkit", name, 3, timeout=10)
    wait_until(lambda: lab.site.subscribers() == 2, 10, what="two connections")
    assert report.logs["errors"] == []
