"""Sources of an app: what the decorator takes, and what the app's channels do with it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, abort, current_app
from werkzeug.routing import BaseConverter

from sse import SSE, Event
from sse.config import Config
from sse.hub.subscriber import Delivery, Start
from sse.service import Service
from tests.conftest import MakeApp
from tests.servers import wait_until

POLL = "/sse/poll?channel="


def events(app: Flask, channel: str, query: str = "&timeout=2") -> list[tuple[str, str]]:
    """Return the types and data of the events that a new poll gets at once."""
    answer = app.test_client().get(f"{POLL}{channel}{query}").json
    assert answer is not None
    return [(event["type"], event["data"]) for event in answer["events"]]


def first_events(app: Flask, channel: str) -> list[tuple[str, str]]:
    """Begin the source of a channel, and return the newest event as soon as there is one."""
    return wait_until(lambda: events(app, channel), 5)


def service_of(app: Flask) -> Service:
    service = app.extensions["sse"]
    assert isinstance(service, Service)
    return service


@pytest.mark.parametrize("generator", [True, False])
def test_a_source_begins_with_the_first_subscriber_and_a_later_one_has_its_newest_event_at_once(
    make_app: MakeApp, store_url: str | None, generator: bool
) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url)
    called: list[str] = []

    if generator:

        @sse.source("prices/<symbol>")
        def prices(symbol: str) -> Iterator[object]:
            called.append(symbol)
            yield Event({"price": 7}, "bid")
            while True:
                time.sleep(0.05)
                yield None

    else:

        @sse.source("prices/<symbol>", interval=60)
        def price(symbol: str) -> object:
            called.append(symbol)
            return Event({"price": 7}, "bid")

    time.sleep(0.1)
    assert not called
    assert not service_of(app).sources.running
    assert first_events(app, "prices/acme") == [("bid", '{"price":7}')]
    for _ in range(5):
        assert events(app, "prices/acme") == [("bid", '{"price":7}')]
    assert called == ["acme"]
    sse.close()
    assert not service_of(app).sources.running


def test_a_poll_that_does_not_wait_starts_nothing(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)
    called: list[None] = []
    sse.source("scores", interval=1)(lambda: called.append(None))
    assert events(app, "scores", "&timeout=0") == []
    with app.app_context():
        sse.publish("scores", "by hand")
    time.sleep(0.2)
    assert not called
    assert not [thread for thread in threading.enumerate() if thread.name == "sse-sources"]


def test_publishing_on_a_channel_of_a_source_starts_nothing_and_is_no_value_of_it(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)
    called: list[None] = []
    sse.source("scores", interval=60)(lambda: called.append(None))
    with app.app_context():
        sse.publish("scores", "by hand")
    time.sleep(0.2)
    assert not called
    assert events(app, "scores") == []
    wait_until(lambda: called, 5)
    assert events(app, "scores") == []


def test_a_source_runs_in_a_context_of_its_app(make_app: MakeApp) -> None:
    sse = SSE()
    apps = [make_app(sse, NAME="one"), make_app(sse, NAME="two")]
    torn_down: list[str] = []
    for app in apps:
        app.teardown_appcontext(lambda _, app=app: torn_down.append(app.config["NAME"]))

    @sse.source("called", interval=0.05)
    def called() -> str:
        return str(current_app.config["NAME"])

    @sse.source("generated")
    def generated() -> Iterator[str]:
        yield str(current_app.config["NAME"])

    for app in apps:
        for channel in ("called", "generated"):
            assert first_events(app, channel) == [("message", app.config["NAME"])]
    torn_down.clear()
    wait_until(lambda: torn_down.count("one") > 2 and torn_down.count("two") > 2, 5)  # one for each call


def test_values_are_written_as_the_app_writes_json(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)

    class Money:
        pass

    app.json.default = lambda value: "7 EUR" if isinstance(value, Money) else None  # type: ignore[method-assign, attr-defined]
    sse.source("prices", interval=60)(Money)
    assert first_events(app, "prices") == [("message", '"7 EUR"')]


def test_a_channel_that_the_app_does_not_know_is_down(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    sse = SSE()
    app = make_app(sse)
    called: list[str] = []

    @sse.source("prices/<symbol>", interval=1)
    def prices(symbol: str) -> object:
        called.append(symbol)
        abort(404)

    events(app, "prices/nobody")
    hub = service_of(app).hub
    wait_until(lambda: hub.sources(["prices/nobody"]) == {"prices/nobody": "down"}, 5)
    assert called == ["nobody"]
    assert "no such channel" in caplog.text


def test_subscribers_are_told_that_a_source_is_down_and_up_again(make_app: MakeApp, store_url: str | None) -> None:
    sse = SSE()
    app = make_app(sse, SSE_REDIS_URL=store_url, SSE_HEARTBEAT=3)
    faults = [RuntimeError("no line to the exchange")]

    @sse.source("prices", interval=0.1)
    def prices() -> int:
        if faults:
            raise faults[0]
        return 7

    with app.test_client().get("/sse/stream?channel=prices") as stream:
        heard = b""
        for part in stream.response:
            heard += part if isinstance(part, bytes) else part.encode()
            if b'"state":"down"' in heard:
                faults.clear()
            if b'"state":"up"' in heard:
                break
    assert b'"source":"up"' in heard.partition(b"\n\n")[0]
    assert heard.index(b'"state":"down"') < heard.index(b"data: 7")
    answer = app.test_client().get(f"{POLL}prices&timeout=2").json
    assert answer is not None
    assert answer["source"] == {"prices": "up"}


def test_two_workers_hear_each_event_of_the_one_that_runs_and_the_other_takes_over(
    make_app: MakeApp, redis_url: str
) -> None:
    sse = SSE()
    apps = [make_app(sse, SSE_REDIS_URL=redis_url) for _ in range(2)]
    services = [service_of(app) for app in apps]
    numbers = iter(range(1000))
    at_once, most = [0], [0]

    @sse.source("prices")
    def prices() -> Iterator[object]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            while True:
                yield next(numbers)
                time.sleep(0.05)
        finally:
            at_once[0] -= 1

    subscribers = [service.hub.attach({"prices": Start()}, 5) for service in services]
    heard: list[list[int]] = [[], []]

    def listen(enough: Callable[[], bool]) -> None:
        end = time.monotonic() + 15
        while not enough():
            assert time.monotonic() < end
            for subscriber, numbers in zip(subscribers, heard, strict=True):
                subscriber.wait(0.01)
                taken = [] if subscriber.is_detached else subscriber.take(100, 10_000)
                numbers += [int(item.entry.event.data) for item in taken if isinstance(item, Delivery)]

    listen(lambda: len(heard[0]) > 5 and len(heard[1]) > 5)
    runs = next(index for index, service in enumerate(services) if service.sources.running)
    services[runs].hub.detach(subscribers[runs])
    services[runs].close()
    other = 1 - runs
    before = len(heard[other])
    listen(lambda: len(heard[other]) > before + 5)
    services[other].hub.detach(subscribers[other])
    assert services[other].sources.running == 1
    assert most == [1]
    stored = services[other].store.read([("prices", services[other].store.before([("prices", 100)])[0])])[0]  # type: ignore[list-item]
    in_ring = [int(entry.event.data) for entry in stored.entries]  # type: ignore[union-attr]
    for numbers_heard in heard:
        assert numbers_heard == in_ring[in_ring.index(numbers_heard[0]) :][: len(numbers_heard)]
    assert in_ring == sorted(set(in_ring))


def test_ten_thousand_guessed_names_start_at_most_the_limit(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse, SSE_MAX_SOURCES=20)
    running, most = [0], [0]

    @sse.source("prices/<symbol>")
    def prices(symbol: str) -> Iterator[object]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            while True:
                yield symbol
                time.sleep(0.05)
        finally:
            running[0] -= 1

    sources = service_of(app).sources
    names = [f"prices/{number}" for number in range(10_000)]
    listening = set(names)
    sources._hub = HubOfAll(listening)  # type: ignore[assignment]
    for name in names:
        assert sources.began(name) == "up"
    wait_until(lambda: sources.running == 20, 10)
    time.sleep(3)
    assert sources.running == most[0] == 20
    listening.clear()


class HubOfAll:
    """A hub in which these channels are listened to."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def listens(self, name: str) -> bool:
        return name in self.names

    def set_source(self, name: str, state: str) -> None:
        pass


def refusal(decorate: Callable[[], Any], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        decorate()
    return str(caught.value)


def test_a_bad_source_is_refused_at_its_decoration() -> None:
    sse = SSE()

    def produce(symbol: str) -> object:
        return symbol

    def generate(symbol: str) -> Iterator[object]:
        yield symbol

    async def wait(symbol: str) -> object:
        return symbol

    async def wait_often(symbol: str) -> Any:
        yield symbol

    sse.source("prices/<symbol>", interval=5)(produce)
    equal = refusal(lambda: sse.source("prices/<name>", interval=5)(lambda name: name), ValueError)
    assert "'prices/<symbol>'" in equal
    assert "slash" in refusal(lambda: sse.source("/x/<symbol>")(generate), ValueError)
    assert "symbol" in refusal(lambda: sse.source("x")(generate), TypeError)
    assert "other" in refusal(lambda: sse.source("x/<symbol>/<other>")(generate), TypeError)
    assert "interval" in refusal(lambda: sse.source("x/<symbol>", interval=5)(generate), TypeError)
    assert "async" in refusal(lambda: sse.source("x/<symbol>")(wait), TypeError)
    assert "async" in refusal(lambda: sse.source("x/<symbol>")(wait_often), TypeError)
    assert "called" in refusal(lambda: sse.source("x")("scores"), TypeError)  # type: ignore[type-var]
    for option, value in (("interval", 0), ("interval", -1), ("linger", -1), ("fresh", float("nan")), ("linger", "5")):
        options: dict[str, Any] = {"interval": 5, option: value}
        text = refusal(lambda options=options: sse.source("x/<symbol>", **options)(produce), ValueError)  # type: ignore[misc]
        assert option in text
    sse.source("x/<symbol>", interval=5)(produce)  # nothing of what was refused is left


def test_the_decorated_function_is_returned_as_it_is() -> None:
    def produce() -> int:
        return 7

    assert SSE().source("x", interval=1)(produce) is produce


def test_converters_of_the_app_may_be_used_after_the_app_is_known(make_app: MakeApp) -> None:
    class Ticker(BaseConverter):
        regex = "[A-Z]{1,5}"

        def to_python(self, value: str) -> str:
            return value.lower()

    sse = SSE()
    assert "url_map" in refusal(lambda: sse.source("x/<ticker:symbol>", interval=1)(lambda symbol: symbol), ValueError)
    app = Flask("tests")
    app.url_map.converters["ticker"] = Ticker
    app.config["SSE_PUBLIC"] = "*"
    sse.init_app(app)
    sse.source("prices/<ticker:symbol>", interval=60)(lambda symbol: symbol)
    assert first_events(app, "prices/ACME") == [("message", "acme")]
    assert events(app, "prices/acme") == []
    sse.close()


def test_without_sources_the_hub_asks_nobody(make_app: MakeApp) -> None:
    sse = SSE()
    app = make_app(sse)
    hub = service_of(app).hub
    assert hub.began is None
    assert hub.is_fresh is None
    sse.source("x", interval=1)(lambda: None)
    assert hub.began is not None


def test_a_service_without_an_app_has_no_sources() -> None:
    service = Service(Config())
    assert service.sources.running == 0
    assert service.hub.began is None
    service.close()


def test_an_app_with_sources_is_collected_when_nobody_holds_it(store_url: str | None) -> None:
    sse = SSE()
    app = Flask("tests")
    app.config.from_mapping(SSE_PUBLIC="*", SSE_REDIS_URL=store_url)
    sse.init_app(app)
    sse.source("scores", interval=60)(lambda: 7)
    first_events(app, "scores")
    service = weakref.ref(service_of(app))
    app.extensions.clear()
    del app
    wait_until(lambda: gc.collect() is None or service() is None, 10)
