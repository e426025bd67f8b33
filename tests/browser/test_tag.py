"""One tag in a page: it waits for its elements, announces events, keeps rows, and shares the page with others."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.embedding_page import Page, Pages, browser, channel, page, pages, script, serve, service
from tests.browser.engines import Chromium, Engine, Firefox, PhantomJS, WebKit
from tests.browser.origin import Origin
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, wait_until
from tests.tokens import KEY

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
        publish(service, f"{channel}/more", f"more {number}", type="paid")
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


def test_a_reset_is_announced_once_on_document_and_rows_stay(
    page: Page, pages: Pages, tmp_path: Path, channel: str
) -> None:
    settings = {"SSE_PUBLIC": "*", "SSE_ORIGINS": pages.url, "SSE_PUBLISH_KEYS": KEY, "SSE_RETRY": "300"}
    with Gunicorn(tmp_path, env=settings) as service:
        tag = script(service, channel, into="#rows", template="#row", key="{id}")
        show(page, "<div id=rows></div>", ROW, tag, script(service, channel))
        publish(service, channel, {"id": 1, "name": "Ada"})
        wait_for_texts(page, "#rows b", ["Ada"])
        service.stop()  # its memory, and with it the ring, is gone
        service.start()
        publish(service, channel, {"id": 1, "name": "Grace"})
        page.wait("of('tag 0', 'sse-reset').length === 1 && of('tag 1', 'sse-reset').length === 1", 20)
        assert len(page.value("of('document', 'sse-reset')")) == 1
        assert len(texts(page, "#rows > *")) == 1
        publish(service, channel, {"id": 1, "name": "Joan"})
        wait_for_texts(page, "#rows b", ["Joan"])
        page.run("location.href = 'about:blank'")


# Rows


def test_an_event_updates_the_row_with_its_key_or_adds_one(page: Page, service: Gunicorn, channel: str) -> None:
    written = (
        "<div id=rows>\n  <p class='mine row' data-key='1'>\n <!-- one --> <input type=checkbox><b>Ada</b>:"
        "<i>new</i>\n 1 <em>mine</em><button>Edit</button></p>\n"
        " <p data-key='2'><b></b>: <i></i><button></button></p></div>"
    )
    attributes = {"into": "#rows", "template": "#row", "key": "{id}", "remove": "deleted gone"}
    show(page, written, ROW, script(service, channel, **attributes))
    page.run("""
        window.first = document.querySelector("#rows > p");
        window.button = first.querySelector("button");
        button.textContent = "Saving";
        button.focus();""")
    for data in ({"id": 1, "name": "Ada <b>", "state": "paid"}, {"id": 3, "name": "Joan", "state": "{name}"}):
        publish(service, channel, data)
    wait_for_texts(page, "#rows b", ["Ada <b>", "", "Joan"])
    assert texts(page, "#rows i") == ["paid", "", "{name}"]
    assert page.value("first.textContent.replace(/\\s+/g, ' ').trim()") == "Ada <b>:paid 1 mineSaving"
    assert page.value("first === document.querySelector('#rows').children[0] && document.activeElement === button")
    assert page.value("first.className + first.getAttribute('title')") == "mine rownull"  # attributes are the page's

    publish(service, channel, {"id": 3, "name": "Joan", "state": "shipped"}, type="updated")
    publish(service, channel, {"id": "1"}, type="deleted")
    publish(service, channel, {"id": 77}, type="deleted")  # is not there
    wait_for_texts(page, "#rows b", ["", "Joan"])
    assert texts(page, "#rows i") == ["", "shipped"]
    publish(service, channel, {"id": 3}, type="gone")
    publish(service, channel, {"id": 1, "name": "Ada", "state": "back"})
    wait_for_texts(page, "#rows i", ["", "back"])
    assert page.value("first !== document.querySelector('#rows').children[1]")
    for state in ("new", "paid"):  # the server has left out the space for {id}
        publish(service, channel, {"id": 2, "name": "Grace", "state": state})
    wait_for_texts(page, "#rows i", ["paid", "back"])
    assert texts(page, "#rows > :first-child") == ["Grace: paid 2 "]
    assert warnings(page) == []


def test_a_key_may_be_any_text(page: Page, service: Gunicorn, channel: str) -> None:
    keys = ["\"]'", " a  b ", "__proto__", "constructor", "<b>", "\\", "{id}", "é\n猫", "0", "-1.5", "[1]", "true", "#"]
    show(page, "<ul id=list></ul>",
         script(service, channel, into="#list", template="{id}: {n}", key="{id}", remove="deleted"))  # fmt: skip
    for turn in range(2):
        for key in keys:
            publish(service, channel, {"id": key, "n": turn})
    wait_for_texts(page, "#list > li", [f"{key}: 1" for key in keys])
    for key in keys[::2]:
        publish(service, channel, {"id": key}, type="deleted")
    wait_for_texts(page, "#list > li", [f"{key}: 1" for key in keys[1::2]])
    for data in (0, False, [1], {"a": 1}):  # no texts, and yet keys; the last is its JSON
        publish(service, channel, {"id": data, "n": "added"})
        publish(service, channel, {"id": data, "n": "updated"})
    wanted = [f"{key}: 1" for key in keys[1::2]] + ["0: updated", "false: updated", "[1]: updated", '{"a":1}: updated']
    wait_for_texts(page, "#list > li", wanted)
    assert warnings(page) == []


def test_a_row_is_found_by_several_members_and_by_members_of_the_event(
    page: Page, service: Gunicorn, channel: str
) -> None:
    show(
        page,
        "<ol id=a></ol><ul id=b></ul>",
        script(service, f"{channel} {channel}/b", into="#a", template="{channel} {n}", key="{channel}"),
        script(service, channel, into="#b", template="{n}", key="{type} {user.id}"),
    )
    for number in range(4):
        publish(service, (channel, f"{channel}/b")[number % 2], {"n": number, "user": {"id": number // 2}})
        publish(service, channel, {"n": number, "user": {"id": 1}}, type="paid")
    wait_for_texts(page, "#a > li", [f"{channel} 3", f"{channel}/b 3"])
    wait_for_texts(page, "#b > li", ["0", "3", "2"])


def test_new_rows_come_first_or_last_and_the_oldest_go(page: Page, service: Gunicorn, channel: str) -> None:
    old = "<li data-key=x>x</li><li>y</li>"
    show(
        page,
        f"<ul id=first>{old}</ul><ul id=last>{old}</ul><ul id=plain>{old}</ul>",
        script(service, channel, into="#first", template="{id}{n}", key="{id}", order="prepend", keep="3"),
        script(service, channel, into="#last", template="{id}{n}", key="{id}", order="append", keep="3"),
        script(service, channel, into="#plain", template="{id}{n}", order="prepend", keep="4"),
    )
    for place, key in enumerate("abacb"):  # the second a moves nothing
        publish(service, channel, {"id": key, "n": place})
    wait_for_texts(page, "#first > li", ["c3", "b4", "a2", "y"])
    wait_for_texts(page, "#last > li", ["y", "a2", "b4", "c3"])
    wait_for_texts(page, "#plain > li", ["b4", "c3", "a2", "b1"])
    assert warnings(page) == []


def test_types_choose_what_is_shown_and_nothing_of_what_is_announced(
    page: Page, service: Gunicorn, channel: str
) -> None:
    show(
        page,
        "<ul id=list></ul><ul id=rows></ul><p id=text></p><p id=fixed></p>",
        script(service, channel, into="#fixed", template="Paid!", types="paid"),
        script(service, channel, into="#list", types="paid refunded"),
        script(service, channel, into="#rows", template="{id}", key="{id}", types="paid, refunded", remove="deleted"),
        script(service, channel, into="#text", types="message"),
    )
    for place, type in enumerate(["paid", "message", "refunded", "toString", "deleted", "paid"]):
        publish(service, channel, {"id": place % 4}, type=type)
    wait_for_texts(page, "#list > li", ['{"id":0}', '{"id":2}', '{"id":1}'])
    wait_for_texts(page, "#rows > li", ["2", "1"])
    wait_for_texts(page, "#text", ['{"id":1}'])
    wait_for_texts(page, "#fixed", ["Paid!"])
    assert page.value("of('tag 0', 'sse:message')") == page.value("of('document', 'sse:message')") == ['{"id":1}']
    assert len(page.value("of('tag 0', 'sse:paid')")) == 2
    assert warnings(page) == []


def test_an_event_that_has_nothing_of_the_template_changes_nothing_and_that_is_told_once(
    page: Page, service: Gunicorn, channel: str
) -> None:
    show(
        page,
        f"<ul id=list></ul><div id=box></div><p id=text></p><ul id=keyed></ul><ul id=fixed></ul>{ROW}",
        script(service, channel, into="#list", template="{name}: {user.name}"),
        script(service, channel, into="#box", template="#row"),
        script(service, channel, into="#text", template="{name}"),
        script(service, channel, into="#keyed", template="{type} {name}", key="{id}{name}"),
        script(service, channel, into="#fixed", template="One more"),
    )
    page.run("document.querySelector('#row').content.querySelector('p').lastChild.previousSibling.nodeValue = ' '")
    publish(service, channel, {"id": 1, "name": "Ada"})
    for data in ({"other": 1}, "no JSON", [7], {"user": {"nobody": 1}}, {"id": 2}, {"id": 2, "name": ""}, 7):
        publish(service, channel, data)
    publish(service, channel, {"id": 3, "name": None})
    wait_for_texts(page, "#fixed > li", ["One more"] * 9)
    wait_for_texts(page, "#list > li", ["Ada: ", ": ", ": "])
    wait_for_texts(page, "#box b", ["Ada", "", ""])
    wait_for_texts(page, "#text", [""])
    wait_for_texts(page, "#keyed > li", ["message Ada", "message ", "message "])
    none = "this event lacks it, so it is not shown: if other types come here, list yours in data-types"
    assert sorted(warnings(page)) == sorted([
        f"SSE: data-template is '{{name}}: {{user.name}}': {none}",
        f"SSE: data-template is '#row': {none}",
        f"SSE: data-template is '{{name}}': {none}",
        f"SSE: data-key is '{{id}}{{name}}': {none}",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("key", "data"),
    [("{id}", {"number": 7}), ("{type}:{id}", {"number": 7}), ("{id}", {"id": None}), ("{id}", {"id": ""}),
     ("{id}", "plain"), ("{user.id}", {"user": 7}), ("{channel}{id}", [7])],
)  # fmt: skip
def test_an_event_without_the_key_is_not_shown_and_the_console_says_why(
    page: Page, service: Gunicorn, channel: str, key: str, data: Any
) -> None:
    show(page, "<ul id=list><li>old</li></ul>", script(service, channel, into="#list", template="{type}", key=key))
    for _ in range(2):
        publish(service, channel, data)
    page.wait("of('tag 0', 'sse:message').length === 2")
    assert texts(page, "#list > li") == ["old"]
    fault = "this event lacks it, so it is not shown: if other types come here, list yours in data-types"
    assert warnings(page) == [f"SSE: data-key is '{key}': {fault}"]


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"order": "up"}, "data-order is 'up': give append or prepend"),
        ({"order": "Prepend "}, "data-order is 'Prepend ': give append or prepend"),
        ({"keep": "ten"}, "data-keep is 'ten': give a number such as 100"),
        ({"keep": "-1"}, "data-keep is '-1': give a number such as 100"),
        ({"into": "#1a"}, "data-into is '#1a': it finds no element"),
        ({"key": "{id}"}, "data-key is '{id}': give data-template as well"),
        ({"key": "id", "template": "{id}"}, "data-key is 'id': give a {member} of the data"),
        ({"remove": "deleted"}, "data-remove is 'deleted': give data-key as well"),
        ({"into": "", "template": "{id}"}, "data-template is '{id}': give data-into as well"),
        ({"into": "", "types": "paid"}, "data-types is 'paid': give data-into as well"),
    ],
)
def test_a_wrong_attribute_is_told_with_its_value_and_the_remedy(
    page: Page, service: Gunicorn, channel: str, attributes: dict[str, str], fault: str
) -> None:
    show(page, "<ul id=list></ul>", script(service, channel, **{"into": "#list", **attributes}))
    publish(service, channel, {"id": "announced all the same"})
    page.wait("of('document', 'sse:message').length === 1 && warnings.length")
    assert warnings(page) == [f"SSE: {fault}"]
    assert page.value("seen.errors") == []


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
    """An origin whose page `/slow` is sent in parts, each when the test allows it."""

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
        f'{tag}data-into="#rows" data-template="#row" data-key="{{id}}" data-order="prepend"></script>',
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
        wait(rows=["2 is 5", "1 is 4", "0 is 6"], made=[])
        origin.gates[3].set()
        wait(made=seven)

        for name in names:
            origin.command(name, "move")
        wait(removed="closed")
        publish(service, channel, {"id": 1, "n": 7})
        rows = ["2 is 5", "1 is 7", "0 is 6"]
        wait(list=[*seven, "7"], text=["6"], rows=rows, made=[*seven, "7"], feeds=[True] * 3)
        assert logs == [{"errors": [], "warnings": [], "announced": list(range(8))} for _ in names]


# The global, and the end of a tag

OTHER = "function SSE(url) { this.url = url; } SSE.version = 7;"  # as npm's sse.js makes one


def load(page: Page, service: Gunicorn, channel: str = "") -> None:
    """Run the script in the page once more, by a tag that is added."""
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


def test_a_tag_may_stand_in_what_it_fills(page: Page, service: Gunicorn, channel: str) -> None:
    into = script(service, channel, into="#list", template="#row", keep="2")
    keyed = script(service, channel, into="#keyed", template="{id}", key="{id}", keep="2", order="prepend")
    show(
        page,
        f"<p id=text>old {script(service, channel, into='#text')}</p>",
        f"<div id=list>{into}{ROW}</div>",
        f"<ul id=keyed>{keyed}<li class=head>Orders</li><li data-key=old>old</li></ul>",
    )
    for number in range(5):
        publish(service, channel, {"id": number, "name": number, "state": "new"})
    wait_for_texts(page, "#list > p > b", ["3", "4"])
    wait_for_texts(page, "#text", ['{"id":4,"name":4,"state":"new"}'])
    wait_for_texts(page, "#keyed > li", ["Orders", "4", "3"])
    time.sleep(2.5)  # more than it takes to judge a tag that is away
    assert page.value("tags().length === 3 && allLive()")
    assert warnings(page) == page.value("seen.errors") == []


def test_the_documented_example_of_rows_works_as_printed(page: Page, service: Gunicorn, channel: str) -> None:
    docs = (ROOT / "docs/embedding.md").read_text()
    (html,) = re.findall(r"### Rows that change\n.*?```html\n(.*?)```", docs, re.DOTALL)
    for printed, own in (
        ("https://push.example", service.url),
        ('s="orders"', f's="{channel}"'),
        ('=== "orders"', f'=== "{channel}"'),
    ):
        assert html.count(printed) == 1
        html = html.replace(printed, own)
    publish(service, channel, {"id": 7, "customer": {"name": "Ada Lovelace"}, "state": "sent"}, type="paid")
    show(page, html)
    wait_for_texts(page, "#orders td", ["7", "Ada Lovelace", "sent"])
    publish(service, channel, {"id": 8, "customer": {"name": "Grace Hopper"}, "state": "new"}, type="created")
    publish(service, channel, {"id": 7, "customer": {"name": "Ada Lovelace"}, "state": "paid"}, type="paid")
    publish(service, channel, {"id": 9, "customer": {"name": "Joan Clarke"}, "state": "new"}, type="created")
    publish(service, channel, {"id": 7, "note": "seen"}, type="noted")
    publish(service, channel, {"id": 8}, type="deleted")
    wait_for_texts(page, "#orders td", ["9", "Joan Clarke", "new", "7", "Ada Lovelace", "paid"])
    page.run(
        """
        window.fetched = 0;
        window.fetch = function () {
          fetched += 1;
          if (fetched === 1) document.dispatchEvent(new CustomEvent("sse:paid", {detail: {}}));
          var state = fetched === 1 ? "late" : "paid";
          return Promise.resolve(new Response("<tr data-key=9><td>9<td>Joan<td>" + state + "</tr>"));
        };
        document.dispatchEvent(new CustomEvent("sse-reset", {detail: {channel: "another"}}));
        document.dispatchEvent(new CustomEvent("sse-reset", {detail: {channel: arguments[0]}}));""",
        channel,
    )
    wait_for_texts(page, "#orders td", ["9", "Joan", "paid"])
    assert page.value("fetched") == 2
    publish(service, channel, {"id": 9, "customer": {"name": "Joan Clarke"}, "state": "refunded"}, type="refunded")
    wait_for_texts(page, "#orders td", ["9", "Joan Clarke", "refunded"])
    assert warnings(page) == page.value("seen.errors") == []


def test_a_page_that_turbo_puts_in_place_shows_each_event_once(
    page: Page, pages: Pages, service: Gunicorn, channel: str
) -> None:
    turbo = (ROOT / "tests/node_modules/@hotwired/turbo/dist/turbo.es2017-umd.js").read_text()
    head = f'<head><script src="/embed.js"></script>{LISTENING}<script>{turbo}</script></head>'
    body = "<body><h1>{}</h1><ul id=list></ul>" + script(service, channel, into="#list") + "</body>"
    second = pages.write(head + body.format("Second"))
    page.show(head + body.format("First"))
    page.wait("allLive()")
    publish(service, channel, "a")
    wait_for_texts(page, "#list > li", ["a"])
    page.run("window.old = tags()[0].sse; Turbo.visit(arguments[0])", second)
    page.wait("document.querySelector('h1').textContent === 'Second' && allLive() && tags()[0].sse !== old")
    publish(service, channel, "b")
    wait_for_texts(page, "#list > li", ["b"])
    page.wait("old.state === 'closed'")
    publish(service, channel, "c")
    wait_for_texts(page, "#list > li", ["b", "c"])
    assert page.value("of('document', 'sse:message')") == ["a", "b", "c"]
    assert page.value("tags().length") == 1
