"""What one tag does in a page: it waits for elements, announces, keeps rows, and shares the page with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
