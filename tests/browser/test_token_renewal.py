"""Tokens that expire while a page listens, in real browsers.

The page gets a new token and loses nothing, or says that it cannot go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sse import SSE
from tests import client
from tests.browser.engines import Firefox
from tests.browser.tabbed_browser import Browser, Site, Tab, answer
from tests.proxies import AnsweringProxy
from tests.publishing import publish_in_app
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET

MINE = "user/ann"


class TicketSite(Site):
    """A site with a login, whose tickets let streams live for so many seconds."""

    def __init__(self, directory: Path, redis: RedisServer, lifetime: int) -> None:
        super().__init__(directory, redis, SSE_SECRET=SECRET, SSE_PUBLIC="", SSE_RETRY=200, TICKET_LIFETIME=lifetime)
        gunicorn = self.gunicorn
        self.gunicorn = Gunicorn(directory, "tests.browser.apps.tickets:application", gunicorn.env, bind=gunicorn.bind)

    def noted(self, what: str) -> list[Any]:
        return list(client.request(self.url, "GET", "/noted").json()[what])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(params=[3])
def site(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Iterator[TicketSite]:
    with TicketSite(tmp_path, redis, request.param) as site:
        yield site


@pytest.fixture
def front(site: TicketSite) -> Iterator[AnsweringProxy]:
    with AnsweringProxy(site.port) as front:
        yield front


class FirefoxTab(Tab):
    """The one tab of a Firefox."""

    def __init__(self, firefox: Firefox) -> None:
        self._firefox = firefox
        wait_until(lambda: self.run("return typeof start") == "function", 20, what="the page in Firefox")

    def run(self, script: str, *arguments: Any) -> Any:
        return self._firefox.ask("WebDriver:ExecuteScript", script=script, args=arguments)["value"]


@pytest.fixture
def browser(tabbed: Browser) -> Iterator[Browser]:
    yield tabbed
    tabbed.clear()


def assert_complete(tab: Tab, count: int, name: str = "feed") -> None:
    wait_until(lambda: tab.numbers(MINE, name)[-1:] == [count - 1], 8, what="the last event")
    assert tab.numbers(MINE, name) == list(range(count)), tab.log("states", name)
    assert tab.log("resets", name) == []
    assert tab.run("return errors") == []


def wait_for(tab: Tab, state: str, reason: str, name: str = "feed") -> None:
    """Wait until the tab has been in this state, however shortly."""
    told = [state, reason]
    wait_until(lambda: told in [log[1:3] for log in tab.log("states", name)], 15, what=f"{told}")


@pytest.mark.parametrize("share", [True, False])
def test_a_page_outlives_its_tickets_and_loses_nothing(
    site: TicketSite, front: AnsweringProxy, browser: Browser, share: bool
) -> None:
    tabs = browser.tabs(2, front.url)
    for number, tab in enumerate(tabs):
        tab.start(MINE, tokenUrl=f"/token?{number}", share=share).wait()
    with site.publishing(MINE, every=0.05) as numbers:
        time.sleep(7)
        if share:  # of those who share, only the tab that leads asks again
            assert len(front.since(0, "/token?1")) == 1
            tabs.pop(0).close()
            time.sleep(3)
    for tab in tabs:
        assert_complete(tab, numbers.count)
        assert "expired" in {reason for _, _, reason, *_ in tab.log("states")}
    assert len(front.since(0, "/token?0")) >= 3
    assert len(front.since(0, "/token?1")) >= (2 if share else 3)
    assert site.noted("bare") == []
    assert client.poll(site.url, [MINE], timeout=0).status == 401


def test_streams_and_polls_of_chromium_and_firefox_go_on_with_new_tickets(
    tmp_path: Path, site: TicketSite, front: AnsweringProxy, browser: Browser
) -> None:
    front.answer = lambda target: answer(502) if "/stream" in target else None
    with Firefox(tmp_path, site.other + "/pages/tabs.html") as firefox:
        tabs = [browser.open(site.other), FirefoxTab(firefox)]
        for tab in tabs:
            tab.start(MINE, name="stream", tokenUrl="/token").wait("live", "stream")
            tab.start(MINE, name="poll", url=f"{front.url}/sse", tokenUrl="/token").wait("polling", "poll")
        with site.publishing(MINE, every=0.05) as numbers:
            time.sleep(4.5)
        for tab in tabs:
            assert_complete(tab, numbers.count, "stream")
            assert_complete(tab, numbers.count, "poll")
            assert tab.get("state", "poll") == "polling"
    assert len(site.noted("given")) >= 8  # two for each feed
    assert site.noted("bare") == []


def test_a_function_gives_tokens_as_an_address_does(site: TicketSite, browser: Browser) -> None:
    tab = browser.open(site.url)
    tab.run("""
        start("feed", "/sse", {channels: ["user/ann"], token: function (use) {
            fetch("/token").then((answer) => answer.json()).then((told) => use(told.token));
        }});
        warned = 0;
        feeds.feed.on("sse.auth", function (told) { warned += told.expires >= 0; });
    """)
    tab.wait()
    with site.publishing(MINE, every=0.05) as numbers:
        time.sleep(4.5)
    assert_complete(tab, numbers.count)
    assert len(site.noted("given")) >= 2
    assert tab.run("return warned") >= 1
    assert site.noted("bare") == []


def test_who_gets_no_ticket_any_more_is_told_and_listens_to_nothing(site: TicketSite, browser: Browser) -> None:
    tab = browser.open(site.url).start(MINE, tokenUrl="/token").wait()
    tab.run("document.cookie = 'out=1; path=/'")
    try:
        tab.wait("closed")
        assert tab.get("reason") == "no token: 401"
        before = tab.count()
        publish_in_app(site.publisher, MINE, "for those who may")
        time.sleep(1)
        assert tab.count() == before
        other = browser.open(site.url).start(MINE, tokenUrl="/token").wait("closed")
        assert other.get("reason") == "no token: 401"
        assert site.noted("bare") == []
    finally:
        tab.run("document.cookie = 'out=; path=/; max-age=0'")


def test_a_page_that_is_not_the_apps_word_is_no_token_goes_nowhere_and_is_waited_out(
    site: TicketSite, front: AnsweringProxy, browser: Browser
) -> None:
    html = "Content-Type: text/html"
    pages = {
        "200": answer(200, html, body="<p>Who are you?"),
        "0": answer(302, f"Location: {site.other}/pages/tabs.html"),  # as a browser reports a network error
        "204": answer(204),
        "401": answer(401, html, body="<p>Who are you?"),
        "403": answer(403, html, body="<p>Not from here"),
    }
    front.answer = lambda target: pages.get(target.removeprefix("/token?"))
    tab = browser.open(front.url)
    for name in pages:
        tab.start(MINE, name=name, tokenUrl=f"/token?{name}")
    for name in pages:
        wait_for(tab, "waiting", f"no token: {name}", name)
    assert front.since(0, "/sse/poll") + front.since(0, "/sse/stream") == []
    front.answer = lambda target: None
    for name in pages:
        tab.wait("live", name, timeout=25)
    assert site.noted("bare") == []


def test_while_no_token_can_be_had_it_is_asked_for_less_and_less_often(
    site: TicketSite, front: AnsweringProxy, browser: Browser
) -> None:
    [begin] = publish_in_app(site.publisher, MINE, "before")
    tab = browser.open(front.url).start(MINE, name="address", tokenUrl="/token").wait(name="address")
    start = """
        let asked = 0;
        start("function", "/sse", {channels: ["user/ann"], lastEventId: arguments[0], token: function (use) {
            asked += 1;
            if (asked > 1) fetch("/token").then((given) => given.json()).then((told) => use(told.token));
        }});
    """
    tab.run(start, begin)
    with site.publishing(MINE, every=0.05) as numbers:
        away = time.time()
        front.answer = lambda target: answer(503) if target == "/token" else None
        wait_for(tab, "waiting", "no token: 503", "address")
        time.sleep(3)
        assert 2 <= len(front.since(away, "/token")) <= 20
        front.answer = lambda target: None
        wait_for(tab, "waiting", "no token: 0", "function")  # it never answered
        for name in ("address", "function"):
            tab.wait("live", name)
    for name in ("address", "function"):
        assert_complete(tab, numbers.count, name)
    assert site.noted("bare") == []


def test_a_token_that_comes_after_the_feed_was_closed_is_not_used(
    site: TicketSite, front: AnsweringProxy, browser: Browser
) -> None:
    tab = browser.open(front.url)
    tab.run("""
        start("feed", "/sse", {channels: ["user/ann"], token: function (use) { late = use; }});
        late = null;
    """)
    wait_until(lambda: tab.run("return late !== null"), 5, what="a token is asked for")
    tab.run("feeds.feed.close(); late('late');")
    time.sleep(0.5)
    assert tab.get("reason") == "closed by the page"
    assert front.since(0, "/sse/poll") + front.since(0, "/sse/stream") == []


@pytest.mark.parametrize("site", [71], indirect=True)
def test_a_page_that_is_warned_keeps_its_stream_until_it_has_a_new_token(site: TicketSite, browser: Browser) -> None:
    tab = browser.open(site.url)
    tab.run("""
        let clock = Date.now, ahead = 0;
        Date.now = () => clock() + ahead;
        later = (milliseconds) => { ahead += milliseconds; };
        Math.random = () => 0.1;
        asked = [];
        answer = () => fetch("/token").then((answer) => answer.json()).then((told) => asked.pop()(told.token));
        start("feed", "/sse", {channels: ["user/ann"], share: false, token: function (use) {
            asked.push(use);
            if (!events.feed.length) answer();
        }});
    """)
    tab.wait()
    with site.publishing(MINE, every=0.1) as numbers:
        for _ in range(2):  # so that its token is not of just now, while it hears of the stream all the time
            before = tab.count()
            tab.run("later(16000)")
            wait_until(lambda: tab.count() > before, 5, what="an event")  # noqa: B023
        wait_until(lambda: tab.run("return asked.length"), 10, what="a token is asked for")
        before = tab.count()
        wait_until(lambda: tab.count() > before + 5, 5, what="events by the old one")
        assert tab.get("state") == "live"
        tab.run("answer()")
        wait_for(tab, "connecting", "a new token")
        tab.wait("live")
    assert_complete(tab, numbers.count)
    states = [state for _, state, *_ in tab.log("states")]
    assert states[states.index("live") :] == ["live", "connecting", "live"]


def test_one_who_is_revoked_and_gets_no_ticket_any_more_is_shut_out_on_every_tab(
    site: TicketSite, browser: Browser
) -> None:
    tabs = [tab.start(MINE, tokenUrl="/token").wait() for tab in browser.tabs(2, site.url)]
    tabs[0].run("document.cookie = 'out=1; path=/'")
    try:
        with site.publisher.app_context():
            SSE().revoke(sub="ann")
        for tab in tabs:
            tab.wait("closed", timeout=40)
            assert tab.get("reason") == "no token: 401"
    finally:
        tabs[0].run("document.cookie = 'out=; path=/; max-age=0'")


@pytest.mark.parametrize("site", [3, 60], indirect=True)
def test_one_who_is_revoked_goes_on_where_the_app_gives_a_ticket_again(site: TicketSite, browser: Browser) -> None:
    tab = browser.open(site.url).start(MINE, tokenUrl="/token").wait()
    with site.publishing(MINE, every=0.1) as numbers:
        with site.publisher.app_context():
            SSE().revoke(sub="ann")
        wait_for(tab, "waiting", "expired")
        assert client.poll(site.url, [MINE], timeout=0).status == 401
        assert tab.wait("live", timeout=40).numbers(MINE)
    assert_complete(tab, numbers.count)


@pytest.mark.long
@pytest.mark.parametrize("site", [95], indirect=True)
def test_a_page_that_is_warned_in_time_has_a_new_ticket_before_the_old_one_ends(
    site: TicketSite, browser: Browser
) -> None:
    tab = browser.open(site.url).start(MINE, tokenUrl="/token").wait()
    with site.publishing(MINE, every=0.1) as numbers:
        wait_until(lambda: len(site.noted("given")) > 1, 60, 0.5)
        time.sleep(2)
    assert_complete(tab, numbers.count)
    assert "expired" not in {reason for _, _, reason, *_ in tab.log("states")}
