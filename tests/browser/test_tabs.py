"""Tabs in Chromium share one connection. No tab loses an event, whichever tab leads and however that tab ends."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.browser.tabbed_browser import Browser, Site, Tab, largest_gap
from tests.proxies import AnsweringProxy
from tests.publishing import Publisher, publish_in_app
from tests.servers import RedisServer, wait_until

A, B, C = "public/a", "public/b", "public/c"
LONG = pytest.mark.long
FAILOVER = 3  # seconds without an event when a leader is lost


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("tabs")
    with RedisServer(directory) as redis, Site(directory, redis) as site:
        yield site


@pytest.fixture
def browser(tabbed: Browser, site: Site) -> Iterator[Browser]:
    yield tabbed
    tabbed.clear()

    def is_alone() -> bool:
        for channel in (A, B, C):
            publish_in_app(site.publisher, channel, "over")  # a worker sees an end when it writes, and then again
        return site.subscribers() == 0

    wait_until(is_alone, interval=0.1, what="all connections of the browser have ended")


def sharing(tabs: list[Tab], *channels: str, **options: object) -> list[Tab]:
    """Wait until all tabs are live on one connection, and return them."""
    for tab in tabs:
        tab.start(*channels, **options)
    for tab in tabs:
        tab.wait(shared=True, tabs=len(tabs))
    return tabs


def leader_of(tabs: list[Tab]) -> Tab:
    """Return the tab that leads, as soon as there is one."""
    [leader] = wait_until(lambda: [tab for tab in tabs if tab.leads()], what="a leader")
    return leader


def newest(tab: Tab) -> float:
    """Return the time at which the tab's newest event came."""
    return float(tab.log()[-1][0]) / 1000


def without(tabs: list[Tab], *gone: Tab) -> list[Tab]:
    return [tab for tab in tabs if tab not in gone]


def assert_complete(tab: Tab, numbers: Publisher, since: int, channel: str = A, timeout: float = 5) -> None:
    """Check that the tab has each event once and in order, from `since` or earlier to the last, without error."""
    wait_until(lambda: tab.numbers(channel)[-1:] == [numbers.count - 1], timeout, what="the last event")
    got = tab.numbers(channel)
    assert got == list(range(got[0], numbers.count)), f"{got}\n{tab.log('states')}"
    assert got[0] <= since
    assert tab.log("resets") == []
    assert tab.run("return errors") == []


def assert_one_connection(site: Site) -> None:
    wait_until(lambda: site.subscribers() == 1, what="one connection")
    assert {site.subscribers() for _ in range(10)} == {1}


@pytest.mark.parametrize("origins", [1, pytest.param(2, marks=LONG)])
def test_ten_tabs_have_one_connection_and_the_host_has_room_for_more(
    site: Site, browser: Browser, origins: int
) -> None:
    tabs = sharing(browser.tabs(10, site.url if origins == 1 else site.other), A, url=f"{site.url}/sse")
    assert_one_connection(site)
    with site.publishing(A) as numbers:
        time.sleep(1)
        assert_one_connection(site)
        for tab in tabs:
            took = tab.run(
                "const began = performance.now();"
                "return fetch(arguments[0], {mode: 'no-cors', cache: 'no-store'})"
                ".then(() => performance.now() - began)",
                f"{site.url}/healthz",
            )
            assert took < 1000
    for tab in tabs:
        assert_complete(tab, numbers, 1)
        assert tab.get("transport") == "eventsource"
    assert len([tab for tab in tabs if tab.leads()]) == 1


def close_feed(browser: Browser, tab: Tab) -> None:
    tab.run("feeds.feed.close()")


def navigate(browser: Browser, tab: Tab) -> None:
    tab.go("about:blank")


def close_tab(browser: Browser, tab: Tab) -> None:
    tab.close()


def kill(browser: Browser, tab: Tab) -> None:
    browser.kill(tab)


WAYS = {"kill": kill, "close the tab": close_tab, "navigate": navigate, "close the feed": close_feed}


@pytest.mark.parametrize("ways", [["navigate", "close the feed", "close the tab", "kill", "kill"]], ids=", ".join)
def test_whichever_way_the_leader_is_lost_the_others_go_on_at_once_from_the_same_position(
    site: Site, browser: Browser, ways: list[str]
) -> None:
    tabs = sharing(browser.tabs(len(ways) + 2, site.url), A)
    lost: list[float] = []
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        for way in ways:
            leader = leader_of(tabs)
            tabs = without(tabs, leader)
            lost.append(time.time())
            WAYS[way](browser, leader)
            for tab in tabs:
                tab.wait(tabs=len(tabs))
            time.sleep(0.2)
    for tab in tabs:
        assert_complete(tab, numbers, 1)
        assert largest_gap(tab.log(), lost[0]) < FAILOVER
    assert_one_connection(site)


def test_leaders_that_are_killed_in_quick_succession_leave_no_gap(site: Site, browser: Browser) -> None:
    tabs = sharing(browser.tabs(5, site.url), A)
    pids = {tab: tab.renderer(browser.pid) for tab in tabs}
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        began = time.time()
        for _ in range(3):
            leader = leader_of(tabs)
            tabs = without(tabs, leader)
            os.kill(pids[leader], signal.SIGKILL)
            browser.look_away()
        for tab in tabs:
            tab.wait(tabs=2)
        time.sleep(1)
    for tab in tabs:
        assert_complete(tab, numbers, 1)
        assert largest_gap(tab.log(), began) < FAILOVER
    assert_one_connection(site)


def test_each_tab_has_its_own_of_the_channels_that_one_connection_carries(site: Site, browser: Browser) -> None:
    wanted = [[A], [B], [A, C], [C]]
    tabs = browser.tabs(4, site.url)
    with site.publishing(A, B, C) as numbers:
        for tab, channels in zip(tabs, wanted, strict=True):
            tab.start(*channels)
        for tab in tabs:
            tab.wait(tabs=4)
        settled = numbers.count
        assert_one_connection(site)
        time.sleep(0.5)
        leader = leader_of(tabs)
        leader.close()
        for tab in without(tabs, leader):
            tab.wait(tabs=3)
        time.sleep(0.5)
    for tab, channels in zip(tabs, wanted, strict=True):
        if tab is not leader:
            for channel in channels:
                assert_complete(tab, numbers, settled, channel)
            assert {channel for _, channel, *_ in tab.log()} == set(channels)


def test_a_tab_that_joins_gets_its_replay_and_one_that_leaves_is_no_longer_counted(
    site: Site, browser: Browser
) -> None:
    tabs = sharing(browser.tabs(2, site.url), A)
    for number in range(10):
        publish_in_app(site.publisher, A, number)
    newcomer = browser.open(site.url).start(A, replay=4).wait(shared=True, tabs=3)
    publish_in_app(site.publisher, A, 10)
    wait_until(lambda: newcomer.numbers(A)[-1:] == [10], what="the event after the replay")
    assert newcomer.numbers(A) == [6, 7, 8, 9, 10]
    for tab in tabs:
        assert tab.numbers(A) == list(range(11))
    assert_one_connection(site)

    newcomer.run("feeds.feed.close()")
    for tab in tabs:
        tab.wait(tabs=2)
    tabs[1].close()
    tabs[0].wait(tabs=1, shared=True)
    publish_in_app(site.publisher, A, 11)
    wait_until(lambda: tabs[0].numbers(A)[-1] == 11, what="an event to the tab that stayed")
    assert newcomer.numbers(A) == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("refused_leads", [False, True])
def test_what_is_refused_to_one_tab_disturbs_no_other(site: Site, browser: Browser, refused_leads: bool) -> None:
    private = "user/ann/mail"
    with AnsweringProxy(site.port) as front, site.publishing(A, private) as numbers:
        tabs = browser.tabs(3, front.url)
        tabs[0].run("document.cookie = 'user=ann; path=/'")
        order = [2, 0, 1] if refused_leads else [0, 1, 2]
        for index in order:
            tabs[index].start(A, *([private] if index == 2 else [])).wait()
        for tab in tabs:
            tab.wait(tabs=3)
        assert leader_of(tabs) is tabs[order[0]]
        settled = numbers.count

        stranger = browser.open(front.url).start(A, "user/bob/mail")
        stranger.wait("closed")
        assert stranger.get("reason").startswith("403")
        assert [state for _, state, *_ in stranger.log("states")] == ["connecting", "closed"]
        assert [tab.get("tabs") for tab in tabs] == [3, 3, 3]

        tabs[0].run("document.cookie = 'user=; path=/; max-age=0'")  # from now on, private is refused
        front.cut()
        tabs[2].wait("closed")
        assert tabs[2].get("reason").startswith("403")
        for tab in tabs[:2]:
            tab.wait(tabs=2)
        time.sleep(0.5)
        numbers.stop()
        for tab in tabs[:2]:
            assert_complete(tab, numbers, settled)
            assert "closed" not in [state for _, state, *_ in tab.log("states")]
        assert_one_connection(site)


def test_two_users_share_nothing(site: Site, browser: Browser) -> None:
    users = ["ann", "bob"]
    private = {user: f"user/{user}/mail" for user in users}
    tabs = {user: browser.open(site.url).start(A, private[user], token=user) for user in users}
    for tab in tabs.values():
        tab.wait(shared=True, tabs=1)
    assert site.subscribers() == 2
    with site.publishing(A, *private.values()) as numbers:
        time.sleep(1)
    for user, tab in tabs.items():
        assert_complete(tab, numbers, 0)
        assert_complete(tab, numbers, 0, private[user])
        assert {channel for _, channel, *_ in tab.log()} == {A, private[user]}
        assert tab.get("tabs") == 1
        assert tab.leads()


def test_tabs_with_credentials_do_not_share_with_tabs_without(site: Site, browser: Browser) -> None:
    known, unknown = browser.tabs(2, site.other)
    known.start(A, url=f"{site.url}/sse", credentials=True).wait(shared=True, tabs=1)
    unknown.start(A, url=f"{site.url}/sse").wait(shared=True, tabs=1)
    time.sleep(0.5)
    assert (known.get("tabs"), unknown.get("tabs"), site.subscribers()) == (1, 1, 2)


def test_feeds_of_one_page_share_too_unless_one_will_not(site: Site, browser: Browser) -> None:
    tab = browser.open(site.url)
    tab.start(A, name="one").start(A, B, name="two")
    for name in ("one", "two"):
        tab.wait(name=name, shared=True, tabs=2)
    assert_one_connection(site)
    tab.start(A, name="alone", share=False).wait(name="alone", shared=False, tabs=1)
    wait_until(lambda: site.subscribers() == 2, what="a connection of its own")
    with site.publishing(A, B) as numbers:
        time.sleep(0.5)
        tab.run("feeds.one.close()")
        tab.wait(name="two", tabs=1)
        time.sleep(0.5)
    wait_until(lambda: tab.numbers(B, "two")[-1:] == [numbers.count - 1], what="the last event")
    every = list(range(numbers.count))
    assert tab.numbers(A, "two") == tab.numbers(B, "two") == tab.numbers(A, "alone") == every
    closed = tab.numbers(A, "one")
    assert closed == every[: len(closed)]
    assert len(closed) < len(every)


def join(newcomer: Tab, others: list[Tab]) -> None:
    newcomer.start(A)
    time.sleep(7)


def look_at_one(newcomer: Tab, others: list[Tab]) -> None:
    others[0].run("return 0")
    time.sleep(7)


def look_at_all_in_turn(newcomer: Tab, others: list[Tab]) -> None:
    for _ in range(4):
        for tab in others:
            tab.run("return 0")
            time.sleep(1)


def wait(newcomer: Tab, others: list[Tab]) -> None:
    time.sleep(48)


@pytest.mark.parametrize(
    ("happens", "within"),
    [
        (join, 8),
        pytest.param(look_at_one, 8, marks=LONG),
        pytest.param(look_at_all_in_turn, 8, marks=LONG),
        pytest.param(wait, 48, marks=LONG),
    ],
)
def test_a_leader_that_has_stopped_is_replaced_and_follows_when_it_wakes(
    site: Site, browser: Browser, happens: Callable[[Tab, list[Tab]], None], within: float
) -> None:
    tabs = sharing(browser.tabs(3, site.url), A)
    newcomer = browser.open(site.url)
    leader = leader_of(tabs)
    others = without(tabs, leader)
    renderer = leader.renderer(browser.pid)
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        stopped = time.time()
        browser.stop(renderer)
        time.sleep(0.2)  # for what was on its way
        joined = numbers.count
        happens(newcomer, others)
        if happens is join:
            tabs.append(newcomer)
        caught_up = [newest(tab) > time.time() - 1 for tab in without(tabs, leader)]
        browser.resume()
        for tab in tabs:
            tab.wait(shared=True, tabs=len(tabs))
        time.sleep(1)
    assert all(caught_up), [tab.log("states")[-5:] for tab in tabs]
    for tab in tabs:
        assert_complete(tab, numbers, joined + 50 if tab is newcomer else 1)
    for tab in others:
        assert 1 < largest_gap(tab.log(), stopped) < within, "it was not stopped, or for too long"
    assert leader_of(tabs) is not leader
    assert_one_connection(site)


@pytest.mark.parametrize("way", ["alert", "task"])
def test_a_leader_that_stands_still_is_replaced_in_seconds_and_loses_and_doubles_nothing_when_it_goes_on(
    site: Site, browser: Browser, way: str
) -> None:
    windows = sharing(browser.windows(3, site.url), A)
    leader = leader_of(windows)
    others = without(windows, leader)
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        began = time.time()
        with getattr(leader, way)():
            time.sleep(4.5)
            gaps = [largest_gap(tab.log(), began) for tab in others]
            assert all(newest(tab) > time.time() - 1 for tab in others), [tab.log("states")[-5:] for tab in others]
        for tab in windows:
            tab.wait(shared=True, tabs=3)
        time.sleep(0.5)
    for tab in windows:
        assert_complete(tab, numbers, 1)
    print(way, gaps)
    assert max(gaps) < FAILOVER + 1
    assert leader_of(windows) is not leader
    assert_one_connection(site)


def test_a_feed_whose_leader_in_its_own_page_ends_does_not_wait_for_a_tab_that_stands_still(
    site: Site, browser: Browser
) -> None:
    page, other = browser.windows(2, site.url)
    page.start(A, name="one").wait(name="one")
    other.start(A).wait(tabs=2)  # the next in line for the lead
    page.start(A).wait(tabs=3)
    renderer = other.renderer(browser.pid)
    with site.publishing(A) as numbers:
        wait_until(lambda: page.count() > 10, what="some events")
        browser.stop(renderer)
        page.run("feeds.one.close()")
        closed = time.time()
        wait_until(lambda: newest(page) > closed + 2, 15, 0.1, what="events by another lead")
        browser.resume()
        for tab in (page, other):
            tab.wait(shared=True, tabs=2)
        time.sleep(0.5)
    for tab in (page, other):
        assert_complete(tab, numbers, 1)
    assert_one_connection(site)


def test_tabs_that_slept_together_leave_the_lead_where_it_is(site: Site, browser: Browser) -> None:
    leader, follower = sharing(browser.windows(2, site.url), A)
    renderers = [tab.renderer(browser.pid) for tab in (leader, follower)]
    assert leader.leads()
    follower.run(
        "const post = BroadcastChannel.prototype.postMessage; window.asked = 0;"
        "BroadcastChannel.prototype.postMessage = function (message) {"
        "  if (message.kind === 'knock') asked++;"
        "  post.call(this, message);"
        "}"
    )
    told, asked = leader.log("states"), follower.run("return asked")
    browser.stop(renderers[0])
    wait_until(
        lambda: follower.run("return asked") > asked, interval=0.02, what="a question that the leader has not answered"
    )
    browser.stop(renderers[1])
    time.sleep(3)  # far more than an answer may take
    os.kill(renderers[1], signal.SIGCONT)
    time.sleep(0.5)
    browser.resume()
    with site.publishing(A) as numbers:
        time.sleep(2.5)  # for the next question, and for the lead if it were taken
    assert leader.leads()
    assert leader.log("states") == told
    for tab in (leader, follower):
        assert_complete(tab, numbers, 1)


def test_of_all_tabs_in_sight_few_ask_the_leader_and_none_in_its_own_page(site: Site, browser: Browser) -> None:
    hear = (
        "return navigator.locks.query().then(locks => {"
        "const name = locks.held.filter(lock => lock.name.startsWith('sse '))[0].name;"
        "window.heard = []; window.bus = new BroadcastChannel(name);"
        "bus.onmessage = event => heard.push(event.data.kind); })"
    )
    [first] = browser.windows(1, site.url)
    first.start(A, name="one").wait(name="one").start(A, name="two").wait(name="two", tabs=2)
    first.run(hear)
    time.sleep(3)
    assert first.run("return heard") == []
    others = browser.windows(3, site.url)
    for tab in others:
        tab.start(A).wait(tabs=2 + 1 + others.index(tab))
    first.run("heard.length = 0")
    time.sleep(4)
    heard = first.run("return heard")
    assert 3 <= heard.count("knock") <= 4 * 4
    assert heard.count("knock") == heard.count("here")
    assert first.leads()
    browser.look_away()


def test_a_follower_joins_again_when_its_leader_leads_anew(site: Site, browser: Browser) -> None:
    leader, _ = sharing(browser.windows(2, site.url), A)
    leader.run(
        "return navigator.locks.query().then(locks => {"
        "window.bus = new BroadcastChannel(locks.held.filter(lock => lock.name.startsWith('sse '))[0].name);"
        "window.joined = []; bus.onmessage = ({data}) => {"
        "  if (data.kind === 'lead' && !window.lead) { lead = data; lead.term += 1000; bus.postMessage(lead); }"
        "  else if (window.lead && data.kind === 'join' && data.by !== lead.by) joined.push(data.by); }; })"
    )
    wait_until(lambda: leader.run("return joined.length"), 25, 0.1, what="the follower joins the leader of a new term")


@pytest.mark.parametrize("late", [False, True])
def test_where_no_lock_is_ever_given_each_tab_goes_on_alone_until_one_is(
    site: Site, browser: Browser, late: bool
) -> None:
    tabs = browser.tabs(2, site.url)
    for tab in tabs:
        tab.run(
            "window.asked = []; const real = navigator.locks.request.bind(navigator.locks);"
            "navigator.locks.request = (...given) => given[0].startsWith('sse ')"
            "  ? new Promise((resolve, reject) => asked.push(() => real(...given).then(resolve, reject)))"
            "  : real(...given)"
        )
        began = time.time()
        tab.start(A).wait("live", shared=False, tabs=1, timeout=8)
        live = [at for at, state, *_ in tab.log("states") if state == "live"]
        assert 2 < live[0] / 1000 - began < 6
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        if late:
            for tab in tabs:
                tab.run("asked.forEach(ask => ask())")
            for tab in tabs:
                tab.wait("live", shared=True, tabs=2)
            assert len([tab for tab in tabs if tab.leads()]) == 1
        time.sleep(0.5)
    for tab in tabs:
        assert_complete(tab, numbers, 1)


def test_tabs_of_different_users_leave_connections_to_others(site: Site, browser: Browser) -> None:
    tabs = browser.tabs(7, site.url)
    for number, tab in enumerate(tabs):
        tab.start(A, token=f"user{number}")
        tab.wait("live" if number < 4 else "polling", shared=True, tabs=1)
    publish_in_app(site.publisher, A, 0)
    for tab in tabs:
        wait_until(lambda tab=tab: tab.numbers(A) == [0], what="the event")
    assert [tab.get("transport") for tab in tabs] == ["eventsource"] * 4 + ["poll"] * 3
    tabs[0].close()  # its seat is free
    tabs[4].wait("live", transport="eventsource")


def test_of_tabs_that_cannot_share_one_that_streams_gives_way_to_two_before_it(site: Site, browser: Browser) -> None:
    tab = browser.open(site.url, "/pages/crowd.html").start(A).wait("live", shared=False)
    prefix = "const prefix = 'sse:tabs:' + location.host + ' '; "
    earlier = "for (const tab of '01') localStorage.setItem(prefix + tab, Date.now() + 60000)"  # restored with this one
    tab.run(prefix + earlier)
    tab.wait("polling", timeout=15, reason="more than two tabs")
    with site.publishing(A, every=0.1) as numbers:
        tab.run(prefix + "localStorage.setItem(prefix + '1', Date.now() - 1)")  # nothing was heard of it since
        tab.wait("live", timeout=20)
    assert_complete(tab, numbers, 1)


def test_tabs_share_where_nothing_can_be_stored(site: Site, browser: Browser) -> None:
    tabs = browser.tabs(2, site.url)
    for tab in tabs:
        tab.run("Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }})")
    for tab in sharing(tabs, A):
        assert tab.get("transport") == "eventsource"
    assert_one_connection(site)


@pytest.mark.parametrize("company", [pytest.param(0, marks=LONG), 1])
def test_a_page_that_comes_back_from_the_browsers_cache_goes_on_from_the_same_position(
    site: Site, browser: Browser, company: int
) -> None:
    tabs = sharing(browser.tabs(1 + company, site.url), A)
    with site.publishing(A) as numbers:
        time.sleep(0.5)
        tabs[0].go(f"{site.url}/healthz")
        time.sleep(1)
        tabs[0].back()
        assert tabs[0].run("return shows") == [False, True]
        for tab in tabs:
            tab.wait(shared=True, tabs=len(tabs))
        time.sleep(0.5)
    for tab in tabs:
        assert_complete(tab, numbers, 1)
    moments = [at for at, *_ in tabs[0].log()]
    assert max(after - before for before, after in itertools.pairwise(moments)) > 500, "it was never away"
    assert_one_connection(site)


def test_a_channel_that_leaves_and_comes_back_at_once_is_whole_in_the_tab_that_reloads(
    site: Site, browser: Browser
) -> None:
    leader, follower = browser.tabs(2, site.url)
    leader.start(A).wait()
    slowly = (  # the leader's stream goes on meanwhile
        "start('feed', '/sse', {channels: [arguments[0]], replay: 1}); let first = true;"
        "feeds.feed.on('sse.event', () => { if (first) burn(50); first = false; })"
    )
    with site.publishing(B, every=0.005) as numbers:
        for _ in range(4):
            follower.go(follower.address)
            follower.run(slowly, B)
            follower.wait(tabs=2)
            wait_until(lambda: follower.count() > 50, what="some events after the reload")
            got = follower.numbers(B)
            assert got == list(range(got[0], got[0] + len(got))), got
    assert_complete(follower, numbers, numbers.count, B)
    assert leader.log("resets") == leader.log() == []
