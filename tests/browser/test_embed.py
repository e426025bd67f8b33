"""The embed script in a page of another origin, by tag and by hand.

It works under a strict content security policy, and puts the text of events into the page as text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from sse.cli import cli
from tests.browser.embedding_page import Page, Pages, browser, channel, page, pages, script, serve, service
from tests.conftest import MakeApp
from tests.proxies import TcpProxy
from tests.publishing import publish
from tests.servers import Gunicorn, free_port, wait_until

__all__ = ["browser", "channel", "page", "pages", "serve", "service"]

EVIL = '<script>ran = 1</script><img src=x onerror="ran = 2"><svg onload="ran = 3"></svg>&lt;b&gt; $& $1 {type}'
NO_ANSWER = "no answer, or none for this origin"


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., Gunicorn]) -> Gunicorn:
    return serve("tests.browser.apps.guarded:application", public="")


# By tag


def test_one_tag_works_under_a_strict_policy_and_leaves_one_global(
    page: Page, pages: Pages, service: Gunicorn, channel: str
) -> None:
    policy = (
        f"default-src 'none'; script-src {pages.url}/embed.js {service.url}/sse/; connect-src {service.url}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    [first] = publish(service, channel, "before", type="created")
    page.show(f"<p id=price>none</p>{script(service, channel, into='#price', replay='1')}", policy)
    page.wait("allLive() && seen.events.length === 1")
    assert page.text("#price") == "before"
    [second] = publish(service, channel, {"price": 7})
    page.wait("seen.events.length === 2")
    assert page.text("#price") == '{"price":7}'

    plain, parsed = page.value("seen.events")
    assert plain == {"channel": channel, "id": first, "type": "created", "data": "before", "json": None}
    assert page.value("seen.events[0].json === undefined")  # it is no JSON
    assert parsed == {
        "channel": channel, "id": second, "type": "message", "data": '{"price":7}', "json": {"price": 7}
    }  # fmt: skip
    assert page.value("seen.resets") == []
    states = page.value("seen.states")
    assert [state["state"] for state in states][-1] == "live"
    assert {state["state"] for state in states} <= {"connecting", "live"}
    assert states[-1] | {"reason": ""} == {
        "state": "live", "reason": "", "transport": "eventsource", "shared": True, "tabs": 1, "channels": [channel]
    }  # fmt: skip
    assert all(state["reason"] for state in states)

    added = set(page.value("Object.getOwnPropertyNames(window)")) - set(page.value("seen.globals"))
    assert added - {"ret_nodes"} == {"SSE"}  # the other is WebDriver's
    assert page.value("seen.violations") == []
    assert page.value("seen.errors") == []

    # The policy is in force, and violations are seen.
    page.run("""
        var mark = document.createElement("img"), inline = document.createElement("b");
        mark.src = "/x.png";
        try { inline.innerHTML = "<i>x</i>"; } catch (error) { seen.errors.push(error.name); }""")
    page.wait("seen.violations.length === 2")
    assert page.value("seen.errors") == ["TypeError"]


def test_markup_in_an_event_is_text_wherever_it_is_put(page: Page, service: Gunicorn, channel: str) -> None:
    kinds = {
        "plain": "<p id=plain></p>",
        "list": "<ul id=list></ul>",
        "words": "<p id=words></p>",
        "items": "<ol id=items></ol>",
        "rows": "<table><tbody id=rows></tbody></table>",
    }
    row = (
        "<template id=row><tr title='{name}'><td>{name}</td><td><b>{user.name}</b> of {user.of.0}</td>"
        "<td>{none}{user.none.none}{constructor}{__proto__}{data.x}</td><td>{type}</td></tr></template>"
    )
    page.show(
        "".join(kinds.values()) + row
        + script(service, channel, into="#plain")
        + script(service, channel, into="#list")
        + script(service, channel, into="#words", template="{type}: {name}, {user.name}|{none}|{zero}{no}{null}|{user}")
        + script(service, channel, into="#items", template="{channel} {name}")
        + script(service, channel, into="#rows", template="#row")
    )  # fmt: skip
    page.wait("allLive()")
    elements = page.value("document.querySelectorAll('*').length")
    type = "<img/src=x/onerror=ran=4>"
    data = {
        "name": EVIL, "user": {"name": EVIL, "of": ["<hr>"]}, "zero": 0, "no": False, "null": None, "channel": "<hr>"
    }  # fmt: skip
    publish(service, channel, data, type=type)
    page.wait("document.querySelector('#rows').children.length === 1 && document.querySelector('#plain').textContent")
    page.wait("document.querySelector('#list').children.length === 1 && document.querySelector('#words').textContent")
    page.wait("document.querySelector('#items').children.length === 1")
    compact = json.dumps(data, separators=(",", ":"))
    assert page.text("#plain") == page.text("#list > li") == compact
    user = json.dumps(data["user"], separators=(",", ":"))
    assert page.text("#words") == f"{type}: {EVIL}, {EVIL}||0false|{user}"
    assert page.text("#items > li") == f"<hr> {EVIL}"
    cells = page.value("Array.from(document.querySelectorAll('#rows td')).map(function (td) {return td.textContent})")
    assert cells == [EVIL, f"{EVIL} of <hr>", "", type]
    assert page.value("document.querySelector('#rows tr').title") == "{name}"  # attributes are the author's

    publish(service, channel, EVIL)  # not JSON
    page.wait("document.querySelector('#list').children.length === 2")
    page.wait("document.querySelector('#plain').textContent.charAt(0) === '<'")
    assert page.text("#plain") == EVIL
    time.sleep(0.3)  # for an image to fail, if there were one
    # Two items and one, and a row of four cells and a <b>: nothing else has come to be.
    assert page.value("document.querySelectorAll('*').length") == elements + 2 + 1 + 6
    assert page.value("document.querySelectorAll('img, svg, hr').length") == 0
    assert page.value("[ran, seen.errors]") == [0, []]


def test_a_list_keeps_the_newest_items(page: Page, service: Gunicorn, channel: str) -> None:
    row = "<template id=row><p>{data}</p></template><p id=one hidden>{data}!</p>"
    page.show(
        "<script>var warnings = []; console.warn = function (text) { warnings.push(text); };</script>"
        f"<ul id=list></ul><div id=box></div><div id=other></div><ol id=long></ol>{row}"
        + script(service, channel, into="#list", keep="3")
        + script(service, channel, into="#box", template="#row", keep="2")
        + script(service, channel, into="#other", template="#row", keep="1")
        + script(service, channel, into="#long")
        + script(service, channel, into="#nowhere")
        + script(service, channel, into="#list", template="#nothing")
    )
    page.wait("allLive()")
    for number in range(105):
        publish(service, channel, str(number))

    def texts(selector: str) -> Any:
        code = "return Array.from(document.querySelectorAll(arguments[0])).map(function (e) {return e.textContent})"
        return page.run(code, selector)

    wait_until(lambda: texts("#long > li") == [str(number) for number in range(5, 105)], what="the last hundred")
    wait_until(lambda: texts("#list > li") == ["102", "103", "104"], what="the last three")
    wait_until(lambda: texts("#box > p") == ["103", "104"], what="the last two")
    wait_until(lambda: texts("#other > p") == ["104"], what="the last one")
    assert page.value("seen.errors") == []
    assert sorted(page.value("warnings")) == [
        "SSE: data-into is '#nowhere': it finds no element",
        "SSE: data-template is '#nothing': it finds no element",
    ]


def test_tags_that_are_added_later_begin_with_start(page: Page, service: Gunicorn, channel: str) -> None:
    page.show(f"<p id=a></p>{script(service)}")
    page.wait("typeof SSE === 'function'")
    page.run(
        """
        var tag = document.createElement("script");
        tag.type = "text/plain";
        tag.setAttribute("data-url", arguments[0]);
        tag.setAttribute("data-channels", arguments[1]);
        tag.setAttribute("data-into", "#a");
        document.body.appendChild(tag);
        SSE.start();
        SSE.start();""",
        f"{service.url}/sse",
        channel,
    )
    page.wait("allLive()")
    publish(service, channel, "hello")
    page.wait("document.querySelector('#a').textContent === 'hello'")
    assert len(page.value("seen.events")) == 1
    # Loaded twice, it is one script.
    page.run("""
        var tag = document.createElement("script");
        window.first = SSE;
        window.loadedAgain = false;
        tag.onload = function () { loadedAgain = true; };
        tag.src = arguments[0];
        document.body.appendChild(tag);""",
             f"{service.url}/sse/sse.js?again")  # fmt: skip
    page.wait("document.querySelector('script[src$=again]') && loadedAgain && SSE === first")
    publish(service, channel, "again")
    page.wait("seen.events.length === 2")


def test_a_tag_that_is_wrong_stops_no_other(page: Page, service: Gunicorn, channel: str) -> None:
    page.show(script(service, channels="") + script(service, channel))
    page.wait("tags()[1].sse && tags()[1].sse.state === 'live'")
    publish(service, channel, "hello")
    page.wait("seen.events.length === 1")
    assert page.value("tags()[0].sse === undefined && seen.errors.length > 0")


def test_a_text_may_begin_with_a_hash_and_code_in_a_template_is_left_alone(
    page: Page, service: Gunicorn, channel: str
) -> None:
    page.show(
        "<p id=words></p><div id=rows></div>"
        '<template id=row><div><style>{name}</style><script>ran = "{name}"</script><b>{name}</b></div></template>'
        + script(service, channel, into="#words", template="#{id}: {name}")
        + script(service, channel, into="#rows", template="#row")
    )
    page.wait("allLive()")
    name = '"; ran = "by an event'
    publish(service, channel, {"id": 7, "name": name})
    page.wait("document.querySelector('#rows b')")
    page.wait("document.querySelector('#words').textContent")
    assert page.text("#words") == f"#7: {name}"
    assert page.text("#rows b") == name
    assert page.text("#rows style") == "{name}"
    assert page.value("[ran, seen.errors]") == ["{name}", []]


# From other origins


def test_with_any_origin_allowed_a_page_reads_without_credentials_only(
    page: Page, serve: Callable[..., Gunicorn], channel: str
) -> None:
    anybody = serve(origins="*")
    page.show(script(anybody, channel))
    page.wait("allLive()")
    publish(anybody, channel, "hello")
    page.wait("seen.events.length === 1")
    page.show(script(anybody, channel, credentials="", replay="1"))
    page.wait("seen.states.some(function (told) {return told.state === 'waiting'})")
    state = page.value("tags()[0].sse")
    assert (state["state"] in {"waiting", "connecting"}, page.value("seen.events")) == (True, [])
    assert NO_ANSWER in page.value("seen.states.map(function (told) {return told.reason})")


def test_a_page_of_an_origin_that_is_not_listed_gets_nothing_and_is_told_why(
    page: Page, service: Gunicorn, channel: str
) -> None:
    publish(service, channel, "secret")
    with Pages() as stranger:
        page.show(script(service, channel, replay="1"), pages=stranger)
        page.wait("seen.states.some(function (told) {return told.state === 'waiting'})")
        time.sleep(1)
        assert page.value("seen.events") == []
        states = page.value("seen.states")
        assert {state["state"] for state in states} == {"connecting", "waiting"}
        assert {state["reason"] for state in states if state["state"] == "waiting"} == {NO_ANSWER}
        page.run("location.href = 'about:blank'")


def test_a_page_without_an_origin_of_its_own_is_served_alone(
    page: Page, serve: Callable[..., Gunicorn], channel: str
) -> None:
    anybody = serve(origins="*")
    page.show(script(anybody, channel), "sandbox allow-scripts")  # no localStorage, no locks
    page.wait("tags()[0].sse.state === 'polling'")  # the page does not know how many others stream
    assert page.value("[self.origin, tags()[0].sse.shared, tags()[0].sse.tabs]") == ["null", False, 1]
    publish(anybody, channel, "hello")
    page.wait("seen.events.length === 1")
    assert page.value("seen.errors") == []


def test_cookies_are_sent_only_where_the_tag_says_so(page: Page, guarded: Gunicorn) -> None:
    page.show("")
    page.run("document.cookie = 'user=ada; path=/'")
    try:
        page.show(script(guarded, "own/ada", credentials=""))
        page.wait("allLive()")
        publish(guarded, "own/ada", "for ada")
        page.wait("seen.events.length === 1")
        assert page.value("seen.events[0].data") == "for ada"

        page.show(script(guarded, "own/ada", replay="1"))
        page.wait("tags()[0].sse.state === 'closed'")
        assert page.value("tags()[0].sse.reason").startswith("403 not allowed to read: own/ada")
        assert page.value("seen.states[seen.states.length - 1].reason").startswith("403 ")
        assert page.value("seen.events") == []
        assert page.value("seen.states.filter(function (told) {return told.state === 'closed'}).length") == 1

        page.show(script(guarded, "own/bob", credentials="", replay="1"))  # another one's
        page.wait("tags()[0].sse.state === 'closed'")
        assert page.value("tags()[0].sse.reason").startswith("403 ")
    finally:
        page.run("document.cookie = 'user=; path=/; max-age=0'")


def test_the_printed_tag_holds_the_script_to_its_hash(
    page: Page, service: Gunicorn, channel: str, make_app: MakeApp
) -> None:
    arguments = ["embed", "--url", f"{service.url}/sse", "--channel", channel]
    printed = make_app().test_cli_runner().invoke(cli, arguments).stdout
    assert 'integrity="sha384-' in printed
    page.show(printed)
    page.wait("allLive()")
    publish(service, channel, "hello")
    page.wait("seen.events.length === 1")
    page.show(printed.replace("sha384-", "sha384-AAAA"))
    time.sleep(0.5)
    assert page.value("typeof SSE") == "undefined"  # the browser has refused it


# Code that has been written for EventSource


def follow_both(page: Page, service: Gunicorn, url: str) -> None:
    """Run the same page script with the browser's EventSource and with the embed script's."""
    page.show(f'{script(service)}<script src="/embed_source.js" defer></script>')
    page.wait("typeof follow === 'function' && typeof SSE === 'function'")
    page.run(
        """
        window.logs = {native: [], ours: []};
        window.native = follow(EventSource, arguments[0], logs.native);
        window.ours = follow(SSE.EventSource, arguments[0], logs.ours);""",
        url,
    )


def test_a_script_for_eventsource_runs_unchanged(page: Page, service: Gunicorn, channel: str) -> None:
    other = f"{channel}/other"
    with TcpProxy(urlsplit(service.url).port or 0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/sse/stream?channel={quote(channel)}&channel={quote(other)}"
        follow_both(page, service, url)
        page.wait("native.readyState === 1 && ours.readyState === 1")

        def both_have(data: str) -> None:
            try:
                for who in ("native", "ours"):
                    page.wait(f"logs.{who}.indexOf('second listener: {data}') >= 0")
            except AssertionError as error:
                error.add_note(f"logs: {page.value('logs')}")
                raise

        for place, data in enumerate(["one", "throw", "", "two\nlines\n", "größe 猫𝄞", {"id": 7}, " spaces "]):
            publish(service, (channel, other)[place % 2], data)
            publish(service, (channel, other)[place % 3 % 2], data, type="created")
            publish(service, channel, "no listener", type="nobody")
        publish(service, channel, "before")
        both_have("before")
        assert proxy.cut(reset=True) >= 2
        publish(service, other, "meanwhile")
        publish(service, channel, "after")
        both_have("after")
        both_have("meanwhile")
        for who in ("native", "ours"):
            page.wait(f"{who}.readyState === 1")
        publish(service, channel, "end")
        both_have("end")

        logs = page.value("logs")

        # Between channels there is no order.
        def of_channels(log: list[Any]) -> list[list[Any]]:
            named = [name + "=" for name in (channel, other)]
            return [[entry for entry in log if isinstance(entry, dict) and entry["first"].startswith(name)]
                    for name in named]  # fmt: skip

        def positions(entry: dict[str, Any]) -> dict[str, Any]:
            return entry | {"places": len(entry["places"])}

        native, ours = ([list(map(positions, part)) for part in of_channels(logs[who])] for who in ("native", "ours"))
        assert ours == native
        assert len(native[0]) + len(native[1]) == 2 * 7 + 4
        others = [[entry for entry in logs[who] if not isinstance(entry, dict)] for who in ("native", "ours")]
        assert sorted(map(repr, others[1])) == sorted(map(repr, others[0]))
        assert "error 0" in others[0]
        assert others[0].count("open 1") == 2
        assert page.value("seen.errors").count("Uncaught Error: thrown by a handler") == 2

        # The id of the last event is good for a native EventSource.
        last = [entry for entry in logs["ours"] if isinstance(entry, dict)][-1]
        page.run(
            """
            window.resumed = [];
            window.third = new EventSource(arguments[0]);
            third.onmessage = function (event) { resumed.push(event.data); };
            third.addEventListener("sse.reset", function (event) { resumed.push("reset"); });""",
            f"{url}&last_event_id={quote('~'.join(last['places']))}",
        )
        page.run("ours.close(); native.close()")
        assert page.value("[ours.readyState, native.readyState]") == [2, 2]
        publish(service, channel, "closed")
        page.wait("resumed.length > 0")
        time.sleep(0.5)
        assert page.value("resumed") == ["closed"]
        assert page.value("[logs.native, logs.ours].map(JSON.stringify).join().indexOf('closed')") == -1
        assert page.value("[ours.readyState, native.readyState]") == [2, 2]
        page.run("third.close()")


def test_an_eventsource_is_told_of_a_reset_as_a_native_one(page: Page, service: Gunicorn, channel: str) -> None:
    publish(service, channel, "before")
    follow_both(page, service, f"{service.url}/sse/stream?channel={channel}&last_event_id={channel}%3D77-1")
    page.wait("[native, ours].every(function (source) {return source.readyState === 1})")
    publish(service, channel, "end")
    for who in ("native", "ours"):
        page.wait(f"logs.{who}.indexOf('second listener: end') >= 0")
    logs = page.value("logs")
    assert logs["ours"] == logs["native"]
    assert [entry["type"] for entry in logs["native"] if isinstance(entry, dict)] == ["sse.reset", "message"]


def test_an_eventsource_that_is_refused_is_closed_as_a_native_one(page: Page, guarded: Gunicorn) -> None:
    follow_both(page, guarded, f"{guarded.url}/sse/stream?channel=own/nobody")
    page.wait("native.readyState === 2 && ours.readyState === 2")
    time.sleep(0.5)
    logs = page.value("logs")
    assert logs["ours"] == logs["native"]
    assert logs["native"][-2:] == ["error 2", "listener of error"]


# Addresses with parameters


@pytest.mark.parametrize("make", ["SSE(URL + QUERY, {channels: [CHANNEL]})",
                                  "new SSE.EventSource(URL + '/stream' + QUERY + '&channel=' + CHANNEL)"])  # fmt: skip
def test_further_parameters_of_an_address_go_with_every_request(
    page: Page, service: Gunicorn, channel: str, make: str
) -> None:
    by_hand(page, service)
    page.new_requests(service.url)
    code = make.replace("URL", "service").replace("QUERY", "arguments[0]").replace("CHANNEL", "arguments[1]")
    page.run(f"window.feed = {code}", "?tenant=7&odd=%zz", channel)  # which is no escape
    page.wait("feed.state === 'live' || feed.readyState === 1")
    asked = [urlsplit(url) for url in page.new_requests(service.url)]
    assert [url.path for url in asked] == ["/sse/poll", "/sse/stream"]
    for url in asked:
        assert f"channel={quote(channel, safe='')}&" in url.query
        assert {"tenant=7", "odd=%zz"} <= set(url.query.split("&"))


# By hand


def by_hand(page: Page, service: Gunicorn) -> None:
    page.show(f'<script src="{service.url}/sse/sse.js" defer></script>')
    page.wait("typeof SSE === 'function'")
    page.run("window.service = arguments[0]; window.log = [];", f"{service.url}/sse")


def test_listeners_are_added_and_removed_and_one_that_throws_stops_no_other(
    page: Page, service: Gunicorn, channel: str
) -> None:
    by_hand(page, service)
    page.run(
        """
        function keep(name) { return function (event) { log.push([name, event.data]); }; }
        window.twice = keep("removed");
        window.feed = SSE(service, {channels: arguments[0]});
        feed.on("created", fail)
          .on("created", keep("created")).on("created", twice).on("sse.event", keep("every"))
          .on("toString", keep("toString"));
        feed.off("created", twice).off("created", keep("never added")).off("unknown", twice);
        window.other = SSE(service + "/", {channels: arguments[0] + " " + arguments[0]});""",
        channel,
    )
    page.wait("feed.state === 'live' && other.state === 'live'")
    for data, type in (("a", "created"), ("b", "message"), ("c", "toString"), ("d", "created")):
        publish(service, channel, data, type=type)
    page.wait("log.length === 7")
    assert sorted(page.value("log")) == sorted(
        [["every", "a"], ["created", "a"], ["every", "b"], ["every", "c"], ["toString", "c"], ["every", "d"],
         ["created", "d"]]
    )  # fmt: skip
    assert [data for name, data in page.value("log") if name == "every"] == ["a", "b", "c", "d"]
    assert page.value("seen.errors") == ["Uncaught Error: thrown by a listener"] * 2
    told = page.value("[feed.state, feed.transport, feed.shared, feed.tabs]")
    assert told == ["live", "eventsource", True, 2]
    assert page.value("feed.lastEventId.split('=')[0]") == channel


def test_channels_may_be_named_like_the_members_of_every_object(page: Page, service: Gunicorn, channel: str) -> None:
    by_hand(page, service)
    page.run(
        """
        window.feeds = [arguments[0], "constructor", "toString", "__proto__"].map(function (name) {
          var feed = SSE(service, {channels: [name]});
          feed.on("sse.event", function (event) { log.push(event.channel + "/" + event.json.hasOwnProperty("a")); });
          feed.on("sse.reset", function (reset) { log.push(reset); });
          return feed;
        });""",
        channel,
    )
    page.wait("feeds.every(function (feed) {return feed.state === 'live' && feed.tabs === 4})")
    time.sleep(1)  # for the union to settle
    page.new_requests(service.url)
    names = [channel, "constructor", "toString", "__proto__"]
    for name in names:
        publish(service, name, {"a": 1})
    page.wait("log.length >= 4")
    time.sleep(0.7)
    assert sorted(page.value("log")) == sorted(f"{name}/true" for name in names)
    assert page.new_requests(service.url) == []  # no feed had to make a request of its own
    page.run("feeds.forEach(function (feed) {feed.close()})")


def test_it_goes_on_from_a_last_event_id_that_is_given(page: Page, service: Gunicorn, channel: str) -> None:
    [start] = publish(service, channel, "a")
    publish(service, channel, "b")
    by_hand(page, service)
    page.run(
        """
        window.feed = SSE(service, {channels: [arguments[0]], lastEventId: arguments[1], replay: 9});
        feed.on("sse.event", function (event) { log.push(event.data); });
        feed.on("sse.reset", function (reset) { log.push(reset); });""",
        channel,
        start,
    )
    page.wait("feed.state === 'live'")
    assert page.value("log") == ["b"]
    page.run("feed.close(); log = []")
    page.run(
        """
        window.feed = SSE(service, {channels: [arguments[0]], lastEventId: arguments[0] + "=77-1"});
        feed.on("sse.reset", function (reset) { log.push(reset); });""",
        channel,
    )
    page.wait("feed.state === 'live'")
    (reset,) = page.value("log")
    assert (reset["channel"], reset["reason"], reset["missed"]) == (channel, "diverged", None)
    assert reset["id"] == page.value("feed.lastEventId")


def test_the_last_event_id_is_the_given_one_until_there_is_news_and_an_empty_entry_is_a_reset(
    page: Page, service: Gunicorn, channel: str
) -> None:
    other = f"{channel}/other"
    [start], [start_of_other] = publish(service, channel, "a"), publish(service, other, "b")
    publish(service, other, "c")
    by_hand(page, service)
    at_once = page.run(
        """
        var channels = arguments[0];
        window.feeds = arguments[1].map(function (id, index) {
          var feed = SSE(service, {channels: channels, lastEventId: id, share: false});
          feed.on("sse.event", function (event) { log.push([index, event.data]); });
          feed.on("sse.reset", function (reset) { log.push([index, reset.channel, reset.reason]); });
          return feed;
        });
        return feeds.map(function (feed) {return feed.lastEventId});""",
        [channel, other],
        [f"{start}~{start_of_other}", f"{channel}=~{start_of_other}"],
    )
    assert at_once[0] == f"{start}~{start_of_other}"
    assert start_of_other in at_once[1]
    page.wait("feeds.every(function (feed) {return feed.state === 'live'})")
    assert sorted(page.value("log")) == [[0, "c"], [1, "c"], [1, channel, "invalid"]]


@pytest.mark.parametrize(
    "arguments",
    ["", "undefined, {channels: ['a']}", "{}, {channels: ['a']}", "'/sse'", "'/sse', {}", "'/sse', {channels: []}",
     "'/sse', {channels: ' '}", "'/sse', {channels: null}", "'/sse', {channels: 7}", "'/sse', {channels: {a: 1}}",
     "'/sse', {channel: 'a'}"],
)  # fmt: skip
def test_wrong_options_are_refused_with_the_remedy(page: Page, service: Gunicorn, arguments: str) -> None:
    by_hand(page, service)
    error = page.value(
        f"(function () {{ try {{ SSE({arguments}); }} catch (error) {{ return [error instanceof TypeError, "
        "error.message]; } return [false, 'none']; })()"
    )
    assert error[0], error
    assert error[1].startswith("SSE: ")
    assert ": give " in error[1]


def test_a_closed_feed_asks_for_nothing_more(page: Page, service: Gunicorn, channel: str) -> None:
    by_hand(page, service)
    page.run(
        """
        window.feed = SSE(service, {channels: [arguments[0]]});
        feed.on("sse.state", function (told) { log.push(told.state); });
        feed.on("sse.event", function (event) { log.push(event.data); });""",
        channel,
    )
    page.wait("feed.state === 'live'")
    assert [urlsplit(url).path for url in page.new_requests(service.url)[1:]] == ["/sse/poll", "/sse/stream"]
    assert [urlsplit(url).path for url in page.requests.values()] == ["/sse/stream"]
    page.run("feed.close(); feed.close()")
    publish(service, channel, "too late")
    time.sleep(0.5)
    page.run("window.dispatchEvent(new Event('online'))")
    time.sleep(2.5)
    assert (page.new_requests(service.url), page.requests) == ([], {})
    assert page.value("[feed.state, feed.reason, feed.transport]") == ["closed", "closed by the page", ""]
    assert page.value("log") == ["connecting", "live", "closed"] or page.value("log")[-2:] == ["live", "closed"]
    assert page.value("log").count("closed") == 1


@pytest.mark.parametrize("share", [False, True])
def test_a_feed_may_be_closed_in_any_of_its_listeners(page: Page, service: Gunicorn, channel: str, share: bool) -> None:
    publish(service, channel, "replayed")
    by_hand(page, service)
    page.run(
        """
        var dead = arguments[1], channel = arguments[0], share = arguments[2];
        function closing(url, options, type, when) {
          var feed = SSE(url, {channels: [channel], share: share, replay: 1});
          feed.on(type, function (told) {
            if (when(told)) { feed.close(); log.push("closed"); }
          });
          feed.on("sse.event", function () {});
          feeds.push(feed);
        }
        window.feeds = [];
        closing(service, {}, "sse.state", function (told) { return told.state === "connecting"; });
        closing(service, {}, "sse.state", function (told) { return told.transport === "eventsource"; });
        closing(service, {}, "sse.state", function (told) { return told.state === "live"; });
        closing(service, {}, "sse.event", function () { return true; });
        closing(dead, {}, "sse.state", function (told) { return told.state === "waiting"; });""",
        channel,
        f"http://127.0.0.1:{free_port()}/sse",
        share,
    )
    page.wait("log.length === 5")
    time.sleep(0.5)
    page.new_requests("http://127.0.0.1")
    assert [url for url in page.requests.values() if "/sse/stream" in url or "/sse/poll" in url] == []
    time.sleep(3.5)  # more than the longest first wait
    assert page.new_requests("http://127.0.0.1") == []
    assert page.value("feeds.every(function (feed) {return feed.state === 'closed'})")


def test_polls_may_be_closed_in_a_listener_too(page: Page, service: Gunicorn, channel: str) -> None:
    by_hand(page, service)
    page.run(
        """
        var known = {at: Date.now(), until: Date.now() + 60000, why: "a test"};
        localStorage.setItem("sse:" + arguments[1], JSON.stringify(known));
        window.feed = SSE(service, {channels: [arguments[0]], share: false});
        feed.on("sse.state", function (told) {
          if (told.state !== "polling") return;
          log.push(told.reason);
          feed.close();
        });""",
        channel,
        urlsplit(service.url).netloc,
    )
    try:
        page.wait("log.length === 1")
        assert page.value("log") == ["a test"]
        time.sleep(0.5)
        page.new_requests(service.url)
        assert page.requests == {}
    finally:
        page.run("localStorage.clear()")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_final_and_says_which(page: Page, guarded: Gunicorn, status: int) -> None:
    by_hand(page, guarded)
    page.run(
        """
        window.warnings = [];
        console.warn = function (text) { warnings.push(text); };
        window.feed = SSE(service, {channels: ["answer/" + arguments[0]]});
        feed.on("sse.state", function (told) { log.push([told.state, told.reason]); });""",
        status,
    )
    page.wait("feed.state === 'closed'")
    assert page.value("warnings") == [f"SSE: {page.value('feed.reason')}"]
    page.new_requests(guarded.url)
    time.sleep(1.5)
    assert (page.new_requests(guarded.url), page.requests) == ([], {})
    assert page.value("feed.reason").startswith(f"{status} ")
    assert len(page.value("feed.reason")) > len("400 x")  # and in words
    assert [state for state, _ in page.value("log")] == ["connecting", "closed"]
    assert page.value("log[1][1]") == page.value("feed.reason")


def test_a_bad_parameter_and_a_wrong_address_are_told_in_words(page: Page, service: Gunicorn, channel: str) -> None:
    by_hand(page, service)
    page.run(
        """
        window.bad = SSE(service, {channels: [arguments[0]], replay: "soon"});
        window.astray = SSE(service + "/elsewhere", {channels: [arguments[0]]});""",
        channel,
    )
    page.wait("bad.state === 'closed'")
    assert page.value("bad.reason").startswith("400 replay is 'soon'")
    page.wait("astray.reason.indexOf('404 ') === 0 && /^(waiting|closed)$/.test(astray.state)")  # before it tries again


# As a module


def test_a_module_sets_no_global_and_starts_no_tag(page: Page, pages: Pages, service: Gunicorn, channel: str) -> None:
    publish(service, channel, "before")
    page.show(
        f"<script type=module>import SSE from '{service.url}/sse/sse.mjs';"
        f"document.feed = SSE('{service.url}/sse', {{channels: ['{channel}'], replay: 1}})"
        ".on('message', (event) => { document.heard = event.data; });</script>"
        f"<i data-channels='{channel}'></i><script type=none data-channels='{channel}'></script>"
    )
    page.wait("document.heard === 'before'")
    added = set(page.value("Object.getOwnPropertyNames(window)")) - set(page.value("seen.globals"))
    assert added - {"ret_nodes"} == set()
    assert page.value("document.querySelectorAll('script[data-channels]')[0].sse === undefined")
    page.wait("document.feed.state === 'live'")
