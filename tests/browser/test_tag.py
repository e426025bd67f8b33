"""What one tag does in a page: it waits for elements, announces, keeps rows, and shares the page with others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin
from tests.browser.test_embed import Page, browser, channel, page, pages, publish, script, serve, service
from tests.servers import Gunicorn, wait_until

__all__ = ["browser", "channel", "page", "pages", "serve", "service"]

# Keeps the warnings, and what each tag and `document` are told, as [where, target's place among the tags, type, data].
LISTENING = """<script>
  var warnings = [], told = [];
  console.warn = function (text) { warnings.push(text); };
  function listen(name, target) {
    ["sse:message", "sse:paid", "sse-reset", "sse-state"].forEach(function (type) {
      target.addEventListener(type, function (e) {
        var detail = e.detail, said = type === "sse-state" ? detail.state : detail.data || detail.reason;
        told.push([name, tags().indexOf(e.target), type, said]);
      });
    });
  }
  function of(name, type) {
    return told.filter(function (entry) { return entry[0] === name && entry[2] === type; })
      .map(function (entry) { return entry[3]; });
  }
  listen("document", document);
  document.addEventListener("DOMContentLoaded", function () {
    tags().forEach(function (tag, place) { listen("tag " + place, tag); });
  });
</script>"""
ROW = (
    "<template id=row><p class=row title='{name}'><b>{name}</b>: <i>{state}</i> {id} <button>Edit</button></p>"
    "</template>"
)


def texts(page: Page, selector: str) -> Any:
    code = "return Array.from(document.querySelectorAll(arguments[0])).map(function (e) {return e.textContent})"
    return page.run(code, selector)


def wait_for_texts(page: Page, selector: str, wanted: list[str]) -> None:
    try:
        wait_until(lambda: texts(page, selector) == wanted, what=f"{selector} has {wanted}")
    except AssertionError as error:
        error.add_note(f"it has {texts(page, selector)}; warnings: {page.value('warnings')}")
        raise


def show(page: Page, *parts: str) -> None:
    page.show(LISTENING + "".join(parts))
    page.wait("allLive()")


def warnings(page: Page) -> list[str]:
    return [str(text) for text in page.value("warnings")]


# Where and when it announces


def test_document_is_told_once_whichever_tags_have_the_channel_and_each_tag_by_itself(
    page: Page, service: Gunicorn, serve: Callable[..., Gunicorn], channel: str
) -> None:
    other = serve(origins="*")
    show(
        page,
        "<div id=around>",
        script(service, channel),
        script(service, f"{channel} {channel}/more", url=f"{service.url}/sse", share="off"),
        "</div>",
        script(other, channel),
    )
    page.run("listen('around', document.querySelector('#around')); listen('window', window)")
    page.wait("tags().every(function (tag, place) {return of('tag ' + place, 'sse-state').indexOf('live') >= 0})")
    assert page.value("of('document', 'sse-state').filter(function (state) {return state === 'live'}).length") >= 3
    for number in range(20):
        publish(service, channel, f"event {number}")
        publish(service, f"{channel}/more", f"more {number}", "paid")
    publish(other, channel, "from the other")
    page.wait("['tag 0', 'tag 1'].every(function (name) {return of(name, 'sse:message').length === 20})")
    page.wait("of('tag 1', 'sse:paid').length === 20 && of('tag 2', 'sse:message').length === 1")
    wanted = [f"event {number}" for number in range(20)]
    assert page.value("of('tag 0', 'sse:message')") == page.value("of('tag 1', 'sse:message')") == wanted
    heard = page.value("of('document', 'sse:message')")
    assert [data for data in heard if data != "from the other"] == wanted
    assert heard.count("from the other") == 1
    assert page.value("of('document', 'sse:paid')") == [f"more {number}" for number in range(20)]
    targets = page.value("told.map(function (entry) {return [entry[0], entry[1]]})")
    assert {tuple(pair) for pair in targets} == {("tag 0", 0), ("tag 1", 1), ("tag 2", 2), ("document", -1)}


def test_what_a_later_tag_replays_is_announced_on_document_unless_it_has_been(
    page: Page, service: Gunicorn, channel: str
) -> None:
    publish(service, channel, "before")
    show(page, script(service, channel))
    publish(service, channel, "both")
    page.wait("of('document', 'sse:message').length === 1")
    page.run(
        """
        var tag = document.createElement("script");
        tag.setAttribute("data-url", arguments[0]);
        tag.setAttribute("data-channels", arguments[1]);
        tag.setAttribute("data-replay", "9");
        document.body.appendChild(tag);
        listen("later", tag);
        SSE.start();""",
        f"{service.url}/sse",
        channel,
    )
    page.wait("allLive()")
    publish(service, channel, "after")
    page.wait("of('later', 'sse:message').length === 3 && of('tag 0', 'sse:message').length === 2")
    assert page.value("of('later', 'sse:message')") == ["before", "both", "after"]
    assert page.value("of('document', 'sse:message')") == ["both", "before", "after"]


# Elements that are not there yet, or no longer


def test_the_elements_are_looked_up_for_each_event(page: Page, service: Gunicorn, channel: str) -> None:
    show(page, "<div id=box></div>", ROW, script(service, channel, into="#list", template="#row"))
    publish(service, channel, {"name": "nowhere"})
    page.wait("warnings.length === 1")
    page.run("document.querySelector('#box').innerHTML = '<section id=list></section>'")
    publish(service, channel, {"name": "a"})
    wait_for_texts(page, "#list b", ["a"])
    page.run("document.querySelector('#box').innerHTML = '<section id=list></section>'")
    page.run("document.querySelector('#row').remove()")
    publish(service, channel, {"name": "no template"})
    page.wait("warnings.length === 2")
    page.run("document.body.insertAdjacentHTML('beforeend', '<template id=row><b>{name}!</b></template>')")
    publish(service, channel, {"name": "b"})
    wait_for_texts(page, "#list b", ["b!"])
    assert warnings(page) == [
        "SSE: data-into is '#list': it finds no element",
        "SSE: data-template is '#row': it finds no element",
    ]


class SlowPages(Origin):
    """An origin whose page `/slow` comes in parts: each when the test lets it go."""

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts
        self.gates = [threading.Event() for _ in parts]
        super().__init__()

    def _handler(self) -> type[SimpleHTTPRequestHandler]:
        parts, gates = self._parts, self.gates

        class Handler(super()._handler()):
            def do_GET(self) -> None:  # noqa: N802
                if urlsplit(self.path).path != "/slow":
                    super().do_GET()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                for part, gate in zip(parts, gates, strict=True):
                    gate.wait(60)
                    self.wfile.write(part.encode())

        return Handler


SLOW = [
    """<!doctype html><html><head><meta charset="utf-8"><title>A slow page</title><link rel="icon" href="data:,">
    <script src="/report.js"></script>
    <script>
      page.logs.announced = [];
      page.logs.warnings = [];
      document.addEventListener("sse:message", function (e) { page.logs.announced.push(e.detail.json.n); });
      console.warn = function (text) { page.logs.warnings.push(text); };
      function texts(selector) {
        return Array.prototype.map.call(document.querySelectorAll(selector), function (e) { return e.textContent; });
      }
      setInterval(function () {
        var tags = document.querySelectorAll("script[data-channels]");
        page.state = {
          feeds: Array.prototype.map.call(tags, function (tag) {
            return Boolean(tag.sse && /live|polling/.test(tag.sse.state));
          }),
          removed: page.removed ? page.removed.sse.state : "",
          list: texts("#list > li"), text: texts("#text"), made: texts("#made > li"), rows: texts("#rows > p")
        };
      }, 100);
      page.commands.move = function () {
        var tags = document.querySelectorAll("script[data-channels]");
        document.body.appendChild(tags[0]);
        page.removed = tags[1];
        page.removed.parentNode.removeChild(page.removed);
      };
      window.onload = function () {
        document.body.appendChild(document.createElement("ul")).id = "made";
      };
    </script>
    TAGS
    <!-- PADDING --></head><body><p>The beginning""",
    """</p><ul id="list"></ul><p id="text"></p><div id="rows"></div><p>The middle""",
    """</p><div hidden id="row"><p>{id} is <b>{n}</b></p></div>""",
    """<p>The end</p></body></html>""",
]
ENGINES: list[type[Engine]] = [Chromium, Firefox, WebKit, PhantomJS]


def test_events_wait_for_the_elements_of_a_page_that_arrives_slowly_in_every_engine(
    tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., Gunicorn], channel: str
) -> None:
    service, directory = serve(origins="*"), tmp_path_factory.mktemp("slow")
    tag = f'<script src="{service.url}/sse/sse.js" data-channels="{channel}" '
    tags = [
        f'{tag}data-into="#list" data-template="{{n}}"></script>',
        f'{tag}data-into="#text" data-template="{{n}}" async></script>',
        f'{tag}data-into="#rows" data-template="#row"></script>',
        f'{tag}data-into="#made" data-template="{{n}}"></script>',
    ]
    parts = [part.replace("TAGS", "".join(tags)).replace("PADDING", "." * 4000) for part in SLOW]
    names = [engine.name for engine in ENGINES]

    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(SlowPages(parts))
        origin.gates[0].set()
        for engine in ENGINES:
            stack.enter_context(engine(directory / engine.name, origin.page("slow", engine.name)))

        def wait(**wanted: Any) -> None:
            def seen(name: str) -> dict[str, Any]:
                return {key: origin.reports[name].state.get(key) for key in wanted}

            try:
                wait_until(lambda: all(seen(name) == wanted for name in names), 40, what=str(wanted))
            except AssertionError as error:
                for name in names:
                    error.add_note(f"{name}: {origin.reports[name].state} {origin.reports[name].logs}")
                raise

        wait(feeds=[True] * 4)
        for number in range(7):
            publish(service, channel, {"id": number % 3, "n": number})
        seven = [str(number) for number in range(7)]
        logs = [origin.reports[name].logs for name in names]
        wait_until(lambda: all(len(log["announced"]) == 7 for log in logs), 20, what="all seven are announced")
        wait(list=[], text=[], rows=[])
        origin.gates[1].set()
        wait(list=seven, text=["6"], rows=[])
        origin.gates[2].set()
        rows = [f"{number % 3} is {number}" for number in range(7)]
        wait(rows=rows, made=[])
        origin.gates[3].set()
        wait(made=seven)

        for name in names:
            origin.command(name, "move")
        wait(removed="closed")
        publish(service, channel, {"id": 1, "n": 7})
        wait(list=[*seven, "7"], text=["6"], rows=[*rows, "1 is 7"], made=[*seven, "7"], feeds=[True] * 3)
        assert logs == [{"errors": [], "warnings": [], "announced": list(range(8))} for _ in names]


# The global, and the end of a tag

OTHER = "function SSE(url) { this.url = url; } SSE.version = 7;"  # as npm's sse.js makes one


def load(page: Page, service: Gunicorn, channel: str = "") -> None:
    """Run the script in the page once more, from a tag that is added to it."""
    page.run(
        """
        var tag = document.createElement("script");
        window.loadedAgain = false;
        tag.src = arguments[0];
        if (arguments[1]) tag.setAttribute("data-channels", arguments[1]);
        tag.onload = function () { loadedAgain = true; };
        document.body.appendChild(tag);""",
        f"{service.url}/sse/sse.js",
        channel,
    )
    page.wait("loadedAgain")


def test_the_name_of_another_script_is_left_alone(page: Page, service: Gunicorn, channel: str) -> None:
    show(page, f"<script>{OTHER} var theirs = SSE;</script><ul id=list></ul>", script(service, channel, into="#list"))
    assert page.value("SSE === theirs && new SSE('/x').url === '/x'")
    publish(service, channel, "by tag")
    wait_for_texts(page, "#list > li", ["by tag"])
    page.run("""
        window.ours = document.documentElement.sse;
        window.log = [];
        window.feed = ours(arguments[0], {channels: [arguments[1]], replay: 1});
        feed.on("sse.event", function (event) { log.push(event.data); });""",
             f"{service.url}/sse", channel)  # fmt: skip
    page.wait("feed.state === 'live' && log.length === 1")
    assert page.value("ours.noConflict() === ours && SSE === theirs")
    load(page, service, channel)
    page.wait("allLive()")
    publish(service, channel, "once")
    wait_for_texts(page, "#list > li", ["by tag", "once"])
    page.wait("of('tag 0', 'sse:message').length === 2")
    assert page.value("of('document', 'sse:message')") == ["by tag", "once"]
    assert page.value("SSE === theirs")


def test_a_second_load_starts_new_tags_only_although_another_script_took_the_name(
    page: Page, service: Gunicorn, channel: str
) -> None:
    show(page, "<ul id=list></ul>", script(service, channel, into="#list"))
    page.run(f"window.ours = SSE; (0, eval)({OTHER!r}); window.theirs = SSE")
    assert page.value("ours !== theirs && SSE === theirs")
    load(page, service, channel)
    page.wait("tags().length === 2 && allLive()")
    publish(service, channel, "once")
    wait_for_texts(page, "#list > li", ["once"])
    page.wait("tags()[1].sse.lastEventId === tags()[0].sse.lastEventId")
    assert page.value("of('document', 'sse:message')") == ["once"]
    assert page.value("document.documentElement.sse === ours && ours.noConflict() === ours && SSE === theirs")


def test_no_conflict_gives_the_name_back_and_ours_goes_on(page: Page, service: Gunicorn, channel: str) -> None:
    show(page, "<b id=SSE></b><ul id=list></ul>", script(service, channel, into="#list"))
    assert page.value("typeof SSE === 'function' && SSE === document.documentElement.sse")  # an id takes no name
    assert page.value("(window.ours = SSE.noConflict()) === document.documentElement.sse")
    assert page.value("SSE === document.querySelector('b')")
    load(page, service)
    assert page.value("SSE === document.querySelector('b')")
    publish(service, channel, "still")
    wait_for_texts(page, "#list > li", ["still"])
    page.run("window.feed = ours(arguments[0], {channels: [arguments[1]]})", f"{service.url}/sse", channel)
    page.wait("feed.state === 'live'")


def test_a_tag_that_is_removed_ends_its_feed_and_one_that_is_moved_goes_on(
    page: Page, service: Gunicorn, channel: str
) -> None:
    show(
        page,
        "<ul id=list></ul><ul id=other></ul><div id=end></div>",
        script(service, channel, into="#list"),
        script(service, channel, into="#other"),
    )
    publish(service, channel, "a")
    wait_for_texts(page, "#list > li", ["a"])
    wait_for_texts(page, "#other > li", ["a"])
    page.run("""
        window.gone = tags()[0], window.moved = tags()[1], window.feed = gone.sse, window.kept = moved.sse;
        gone.parentNode.removeChild(gone);
        moved.parentNode.removeChild(moved);""")
    publish(service, channel, "meanwhile")
    page.wait("kept.lastEventId === feed.lastEventId")
    page.run("document.querySelector('#end').appendChild(moved)")
    page.wait("feed.state === 'closed' && gone.sse === feed")
    wait_for_texts(page, "#other > li", ["a", "meanwhile"])
    publish(service, channel, "b")
    wait_for_texts(page, "#other > li", ["a", "meanwhile", "b"])
    assert texts(page, "#list > li") == ["a"]
    assert page.value("moved.sse === kept && kept.state === 'live' && kept.tabs === 1")
    page.run("document.body.appendChild(gone); SSE.start(); SSE.start()")
    page.wait("allLive() && gone.sse !== feed")
    publish(service, channel, "c")
    wait_for_texts(page, "#list > li", ["a", "c"])
    wait_for_texts(page, "#other > li", ["a", "meanwhile", "b", "c"])


def test_a_feed_that_the_page_has_closed_is_not_started_again(page: Page, service: Gunicorn, channel: str) -> None:
    show(page, script(service, channel))
    page.run("tags()[0].sse.close(); SSE.start()")
    time.sleep(2.5)  # more than it takes to judge a tag that is away
    assert page.value("tags()[0].sse.state") == "closed"
