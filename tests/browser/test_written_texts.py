"""Texts that are written bit by bit and end: whole in every tab, each piece once, and quiet after the end."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin, Report
from tests.browser.tabbed_browser import Browser, Tab, answer
from tests.browser.written_texts import VIEW, TextService
from tests.servers import RedisServer, wait_until

TRANSPORTS = ["eventsource", "xhr", "poll"]
LONG = pytest.mark.long
RELOADS = 20
QUIET = 10  # seconds after an end without a request

_names = (f"chat/{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextService]:
    directory = tmp_path_factory.mktemp("texts")
    with RedisServer(directory) as redis, TextService(directory, redis) as service:
        yield service


@pytest.fixture
def browser(tabbed: Browser, service: TextService) -> Iterator[Browser]:
    yield tabbed
    service.end_all()
    service.front.delay = 0
    service.front.answer = lambda target: None
    tabbed.open(service.url).run("localStorage.clear()")
    tabbed.clear()


@pytest.fixture
def run(service: TextService) -> str:
    """A channel whose text is being written."""
    name = next(_names)
    service.begin(name)
    return name


@pytest.fixture
def news() -> str:
    """An ordinary channel."""
    return next(_names)


def open_on(tab: Tab, transport: str, *channels: str, **options: Any) -> Tab:
    """Start a feed that is to use this transport."""
    if transport == "xhr":
        tab.run("delete window.EventSource")
    if transport == "poll":
        tab.run("""localStorage.setItem("sse:" + location.host,
            JSON.stringify({at: Date.now(), why: "asked to", until: Date.now() + 500000}))""")
    return tab.start(*channels, **options)


def text(tab: Tab, channel: str) -> str:
    return str(tab.run("return feeds.feed.text(arguments[0])", channel))


def wait_for_text(tab: Tab, channel: str, wanted: str, timeout: float = 10) -> None:
    try:
        wait_until(lambda: text(tab, channel) == wanted, timeout, what=f"{channel} has its text")
    except AssertionError as error:
        error.add_note(f"{text(tab, channel)!r} is not {wanted!r}; {tab.log('states')}")
        raise


def ends(tab: Tab) -> list[list[str]]:
    """Return the channel, reason and id of each end that the page was told."""
    return tab.log("ends")


def closed(tab: Tab) -> Tab:
    tab.wait("closed", reason="ended", transport="")
    assert tab.run("return errors") == []
    return tab


# The text


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_tabs_that_are_reloaded_at_random_moments_have_the_whole_text_with_each_piece_once(
    service: TextService, browser: Browser, run: str, transport: str, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(request.config.getoption("hypothesis_seed"))
    pieces: list[str] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set() and len(pieces) < 5000:
            pieces.append(f"{len(pieces)} {'é' * chance.randrange(40)}\n")
            service.write(run, pieces[-1])
            time.sleep(chance.random() * 0.05)
        service.end(run)

    tabs = [open_on(tab, transport, run) for tab in browser.tabs(2, service.url)]
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(RELOADS):
            time.sleep(chance.random() * 0.5)
            tab = chance.choice(tabs)
            tab.go(tab.address)
            open_on(tab, transport, run)
            shown = text(chance.choice(tabs), run)
            assert "".join(pieces).startswith(shown)
    finally:
        enough.set()
        writer.join(30)
    for tab in tabs:
        wait_for_text(closed(tab), run, "".join(pieces))
        assert tab.log("resets") == []
    for tab in tabs:
        tab.go(tab.address)
        open_on(tab, transport, run)
        wait_for_text(closed(tab), run, "".join(pieces))
        assert [end[:2] for end in ends(tab)] == [[run, "done"]]
        assert tab.log("resets") == []


def test_a_text_that_is_begun_again_empties_what_was_there(service: TextService, browser: Browser, run: str) -> None:
    service.write(run, "old ", "text")
    tabs = [tab.start(run).wait(shared=True) for tab in browser.tabs(2, service.url)]
    for tab in tabs:
        wait_for_text(tab, run, "old text")
    service.begin(run)
    service.write(run, "new ")
    for tab in tabs:
        wait_for_text(tab, run, "new ")
        assert len(tab.log("resets")) == 1
    service.write(run, "text")
    for tab in tabs:
        wait_for_text(tab, run, "new text")


def test_only_events_of_the_type_text_are_pieces(service: TextService, browser: Browser, run: str, news: str) -> None:
    tab = browser.open(service.url).start(run, news).wait()
    service.write(run, "one ")
    service.publish(run, {"source": "a book"}, type="citation")
    service.write(run, "two")
    service.publish(news, "other")
    wait_until(lambda: tab.count() >= 4, what="all events")
    assert [text(tab, name) for name in (run, news, "nothing")] == ["one two", "", ""]
    assert [event[2] for event in tab.log() if event[1] == run] == [None, {"source": "a book"}, None]


# The end


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_within_a_second_of_the_end_all_tabs_are_closed_and_nothing_is_asked_any_more(
    service: TextService, browser: Browser, run: str, transport: str
) -> None:
    tabs = [open_on(tab, transport, run) for tab in browser.windows(2, service.url)]
    service.write(run, "a text")
    for tab in tabs:
        tab.wait("polling" if transport == "poll" else "live", shared=True, tabs=2)
        wait_for_text(tab, run, "a text")
    wait_until(lambda: not service.since(time.time() - 0.5), what="the poll after the text is under way")
    ended = service.end(run, "stopped")
    for tab in tabs:
        closed(tab)
        [[channel, reason, id]] = ends(tab)
        assert (channel, reason, id) == (run, "stopped", tab.get("lastEventId"))
        [(at, *_)] = [told for told in tab.log("states") if told[1] == "closed"]
        assert at / 1000 - ended < 1
    time.sleep(QUIET)
    assert service.since(ended) == []
    for tab in tabs:
        tab.run("feeds.feed.close(); feeds.feed.close()")
        assert (tab.get("reason"), text(tab, run)) == ("ended", "a text")
    assert tabs[0].run("return navigator.locks.query().then(function (all) { return all.held.length; })") == 0


def test_the_end_of_a_text_that_a_page_had_read_whole_is_told_at_once(
    service: TextService, browser: Browser, run: str
) -> None:
    service.write(run, "a text")
    service.end(run, "failed")
    first = browser.open(service.url).start(run)
    position = closed(first).get("lastEventId")
    asked = time.time()
    second = browser.open(service.url).start(run, lastEventId=position)
    closed(second)
    assert ends(second) == ends(first) == [[run, "failed", position]]
    assert len(service.since(asked)) == 1
    assert text(second, run) == ""


def test_a_stream_that_is_answered_by_204_ends_by_the_poll_that_asks_why(
    service: TextService, browser: Browser, run: str
) -> None:
    def end(target: str) -> bytes | None:
        if "/stream" not in target:
            return None
        service.end(run, "failed")
        return answer(204)

    service.write(run, "a text")
    service.front.answer = end
    asked = time.time()
    tab = closed(browser.open(service.url).start(run, share=False))
    assert [end[1] for end in ends(tab)] == ["failed"]
    assert [urlsplit(target).path for target in service.since(asked)] == ["/sse/poll", "/sse/stream", "/sse/poll"]


@pytest.mark.parametrize("leader_has_both", [True, False])
def test_a_channel_that_ends_leaves_the_shared_line_and_the_stream_of_the_others_goes_on(
    service: TextService, browser: Browser, run: str, news: str, leader_has_both: bool
) -> None:
    first, second, third = browser.tabs(3, service.url)
    first.start(*([run, news] if leader_has_both else [run])).wait(shared=True, tabs=1)
    second.start(news).wait(shared=True, tabs=2)
    third.start(news, run).wait(shared=True, tabs=3)
    assert first.leads()
    service.write(run, "a text")
    service.publish(news, 1)
    wait_for_text(third, run, "a text")
    wait_until(lambda: second.numbers(news) == third.numbers(news) == [1], what="news")
    time.sleep(0.5)  # for the last tab's channels

    ended = service.end(run)
    wait_until(lambda: len(ends(first)) == len(ends(third)) == 1, what="the end")
    for number in range(2, 40):
        service.publish(news, number)
        time.sleep(0.05)
    time.sleep(1.5)
    service.publish(news, 40)
    for tab in (second, third):
        wait_until(lambda tab=tab: tab.numbers(news) == list(range(1, 41)), what="all news")
        assert tab.get("state") == "live"
        assert tab.get("tabs") == (3 if leader_has_both else 2)
    assert ends(second) == []
    assert service.since(ended) == []
    assert first.leads()
    assert first.get("state") == ("live" if leader_has_both else "closed")

    late = browser.open(service.url).start(run, news).wait("live", shared=True)
    wait_until(lambda: [end[:2] for end in ends(late)] == [[run, "done"]], what="the end")
    assert text(late, run) == "a text"
    alone = closed(browser.open(service.url).start(run))
    assert text(alone, run) == "a text"
    service.publish(news, 41)
    wait_until(lambda: late.numbers(news) == [41], what="news")
    assert service.since(ended, "/stream") == []

    if not leader_has_both:  # it goes on for the others, until they have gone
        for tab in (second, third, late):
            tab.run("feeds.feed.close()")
        wait_until(lambda: not first.leads(), what="the lead is given up")
        at = time.time()
        time.sleep(2)
        assert service.since(at) == []


def test_a_leader_that_has_ended_gives_the_lead_up_when_its_page_closes_the_feed(
    service: TextService, browser: Browser, run: str, news: str
) -> None:
    first, second = browser.tabs(2, service.url)
    first.start(run).wait(shared=True)
    second.start(news).wait(shared=True, tabs=2)
    service.end(run)
    closed(first).run("feeds.feed.close()")
    second.wait(shared=True, tabs=1)
    wait_until(second.leads, what="the other leads")
    service.publish(news, 1)
    wait_until(lambda: second.numbers(news) == [1], what="news")
    assert first.get("reason") == "ended"


def test_a_tab_that_is_still_reading_a_text_that_has_ended_does_not_disturb_the_others(
    service: TextService, browser: Browser, run: str, news: str
) -> None:
    pieces = [f"{number:04} " * 40 for number in range(100)]
    service.write(run, *pieces)
    first = browser.open(service.url).start(run, news).wait(shared=True)
    wait_for_text(first, run, "".join(pieces))
    service.end(run)
    wait_until(lambda: ends(first), what="the end")
    asked = time.time()
    service.front.delay = 0.4  # so slow that the newcomer joins before it has read all
    late = browser.open(service.url).start(run, news)
    wait_until(lambda: ends(late), 30, what="the end")
    assert text(late, run) == "".join(pieces)
    assert len(service.since(asked, "/poll")) > 2
    assert service.since(asked, "/stream") == []


def test_a_run_that_is_begun_again_after_its_end_is_heard_by_a_feed_that_is_opened_then(
    service: TextService, browser: Browser, run: str, news: str
) -> None:
    service.write(run, "old")
    first = browser.open(service.url).start(run, news).wait(shared=True)
    service.end(run)
    wait_until(lambda: ends(first), what="the end")
    service.begin(run)
    service.write(run, "new ")
    late = browser.open(service.url).start(run).wait(shared=True, tabs=2)
    time.sleep(0.5)
    service.write(run, "text")
    wait_for_text(late, run, "new text")
    service.end(run)
    closed(late)
    assert text(first, run) == "old"
    assert len(ends(first)) == 1
    service.publish(news, 7)
    wait_until(lambda: first.numbers(news)[-1:] == [7], what="news")


def test_notices_that_the_script_does_not_know_are_ignored(service: TextService, browser: Browser, news: str) -> None:
    def stream(target: str) -> bytes | None:
        if "/stream" not in target:
            return None
        blocks = f"""event: sse.open
data: {{"channels": {{}}, "heartbeat": 3, "retry": 300}}

event: sse.event
data: message
data: 1
id: {news}=1-1

event: sse.unknown
data: {{}}

event: sse.event
data: message
data: 2
id: {news}=2-1

"""
        start = dict(parse_qsl(urlsplit(target).query))["last_event_id"]
        assert start == f"{news}=0-" + start.rpartition("-")[2]
        return answer(200, "Content-Type: text/event-stream", body=blocks)

    service.front.answer = stream
    tab = open_on(browser.open(service.url), "xhr", news)
    wait_until(lambda: tab.numbers(news)[:2] == [1, 2], what="the events")


def test_the_standard_interface_tells_the_end_and_is_closed(service: TextService, browser: Browser, run: str) -> None:
    tab = browser.open(service.url)
    tab.run(
        """
        window.told = [];
        window.source = new SSE.EventSource("/sse/stream?channel=" + arguments[0]);
        ["text", "sse.end", "error"].forEach(function (type) {
          source.addEventListener(type, function (event) { told.push([type, event.data]); });
        });""",
        run,
    )
    wait_until(lambda: tab.run("return source.readyState") == 1, what="it is open")
    service.write(run, "Hi")
    service.end(run)
    wait_until(lambda: tab.run("return source.readyState") == 2, what="it is closed")
    told = tab.run("return told")
    assert told == [["text", "Hi"], ["sse.end", f'{{"channel":"{run}","reason":"done"}}'], ["error", None]]


@LONG
@pytest.mark.parametrize("round", range(3))
def test_each_tab_has_all_of_what_it_follows_however_tabs_come_and_go(
    service: TextService, browser: Browser, request: pytest.FixtureRequest, round: int
) -> None:
    chance = random.Random(f"{request.config.getoption('hypothesis_seed')} {round}")
    news, *runs = [next(_names) for _ in range(4)]
    pieces: dict[str, list[str]] = {name: [] for name in runs}
    over = {name: threading.Event() for name in (news, *runs)}
    numbers = itertools.count()
    chosen: dict[Tab, list[str]] = {}

    def write(name: str, pace: random.Random) -> None:
        while not over[name].is_set() and len(pieces[name]) < 5000:
            pieces[name].append(f"{len(pieces[name])} {'x' * pace.randrange(30)}")
            service.write(name, pieces[name][-1])
            time.sleep(pace.random() * 0.06)
        service.end(name, pace.choice(["done", "stopped", "failed"]))

    def publish() -> None:
        while not over[news].is_set():
            service.publish(news, next(numbers))
            time.sleep(0.1)

    def start(tab: Tab) -> None:
        chosen[tab] = chance.sample([news, *runs], chance.randrange(1, 5))
        open_on(tab, "eventsource", *chosen[tab], share=chance.random() < 0.85)

    def open_one() -> None:
        if len(chosen) < 5:
            start(browser.open(service.url))

    def reload() -> None:
        tab = chance.choice(list(chosen))
        tab.go(tab.address)
        start(tab)

    def lose(by: Callable[[Tab], None]) -> None:
        if len(chosen) > 2:
            tab = chance.choice(list(chosen))
            del chosen[tab]
            by(tab)

    for name in runs:
        service.begin(name)
    threads = [threading.Thread(target=write, args=(name, random.Random(chance.random()))) for name in runs]
    threads.append(threading.Thread(target=publish))
    for thread in threads:
        thread.start()
    acts = [reload, reload, open_one, open_one, service.cut, lambda: lose(Tab.close), lambda: lose(browser.kill)]
    try:
        for _ in range(3):
            start(browser.open(service.url))
        for step in range(40):
            chance.choice(acts)()
            if step in (15, 30):
                over[runs[step // 30]].set()
            time.sleep(chance.random() * 0.6)
    finally:
        for event in over.values():
            event.set()
        for thread in threads:
            thread.join(30)
    last = next(numbers)
    service.publish(news, last)
    for tab, channels in chosen.items():
        for name in set(channels) - {news}:
            wait_for_text(tab, name, "".join(pieces[name]), 20)
        if news in channels:
            wait_until(lambda tab=tab: tab.numbers(news)[-1:] == [last], 20, what="all news")
            assert tab.numbers(news) == list(range(tab.numbers(news)[0], last + 1))
        else:
            closed(tab)
        assert sorted(name for name, *_ in ends(tab)) == sorted(set(channels) - {news})
        assert tab.log("resets") == []
        assert tab.run("return errors") == []


# In data-into


def show(service: TextService, browser: Browser, body: str) -> Tab:
    tab = browser.open(service.url, service.add_page(f"<script>var told = [];</script>{body}"))
    wait_until(lambda: tab.run("return !!(window.SSE && document.querySelector('script[src]').sse)"), what="a tag")
    return tab


def wait_to_see(tab: Tab, selector: str, wanted: str) -> None:
    def seen() -> str:
        return str(tab.run("return document.querySelector(arguments[0]).textContent", selector))

    try:
        wait_until(lambda: seen() == wanted, what=f"{selector} shows {wanted!r}")
    except AssertionError as error:
        error.add_note(f"it shows {seen()!r}")
        raise


def tag(**attributes: str) -> str:
    written = "".join(f" data-{name.replace('_', '-')}='{value}'" for name, value in attributes.items())
    return f"<script src='/sse/sse.js'{written} defer></script>"


def test_a_tag_appends_pieces_as_text_and_a_reset_empties_them(
    service: TextService, browser: Browser, run: str
) -> None:
    service.publish(run, {"model": "small"})
    service.write(run, "<b>not", " bold</b>")
    body = "<p id=answer aria-live=polite>…</p><p id=silent></p><ul id=list></ul><p id=other>-</p>"
    tags = (
        tag(channels=run, into="#answer")
        + tag(channels=run, into="#silent", types="text")
        + tag(channels=run, into="#list", types="citation")
        + tag(channels=run, into="#other", template="{model}", types="message")
    )
    tab = show(service, browser, body + tags)
    wait_to_see(tab, "#answer", "<b>not bold</b>")
    tab.run("""window.nodes = Array.from(document.querySelector("#answer").childNodes);
        getSelection().selectAllChildren(document.querySelector("#answer"));""")
    service.write(run, " &amp;")
    service.publish(run, "a book", type="citation")
    service.write(run, " more")
    wait_to_see(tab, "#answer", "<b>not bold</b> &amp; more")
    wait_to_see(tab, "#silent", "<b>not bold</b> &amp; more")
    wait_to_see(tab, "#list", "a book")
    wait_to_see(tab, "#other", "small")
    assert tab.run("""return nodes.every(function (node, place) {
        return node.nodeType === 3 && document.querySelector("#answer").childNodes[place] === node; })""")
    assert tab.run("return getSelection().toString()").startswith("<b>not bold</b>")
    assert tab.run("return document.querySelector('#answer').getAttribute('aria-busy')") == "true"
    assert not tab.run("return document.querySelector('#silent').hasAttribute('aria-busy')")

    tab.run("""document.addEventListener("sse-end", function (event) { told.push(event.detail); });
        var old = document.querySelector("#answer"), young = document.createElement("p");
        young.id = "answer";
        young.setAttribute("aria-live", "polite");
        old.parentNode.replaceChild(young, old);""")
    service.write(run, "!")
    wait_to_see(tab, "#answer", "<b>not bold</b> &amp; more!")  # a framework has replaced the element
    service.begin(run)
    wait_to_see(tab, "#answer", "")
    service.write(run, "New")
    wait_to_see(tab, "#answer", "New")
    service.end(run, "done")
    wait_until(lambda: tab.run("return told.length"), what="the end")
    time.sleep(0.3)
    [told] = tab.run("return told")
    assert (told["channel"], told["reason"]) == (run, "done")
    assert not tab.run("return document.querySelector('#answer').hasAttribute('aria-busy')")
    wait_to_see(tab, "#answer", "New")
    assert tab.run("return document.querySelector('script[src]').sse.text(arguments[0])", run) == "New"


def test_pieces_wait_for_their_element_and_a_tag_may_stand_in_it(
    service: TextService, browser: Browser, run: str
) -> None:
    into = tag(channels=run, into="#inside")
    tab = show(service, browser, f"<p id=inside>old {into}</p>" + tag(channels=run, into="#late"))
    service.write(run, "one ")
    wait_to_see(tab, "#inside", "one ")
    tab.run("document.body.insertAdjacentHTML('beforeend', '<p id=late>…</p>')")
    service.write(run, "two")
    for selector in ("#inside", "#late"):
        wait_to_see(tab, selector, "one two")
    service.end(run)


def test_an_element_shows_the_text_whose_piece_came_last(service: TextService, browser: Browser) -> None:
    first, second = next(_names), next(_names)
    for name in (first, second):
        service.begin(name)
    tab = show(service, browser, "<p id=answer></p>" + tag(channels=f"{first} {second}", into="#answer"))
    for name, piece, seen in [(first, "a", "a"), (first, "b", "ab"), (second, "x", "x"), (first, "c", "abc")]:
        service.write(name, piece)
        wait_to_see(tab, "#answer", seen)


ENGINES: list[tuple[type[Engine], str]] = [
    (Chromium, "eventsource"),
    (Firefox, "eventsource"),
    (WebKit, "eventsource"),
    (PhantomJS, "eventsource"),
    (PhantomJS, "xhr"),
    (PhantomJS, "poll"),
]


def test_every_engine_shows_the_whole_text_and_its_end(
    tmp_path_factory: pytest.TempPathFactory, service: TextService, run: str
) -> None:
    directory = tmp_path_factory.mktemp("engines")
    names = [f"{engine.name}-{transport}" for engine, transport in ENGINES]

    def wait(what: str, check: Callable[[Report], bool]) -> None:
        try:
            wait_until(lambda: all(check(origin.reports[name]) for name in names), 40, what=what)
        except AssertionError as error:
            for name in names:
                error.add_note(f"{name}: {origin.reports[name].state} {origin.reports[name].logs}")
            raise

    service.write(run, "Once ", "<b>")
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(Origin())
        for place, (engine, transport) in enumerate(ENGINES):
            address = origin.page("texts.html", names[place], service=service.url, channel=run, transport=transport)
            stack.enter_context(engine(directory / f"{place}", address))  # Chromium wants its folder's name short
        wait("all pages", lambda report: "answer" in report.state)
        written = "Once <b>"
        for piece in [" upon", " a", " time\n", "é"]:
            service.write(run, piece)
            time.sleep(0.3)
            written += piece
        wait("the text", lambda report: report.state["answer"][0] == written)
        assert [origin.reports[name].state["transport"] for name in names] == [transport for _, transport in ENGINES]
        service.end(run)
        wait("the end", lambda report: report.state["answer"] == [written, "closed", "ended"])
        asked = time.time()
        for name in names:
            origin.command(name, "follow", "late")
        wait("the same later", lambda report: report.state.get("late") == [written, "closed", "ended"])
        assert len(service.since(asked)) == len(names)
        wait("both ends", lambda report: bool(report.logs.get("late")))
        logs = [origin.reports[name].logs for name in names]
        assert logs == [{"errors": [], "answer": ["done"], "late": ["done"]} for _ in names]


# Own views


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_view_chooses_its_channels_and_has_one_address_for_both_transports(
    service: TextService, browser: Browser, run: str, news: str, transport: str
) -> None:
    service.choose(run)
    before = len(service.front.accepts)
    service.write(run, "a ")
    tabs = browser.tabs(2, service.url)
    for tab in tabs:
        view = f"{VIEW}?folder=a%20b&client=mine-0001"
        tab.run(
            "window.SSE = (function (make) { return function (url, o) { return make(o.view ? o : url, o); }; }(SSE))"
        )
        open_on(tab, transport, view=view)
        tab.wait("polling" if transport == "poll" else "live", shared=True)
        assert tab.log("states")[-1][1] == tab.get("state")
    service.write(run, "text")
    for tab in tabs:
        wait_for_text(tab, run, "a text")
    views = [(target, accept) for target, accept in service.front.accepts[before:] if "_=" in target]
    for target, accept in views:
        query = parse_qs(urlsplit(target).query)
        assert urlsplit(target).path == VIEW
        assert (query["folder"], query["client"]) == (["a b"], ["mine-0001"])
        assert "channel" not in query
        assert ("timeout" in query) == (accept == "application/json")

    service.choose(run, news)  # as if this user now saw one more
    service.cut()
    for tab in tabs:
        wait_until(lambda tab=tab: [r["channel"] for r in tab.log("resets")] == [news], 40, what="a channel is added")
        assert tab.log("resets")[0]["reason"] == "missing"
    service.publish(news, 1)
    service.end(run)
    for tab in tabs:
        wait_until(lambda tab=tab: tab.numbers(news) == [1], what="news")
        wait_until(lambda tab=tab: [end[:2] for end in ends(tab)] == [[run, "done"]], what="the end")
    service.cut()  # what has ended is not told again
    service.publish(news, 2)
    for tab in tabs:
        wait_until(lambda tab=tab: tab.numbers(news) == [1, 2], 40, what="news")
        assert len(ends(tab)) == 1
    service.choose(run)
    service.cut()
    for tab in tabs:
        tab.wait("closed", reason="ended", timeout=40)
        assert [reset["channel"] for reset in tab.log("resets")] == [news]
        assert tab.run("return errors") == []
        assert text(tab, run) == "a text"
    at = time.time()
    time.sleep(3)
    assert service.since(at) == []


def test_a_channel_that_a_view_has_for_a_new_tab_comes_to_the_others(
    service: TextService, browser: Browser, run: str, news: str
) -> None:
    service.choose(run)
    first = show(service, browser, "<p id=answer></p>" + tag(view=VIEW, into="#answer", types="text"))
    service.write(run, "Hi")
    wait_to_see(first, "#answer", "Hi")
    service.choose(run, news)
    second = show(service, browser, tag(view=VIEW))
    wait_until(lambda: second.run("return document.querySelector('script[src]').sse.tabs") == 2, what="they share")
    for tab in (first, second):
        tab.run("document.addEventListener('sse:message', function (event) { told.push(event.detail.json); })")
    channels = "return document.querySelector('script[src]').sse.lastEventId.split('~').length"
    wait_until(lambda: first.run(channels) == second.run(channels) == 2, what="both channels")
    time.sleep(0.5)
    service.publish(news, 7)
    for tab in (first, second):
        wait_until(lambda tab=tab: tab.run("return told") == [7], what="news")


# Sources


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_tab_hears_if_a_source_works(service: TextService, browser: Browser, transport: str) -> None:
    channel = f"score/{transport}"
    service.choose("up")
    tabs = browser.tabs(2, service.url)
    for tab in tabs:
        open_on(tab, transport, channel)
        tab.run("""window.told = [];
            feeds.feed.on("sse.source", function (source) { told.push([source.channel, source.state]); });""")
    for tab in tabs:
        wait_until(lambda tab=tab: tab.numbers(channel) == [1], what="the first value")
        tab.wait("polling" if transport == "poll" else "live", shared=True, tabs=2)
    service.choose("down")
    for tab in tabs:
        wait_until(lambda tab=tab: tab.run("return told")[-1:] == [[channel, "down"]], 20, what="it is down")
        states = [state for _, state in tab.run("return told")]
        assert all(before != after for before, after in itertools.pairwise(states)), states
    listening = """<script>
        var told = [];
        document.addEventListener("sse-source", function (event) { told.push(event.detail.state); });
    </script>"""
    late = browser.open(service.url, service.add_page(listening + tag(channels=channel)))
    wait_until(lambda: late.run("return told")[-1:] == ["down"], what="a late tab hears it too")


# Who is there


def test_a_page_has_one_name_on_all_its_connections(service: TextService, browser: Browser, news: str) -> None:
    tabs = browser.tabs(2, service.url)
    names = []
    for tab in tabs:
        asked = time.time()
        open_on(tab, "eventsource", news, share=False).wait()
        service.cut()
        wait_until(lambda asked=asked: len(service.since(asked, "/stream")) == 2, what="a second stream")
        open_on(tab, "poll", news, share=False, name="poll").wait("polling", "poll")
        targets = service.since(asked)
        tab.run("feeds.feed.close(); feeds.poll.close(); localStorage.clear()")
        [name] = {parse_qs(urlsplit(target).query)["client"][0] for target in targets}
        assert len(targets) >= 5
        names.append(name)
    assert names[0] != names[1]
    assert [len(name) for name in names] == [16, 16]
    assert all(name.isalnum() and name.isascii() for name in names)
