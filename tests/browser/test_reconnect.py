"""The embed script comes back, in Chromium, and loses nothing.

The server goes away, refuses, or says when to come again; the network is cut; the machine sleeps.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests import client
from tests.browser.tabbed_browser import Browser, Site, Tab, answer, descendants
from tests.proxies import AnsweringProxy, Connection, StallingProxy, abort
from tests.publishing import Publisher, publish_in_app
from tests.servers import RedisServer, wait_until

A = "public/a"
LONG = pytest.mark.long
RETRY = 200  # ms, the site's
SLOPPY = 0.25  # seconds that a timer may be late


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), redis, SSE_HEARTBEAT=3, SSE_RETRY=RETRY) as site:
        yield site


@pytest.fixture
def front(site: Site) -> Iterator[AnsweringProxy]:
    with AnsweringProxy(site.port) as front:
        yield front


@pytest.fixture
def browser(tabbed: Browser) -> Iterator[Browser]:
    yield tabbed
    tabbed.clear()


@pytest.fixture
def stalling(site: Site) -> Iterator[StallingProxy]:
    with StallingProxy(site.port) as stalling:
        yield stalling


def assert_complete(tab: Tab, numbers: Publisher, name: str = "feed", timeout: float = 5) -> None:
    """Check that the tab has each event once and in order, from the first to the last, without a reset or error."""
    wait_until(lambda: tab.numbers(A, name)[-1:] == [numbers.count - 1], timeout, what="the last event")
    assert tab.numbers(A, name) == list(range(numbers.count)), tab.log("states", name)
    assert tab.log("resets", name) == []
    assert tab.run("return errors") == []


def states(tab: Tab, name: str = "feed") -> list[str]:
    """Return the states one after the other, without repetitions."""
    return [state for state, _ in itertools.groupby(state for _, state, *_ in tab.log("states", name))]


def moments(tab: Tab, state: str, name: str = "feed") -> list[tuple[float, str]]:
    """Return the times at which the feed came into this state, and the reasons."""
    log = tab.log("states", name)
    return [(at / 1000, reason) for at, told, reason, *_ in log if told == state]


def cut(front: AnsweringProxy, tab: Tab, name: str = "feed") -> float:
    """Cut all connections through the proxy, and return the time."""
    moment = time.time()
    front.cut()
    wait_until(lambda: moments(tab, "waiting", name)[-1:] > [(moment - 0.1, "")], what="the cut is noticed")
    return moment


def test_a_server_that_was_away_for_six_seconds_is_found_again_and_nothing_is_lost(
    site: Site, browser: Browser
) -> None:
    own, shared = browser.tabs(2, site.url)
    own.start(A, share=False).wait()
    shared.start(A).wait()
    with site.publishing(A, every=0.1) as numbers:  # the ring holds what it will miss
        time.sleep(0.5)
        site.gunicorn.stop()
        away = time.time()
        for tab in (own, shared):
            tab.wait("waiting")
            told = [state for state in tab.log("states") if state[1] == "waiting"][-1]
            assert told[2], "it says why"
            assert told[3] == "", "over no transport"
        time.sleep(6)
        site.gunicorn.start()
        for tab in (own, shared):
            tab.wait("live", timeout=25)
        time.sleep(0.5)
    for tab in (own, shared):
        assert_complete(tab, numbers)
        assert set(states(tab)) == {"connecting", "waiting", "live"}
        assert states(tab)[-2:] == ["connecting", "live"]
        assert all(reason for _, reason in moments(tab, "waiting"))
        tries = [at for at, _ in moments(tab, "connecting") if at > away]
        assert 2 <= len(tries) <= 40, tries


def test_streams_that_are_refused_again_and_again_are_left_for_polls_until_the_network_is_back(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    tab = browser.open(site.other).start(A, url=f"{front.url}/sse").wait()  # on another origin, with no CORS then
    with site.publishing(A) as numbers:
        front.answer = lambda target: answer(502) if "/stream" in target else None
        moment = cut(front, tab)
        tab.wait("polling", transport="poll", reason="the stream was refused")
        assert 2 <= len(front.since(moment, "/stream")) <= 3
        time.sleep(1)
        assert_tail(tab)
        front.answer = lambda target: None
        tab.run("dispatchEvent(new Event('online'))")
        tab.wait("live", transport="eventsource")
        time.sleep(0.5)
    assert_complete(tab, numbers)


def assert_tail(tab: Tab) -> None:
    before = tab.count()
    wait_until(lambda: tab.count() > before + 10, 3, what="events go on")


def test_a_stream_that_is_refused_once_is_tried_again(site: Site, front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url).start(A).wait()
    refused: list[str] = []

    def refuse_once(target: str) -> bytes | None:
        if "/stream" not in target or refused:
            return None
        refused.append(target)
        return answer(503)

    with site.publishing(A) as numbers:
        front.answer = refuse_once
        cut(front, tab)
        wait_until(lambda: refused, what="the refusal")
        tab.wait("live", transport="eventsource")
        time.sleep(0.5)
    assert_complete(tab, numbers)
    assert "polling" not in states(tab)
    assert "the stream was refused" in [reason for _, reason in moments(tab, "waiting")]


def test_when_everything_is_a_502_it_goes_on_trying_less_and_less(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    tab = browser.open(site.other).start(A, url=f"{front.url}/sse").wait()
    with site.publishing(A, every=0.1) as numbers:
        front.answer = lambda target: answer(502)
        moment = cut(front, tab)
        time.sleep(2)
        assert tab.get("state") in ("waiting", "connecting")
        asked = front.since(moment, "/stream")
        assert 2 <= len(asked) <= 20
        front.answer = lambda target: None
        tab.wait("live", transport="eventsource", timeout=25)
    assert_complete(tab, numbers)


def test_the_wait_after_a_goodbye_is_what_the_goodbye_says(site: Site, front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url).start(A).wait()
    goodbyes = iter([100, 2000, 700])
    said: list[tuple[float, float]] = []

    def goodbye(target: str) -> bytes | None:
        retry = next(goodbyes, None) if "/stream" in target else None
        if retry is None:
            return None
        said.append((time.time(), retry / 1000))
        data = json.dumps({"reason": "lifetime", "retry": retry})
        return answer(200, "Content-Type: text/event-stream", body=f"event: sse.close\ndata: {data}\n\n")

    with site.publishing(A) as numbers:
        front.answer = goodbye
        moment = cut(front, tab)
        wait_until(lambda: len(said) == 3, what="three goodbyes")
        tab.wait("live")
    asked = front.since(moment, "/stream")
    assert len(asked) == 4
    for (moment, wait), came in zip(said, asked[1:], strict=True):
        assert wait - 0.01 <= came - moment <= wait + SLOPPY
    assert_complete(tab, numbers)
    assert [reason for _, reason in moments(tab, "waiting")][-3:] == ["lifetime"] * 3


def test_streams_that_reach_their_lifetime_and_find_the_worker_full_lose_nothing(
    tmp_path: Path, redis: RedisServer, browser: Browser
) -> None:
    settings = {"SSE_STREAM_LIFETIME": 5, "SSE_MAX_SUBSCRIBERS": 1, "SSE_RETRY": 3000}
    with Site(tmp_path / "small", redis, **settings) as site, site.publishing(A) as numbers:
        tab = browser.open(site.url).start(A).wait()
        settled = numbers.count
        wait_until(lambda: moments(tab, "waiting"), 8, what="the end of its life")
        assert moments(tab, "waiting")[0][1] == "lifetime"
        with client.Stream(site.url, {"channel": A}) as other:  # it takes the only place
            other.until("sse.open")
            wait_until(lambda: moments(tab, "waiting")[1:], 8, what="it comes again")
            assert moments(tab, "waiting")[1][1] == "busy"
        tab.run("dispatchEvent(new Event('online'))")
        tab.wait()
        numbers.stop()
        wait_until(lambda: tab.numbers(A)[-1:] == [numbers.count - 1], what="the last event")
        got = tab.numbers(A)
        assert got == list(range(got[0], numbers.count))
        assert got[0] <= settled
        assert tab.log("resets") == []
        assert set(states(tab)) == {"connecting", "live", "waiting"}


def test_a_poll_that_is_told_when_to_come_again_comes_then(front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url)

    def refuse(target: str) -> bytes | None:
        status = next((status for status in (429, 503) if f"wait{status}" in target), None)
        return answer(status, "Retry-After: 2") if status else None

    front.answer = refuse
    for status in (429, 503):
        tab.start(f"public/wait{status}", name=str(status), share=False)
        tab.wait("waiting", name=str(status))
        assert tab.get("reason", str(status)).startswith(str(status))
    front.answer = lambda target: None
    for status in (429, 503):
        tab.wait("live", name=str(status))
        first, second = front.since(0, f"/poll?channel=public%2Fwait{status}")
        assert 1.99 <= second - first <= 3 + SLOPPY


def test_what_is_final_closes_it_and_nothing_more_is_asked(site: Site, front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url)
    ways = [(status, when) for status in (400, 401, 403) for when in ("first", "later")]
    error = json.dumps({"error": {"code": "no", "message": "not for you", "hint": ""}})

    def refuse(target: str) -> bytes | None:
        for status, when in ways:
            if f"{status}{when}" in target and (when == "first" or later):
                return answer(status, "Content-Type: application/json", body=error)
        return None

    later = False
    front.answer = refuse
    for status, when in ways:
        name = f"{status}{when}"
        tab.start(f"public/{name}", name=name, share=when == "first")
        if when == "later":
            tab.wait(name=name)
    later = True
    front.cut()
    for status, when in ways:
        name = f"{status}{when}"
        tab.wait("closed", name=name)
        assert tab.get("reason", name) == f"{status} not for you"
        assert tab.get("transport", name) == ""
    closed = time.time()
    time.sleep(10)
    assert front.since(closed) == []
    for status, when in ways:
        assert states(tab, f"{status}{when}").count("closed") == 1
        assert states(tab, f"{status}{when}")[-1] == "closed"


PORTAL = "<!doctype html><title>Welcome to our network</title><form>" + "Sign in. " * 300
FOREIGN = {
    "403page": answer(403, "Content-Type: text/html", body=PORTAL),
    "401page": answer(401, "Content-Type: text/html", body=PORTAL),
    "400empty": answer(400, "Retry-After: 99999999999"),  # more than a timer takes
    "204empty": answer(204),
    "200login": answer(200, "Content-Type: text/html", body=PORTAL),
    "403json": answer(403, "Content-Type: application/json", body='{"message": "Forbidden"}'),
    "403code": answer(403, "Content-Type: application/json", body='{"error": {"code": 403, "message": "Forbidden"}}'),
    "200json": answer(200, "Content-Type: application/json", body='{"events": {}, "error": "none"}'),
}


@pytest.mark.parametrize("names", [list(FOREIGN)[:4], list(FOREIGN)[4:]], ids=["pages", "others"])
@pytest.mark.parametrize("when", ["first", "later"])
def test_an_answer_that_is_not_the_services_is_waited_out(
    site: Site, front: AnsweringProxy, browser: Browser, when: str, names: list[str]
) -> None:
    tab = browser.open(front.url)
    channels = {name: f"public/{when}/{name}" for name in names}

    def stand_between(target: str) -> bytes | None:
        return next((page for name, page in FOREIGN.items() if f"{name}&" in target), None)

    if when == "first":
        front.answer = stand_between
    for name, channel in channels.items():
        tab.start(channel, name=name, share=name == names[0])
    if when == "later":
        for name in channels:
            tab.wait(name=name)
        front.answer = stand_between
        front.cut()
    for name in channels:
        told = f"{name[:3]} not the service's answer"
        wait_until(lambda told=told, name=name: told in [log[2] for log in tab.log("states", name)], 20, what=told)  # type: ignore[misc]
    for channel in channels.values():
        publish_in_app(site.publisher, channel, 1)  # from when each has its place, none is missed
    assert len(front.requests) < 100
    front.answer = lambda target: None
    tab.run("dispatchEvent(new Event('online'))")
    for name, channel in channels.items():
        tab.wait(name=name)
        publish_in_app(site.publisher, channel, 2)
        expected = [1, 2] if when == "later" else [2]
        wait_until(lambda name=name: tab.numbers(channels[name], name)[-1:] == [2], 5, what="the last event")  # type: ignore[misc]
        assert tab.numbers(channel, name) == expected
        assert "closed" not in states(tab, name)
    assert tab.run("return errors") == []


class Timekeeper(AnsweringProxy):
    """A proxy that cuts each stream at the same age."""

    age = 1.0

    def passes(self, connection: Connection, data: bytes, upward: bool) -> bool:
        if upward and data.startswith(b"GET /sse/stream?"):
            asyncio.get_running_loop().call_later(self.age, abort, connection.near, True)
        return super().passes(connection, data, upward)


def test_streams_that_bring_events_are_not_left_however_often_they_are_cut(site: Site, browser: Browser) -> None:
    with Timekeeper(site.port) as front:
        busy = browser.open(front.url).start(A, name="busy", share=False)
        quiet = browser.open(f"http://localhost:{front.port}").start("public/quiet", name="quiet", share=False)
        with site.publishing(A) as numbers:
            quiet.wait("polling", "quiet", timeout=20, reason="the stream was cut again and again")
            wait_until(lambda: states(busy, "busy").count("live") > 4, 20, what="four cuts")
            assert set(states(busy, "busy")) <= {"connecting", "live", "waiting"}
            front.age = 60
            busy.wait("live", "busy")
        assert_complete(busy, numbers, "busy")


SET_CLOCK = "const clock = Date.now; set = (minutes) => { Date.now = () => clock() + minutes * 60000; }"


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_wall_clock_that_is_set_hides_no_silence_and_loses_nothing(
    site: Site, stalling: StallingProxy, browser: Browser, minutes: int
) -> None:
    stalling.openings = 1
    tab = browser.open(stalling.url)
    tab.run(SET_CLOCK)
    tab.start(A, share=False).wait()
    tab.run("set(arguments[0])", minutes)
    publish_in_app(site.publisher, A, 0)
    wait_until(lambda: tab.count() == 1, 12, what="the mute stream is replaced")
    assert tab.numbers(A) == [0]
    tab.wait()
    assert "polling" not in states(tab)


def test_an_answer_that_drips_is_given_up_after_ten_minutes(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    publish_in_app(site.publisher, "public/drip", ["x" * 3000])
    tab = browser.open(site.other)
    tab.run(SET_CLOCK)
    front.pace = 500
    tab.start("public/drip", url=f"{front.url}/sse", replay=1, share=False)
    wait_until(lambda: front.answered() > 1000, 10, what="a part of the answer's body")
    time.sleep(0.5)
    assert states(tab) == ["connecting"]
    tab.run("set(10)")
    wait_until(lambda: "the answer broke off" in [log[2] for log in tab.log("states")], 3, what="it is given up")
    front.pace = float("inf")
    tab.wait("live")
    assert tab.numbers("public/drip") == [["x" * 3000]]


def test_a_verdict_from_a_time_to_come_is_not_believed(site: Site, front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url)
    remember = (
        "const at = Date.now() + arguments[0], until = Date.now() + arguments[1], why = 'a wrong clock';"
        "localStorage.setItem('sse:' + location.host, JSON.stringify({at, until, why}));"
    )
    hour = 3600000
    for name, at, until in (("all", hour, hour + 60000), ("until", 0, hour)):
        tab.run(remember, at, until)
        tab.start(A, name=name, share=False).wait("live", name)
        assert "polling" not in states(tab, name)


@pytest.mark.parametrize("seconds", [10, pytest.param(25, marks=LONG), pytest.param(120, marks=LONG)])
def test_a_machine_that_slept_is_live_again_at_once_and_from_the_same_position(
    site: Site, browser: Browser, seconds: float
) -> None:
    own, shared, other = browser.tabs(3, site.url)
    own.start(A, share=False).wait()
    shared.start(A).wait()
    other.start(A).wait(tabs=2)
    with site.publishing(A, every=0.1) as numbers:
        time.sleep(0.5)
        browser.stop(*descendants(browser.pid))
        time.sleep(seconds)
        asleep = numbers.count
        browser.resume()
        woken = time.time()
        for tab in (own, shared, other):
            wait_until(lambda tab=tab: tab.numbers(A)[-1] >= asleep, 5, what="it has caught up")  # type: ignore[misc]
            tab.wait()
        time.sleep(2)  # should it yet be rebuilt, it is so without loss
    for tab in (own, shared, other):
        assert_complete(tab, numbers)
        caught_up = next(at / 1000 for at, _, number, _ in tab.log() if number >= asleep)
        assert caught_up - woken < 2
        assert tab.get("state") == "live"


def test_the_network_that_is_back_is_used_at_once(site: Site, front: AnsweringProxy, browser: Browser) -> None:
    tab = browser.open(front.url).start(A, name="live").wait(name="live")
    front.answer = lambda target: answer(503, "Retry-After: 30") if "/sse/" in target else None
    with site.publishing(A) as numbers:
        cut(front, tab, "live")
        wait_until(lambda: front.since(0, "/poll")[1:], what="a poll that is told to wait")
        tab.start(A, name="new").wait("waiting", name="new")
        tab.wait("waiting", name="live")
        front.answer = lambda target: None
        time.sleep(1)
        assert (tab.get("state", "live"), tab.get("state", "new")) == ("waiting", "waiting")
        before = time.time()
        tab.run("dispatchEvent(new Event('online'))")
        for name in ("live", "new"):
            tab.wait(name=name)
            assert moments(tab, "live", name)[-1][0] - before < 1
    assert_complete(tab, numbers, "live")


def test_streams_that_fall_silent_behind_their_opening_twice_give_way_to_polls(
    site: Site, stalling: StallingProxy, browser: Browser
) -> None:
    with StallingProxy(site.port) as brief:
        stalling.openings, brief.openings = 2, 1
        once = browser.open(brief.url).start(A).wait()
        twice = browser.open(stalling.url).start(A).wait()
        live = time.time()
        with site.publishing(A, every=0.1) as numbers:
            twice.wait("polling", timeout=20, transport="poll", reason="the stream fell silent")
            assert time.time() - live > 2 * 4.5  # one and a half heartbeats each
            assert_tail(twice)
        for tab in (once, twice):
            assert_complete(tab, numbers)
        assert [parameters(target).get("heartbeat") for _, target in stalling.requests if "/stream" in target] == [
            None,
            "3",
        ]
        assert len(brief.since(0, "/stream")) == 2
        assert states(once) == ["connecting", "live"] * 2


def test_streams_that_have_come_through_are_not_given_up_because_one_is_mute(
    site: Site, stalling: StallingProxy, browser: Browser
) -> None:
    with StallingProxy(site.port) as other:
        once = browser.open(stalling.url).start(A).wait()
        twice = browser.open(other.url).start(A).wait()
        stalling.instead, other.instead = [b""], [b"", b""]
        with site.publishing(A, every=0.1) as numbers:
            stalling.cut()
            other.cut()
            for tab in (once, twice):
                wait_until(lambda tab=tab: "the stream was mute" in [log[2] for log in tab.log("states")], 10)  # type: ignore[misc]
            once.wait("live")
            twice.wait("polling", reason="the stream was mute")
        for tab in (once, twice):
            assert_complete(tab, numbers)
        assert "polling" not in states(once)
        assert states(twice).count("waiting") == 1  # after the cut; the next stream is opened at once


def test_a_goodbye_on_a_connection_that_stays_open_is_followed(
    site: Site, stalling: StallingProxy, browser: Browser
) -> None:
    data = json.dumps({"reason": "busy", "retry": 300})
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    stalling.instead.append(f"{head}event: sse.close\ndata: {data}\n\n".encode())
    tab = browser.open(stalling.url).start(A).wait()
    first, second = stalling.since(0, "/stream")
    assert 0.29 <= second - first <= 0.3 + 2 * SLOPPY
    assert [reason for _, reason in moments(tab, "waiting")] == ["busy"]
    with site.publishing(A) as numbers:
        assert_tail(tab)
    assert_complete(tab, numbers)


def parameters(target: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(target).query))


def timeouts(front: AnsweringProxy, moment: float) -> list[str]:
    """Return the timeout, in seconds, of each poll since then."""
    return [parameters(target)["timeout"] for at, target in front.requests if at >= moment and "/poll" in target]


def test_polls_that_a_cut_has_shortened_get_long_again_ten_minutes_later(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    tab = browser.open(front.url)
    know = (
        "const key = 'sse:' + location.host, known = JSON.parse(localStorage.getItem(key)) || {};"
        "localStorage.setItem(key, JSON.stringify(Object.assign(known, {at: Date.now()}, arguments[0])));"
        "return [known.hold, (known.held - Date.now()) / 60000]"
    )
    tab.run(know, {"until": (time.time() + 60) * 1000, "why": "a test"})
    tab.start(A, share=False).wait("polling")
    began = time.time() - 0.5
    time.sleep(3.1)
    front.cut()
    time.sleep(0.1)
    front.cut()  # a browser sends what was cut once more by itself
    wait_until(lambda: timeouts(front, began)[-1:] == ["3"], 8, what="a shorter poll")
    assert set(timeouts(front, began)[:-1]) <= {"1", "25"}
    hold, minutes = tab.run(know, {})
    assert hold == 3
    assert 9 < minutes <= 10
    shortened = time.time()
    tab.run(know, {"held": (time.time() - 1) * 1000})
    publish_in_app(site.publisher, A, 0)
    wait_until(lambda: timeouts(front, shortened)[-1:] == ["25"], 5, what="a long poll")
    assert tab.numbers(A) == [0]


@pytest.mark.parametrize(("killed", "within"), [(False, 10), pytest.param(True, 25, marks=LONG)])
def test_of_tabs_that_cannot_share_two_stream_and_a_third_takes_the_place_of_one_that_leaves(
    site: Site, front: AnsweringProxy, browser: Browser, killed: bool, within: float
) -> None:
    first, second, third = tabs = [browser.open(front.url, "/pages/crowd.html") for _ in range(3)]
    for tab in tabs[:2]:
        tab.start(A).wait(transport="eventsource", shared=False, tabs=1)
    third.start(A).wait("polling", transport="poll", reason="more than two tabs", shared=False, tabs=1)
    with site.publishing(A, every=0.1) as numbers:  # the events of a pause fit into one answer
        crowded = time.time()
        wait_until(lambda: front.since(crowded, "/poll")[1:], 8, what="two polls")
        assert set(timeouts(front, crowded)) == {"1"}
        before, after = front.since(crowded, "/poll")[:2]
        assert 1.9 < after - before < 4.5
        assert front.since(crowded, "/stream") == []
        assert (first.get("state"), second.get("state")) == ("live", "live")
        if killed:
            browser.kill(first)
        else:
            first.go("about:blank")
        third.wait(transport="eventsource", timeout=within)
        assert len(front.since(crowded, "/stream")) == 1
        time.sleep(0.3)
    for tab in (second, third):
        assert_complete(tab, numbers)
        assert "waiting" not in states(tab)


def test_a_feed_that_cannot_stream_fetches_without_a_pause_what_one_answer_has_no_room_for(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    tabs = [browser.open(front.url, "/pages/crowd.html").start(A).wait(transport="eventsource") for _ in range(2)]
    third = browser.open(front.url, "/pages/crowd.html").start(A).wait("polling")
    published = time.time()
    for number in range(20):
        publish_in_app(site.publisher, A, [number, "x" * 3000])
    for tab in [third, *tabs]:
        wait_until(lambda tab=tab: tab.count() == 20, 15, what="all events")  # type: ignore[misc]
        assert [number for number, _ in tab.numbers(A)] == list(range(20))
    assert min(after - before for before, after in itertools.pairwise(front.since(published, "/poll"))) < 1.9


def test_a_follower_that_is_closed_amid_several_events_asks_for_nothing_more(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    front.answer = lambda target: answer(502) if "/stream" in target else None
    leader, follower = browser.tabs(2, front.url)
    leader.start(A).wait("polling")
    follower.start(A).wait("polling", tabs=2)
    follower.run("feeds.feed.on('sse.event', () => feeds.feed.close())")
    before = time.time()
    for number in range(5):
        publish_in_app(site.publisher, A, number)
    leader.wait("polling", tabs=1)
    wait_until(lambda: leader.numbers(A) == list(range(5)), 5, what="all events")
    time.sleep(1)
    assert follower.numbers(A) == [0]
    assert "1" not in timeouts(front, before)  # as a tab asks that has missed something
    for tab in (leader, follower):
        assert tab.run("return errors") == []


def sizes(front: AnsweringProxy) -> list[int]:
    """Return the size limits of all polls."""
    return [int(parameters(target)["max_bytes"]) for _, target in front.requests if "/poll" in target]


def test_the_time_that_a_token_takes_makes_answers_no_smaller(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    front.answer = lambda target: answer(502) if "/stream" in target else None
    for number in range(20):
        publish_in_app(site.publisher, "public/token", [number, "x" * 300])
    tab = browser.open(front.url)
    tab.run(
        "start('feed', '/sse', {channels: ['public/token'], replay: 20, share: false,"
        " token: use => { setTimeout(use, 4000, 'ann'); }})"
    )
    wait_until(lambda: tab.count() == 20, 15, what="all events")
    assert sizes(front)[0] == 4096
    assert sizes(front)[1] >= 4096


def test_answers_that_were_cut_at_the_same_length_grow_again_up_to_it_and_beyond_it_on_another_network(
    site: Site, front: AnsweringProxy, browser: Browser
) -> None:
    slow: list[int] = []  # the sizes that were asked for before

    def shape(target: str) -> bytes | None:
        if "/stream" in target:
            return answer(502)
        if "/poll" in target:
            *before, newest = sizes(front)
            front.pace = float("inf")
            if not slow and sum(size > front.room for size in before) > 1 and newest < front.room:
                front.pace = 1500
                slow.extend(before)
        return None

    def publish_more(count: int) -> None:
        for _ in range(count):
            publish_in_app(site.publisher, "public/cut", "x" * 300)

    publish_more(200)
    front.room, front.answer = 6000, shape
    tab = browser.open(site.other).start("public/cut", url=f"{front.url}/sse", replay=200, share=False)
    wait_until(lambda: tab.count() == 200, 40, what="all events")
    slowed = sizes(front)[len(slow) :]
    assert min(slowed) < 4096
    assert max(slowed[slowed.index(min(slowed)) :]) >= 4096
    before = len(sizes(front))
    front.room = float("inf")
    tab.run("dispatchEvent(new Event('online'))")
    wait_until(lambda: len(sizes(front)) > before, 10, what="a poll by the new network")
    publish_more(200)
    wait_until(lambda: tab.count() == 400, 20, what="all events")
    assert max(sizes(front)[before:]) > 6000
