"""Tokens that end while a page listens, in a real Chromium: it gets another, and loses nothing; or it says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import client
from tests.browser.tabs import Browser, House, Tab
from tests.live.conftest import pytest_runtest_makereport
from tests.servers import Gunicorn, RedisServer, wait_until
from tests.tokens import SECRET

__all__ = ["pytest_runtest_makereport"]
MINE = "user/ann"


class TicketHouse(House):
    """One with a login, whose tickets let streams live for so many seconds."""

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
def house(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Iterator[TicketHouse]:
    with TicketHouse(tmp_path, redis, request.param) as house:
        yield house


@pytest.fixture
def browser(tabbed: Browser) -> Iterator[Browser]:
    yield tabbed
    tabbed.clear()


def assert_complete(tab: Tab, count: int, name: str = "feed") -> None:
    wait_until(lambda: tab.numbers(MINE, name)[-1:] == [count - 1], 8, 0.05, what="the last event")
    assert tab.numbers(MINE, name) == list(range(count)), tab.log("states", name)
    assert tab.log("resets", name) == []
    assert tab.run("return errors") == []


@pytest.mark.parametrize("share", [True, False])
def test_a_page_outlives_its_tickets_and_loses_nothing(house: TicketHouse, browser: Browser, share: bool) -> None:
    tabs = browser.tabs(2, house.url)
    for tab in tabs:
        tab.start(MINE, tokenUrl="/token", share=share).wait()
    with house.publishing(MINE, every=0.05) as numbers:
        time.sleep(11)
    for tab in tabs:
        assert_complete(tab, numbers.count)
    assert len(house.noted("given")) >= 4
    assert house.noted("bare") == []
    reasons = {reason for tab in tabs for _, _, reason, *_ in tab.log("states")}
    assert "expired" in reasons
    assert client.poll(house.url, [MINE], timeout=0).status == 401


def test_a_function_gives_tokens_as_an_address_does(house: TicketHouse, browser: Browser) -> None:
    tab = browser.open(house.url)
    tab.run("""
        start("feed", "/sse", {channels: ["user/ann"], token: function (use) {
            fetch("/token").then((answer) => answer.json()).then((told) => use(told.token));
        }});
        warned = 0;
        feeds.feed.on("sse.auth", function (told) { warned += told.expires >= 0; });
    """)
    tab.wait()
    with house.publishing(MINE, every=0.05) as numbers:
        time.sleep(6)
    assert_complete(tab, numbers.count)
    assert len(house.noted("given")) >= 2
    assert tab.run("return warned") >= 1
    assert house.noted("bare") == []


def test_who_gets_no_ticket_any_more_is_told_and_listens_to_nothing(house: TicketHouse, browser: Browser) -> None:
    tab = browser.open(house.url).start(MINE, tokenUrl="/token").wait()
    tab.run("document.cookie = 'out=1; path=/'")
    try:
        tab.wait("closed")
        assert tab.get("reason") == "no token: 401"
        before = tab.count()
        house.publish(MINE, "for those who may")
        time.sleep(1)
        assert tab.count() == before
        other = browser.open(house.url).start(MINE, tokenUrl="/token").wait("closed")
        assert other.get("reason") == "no token: 401"
        assert house.noted("bare") == []
    finally:
        tab.run("document.cookie = 'out=; path=/; max-age=0'")


def test_one_who_is_revoked_is_shut_out_on_every_tab(house: TicketHouse, browser: Browser) -> None:
    tabs = [tab.start(MINE, tokenUrl="/token").wait() for tab in browser.tabs(2, house.url)]
    with house._publisher.app_context():
        house.sse.revoke(sub="ann")
    for tab in tabs:
        tab.wait("closed", timeout=12)
        assert "revoked" in tab.get("reason")


@pytest.mark.long
@pytest.mark.parametrize("house", [95], indirect=True)
def test_a_page_that_is_warned_in_time_has_a_new_ticket_before_the_old_one_ends(
    house: TicketHouse, browser: Browser
) -> None:
    tab = browser.open(house.url).start(MINE, tokenUrl="/token").wait()
    with house.publishing(MINE, every=0.1) as numbers:
        wait_until(lambda: len(house.noted("given")) > 1, 60, 0.5)
        time.sleep(2)
    assert_complete(tab, numbers.count)
    assert "expired" not in {reason for _, _, reason, *_ in tab.log("states")}
