"""The documentation as it is built: each link leads to its target, and the search finds a fault by what people type."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.servers import ROOT, HttpServer, free_port

SEARCHES = {
    # As the words of a symptom,
    "events arrive all at once": "buffered",
    "connection closes after 60 seconds": "idle_cutoff",
    "CORS error on EventSource": "cors_missing",
    "504 on the stream": "gateway",
    "works locally, not on Cloud Run": "works_locally",
    "nothing arrives until the end": "buffered",
    "SSE disconnects after exactly 5 minutes": "request_timeout",
    "works in development but not when deployed": "works_locally",
    "long polling times out": "poll_cut",
    "only one client can connect": "few_streams",
    "background threads do not run on Cloud Run": "frozen",
    "users stay online after closing the tab": "leaving_unnoticed",
    "a user sees the events of another user": "shared",
    "EventSource limit of 6 connections": "http1",
    "Last-Event-ID is not sent": "last_event_id_stripped",
    "token not valid yet": "clock_skew",
    "429 Too Many Requests": "forwarded_untrusted",
    "gzip event stream": "compressed",
    # and as the browser's console has them.
    "blocked by CORS policy": "cors_missing",
    "contains multiple values": "cors_doubled",
    "net::ERR_INCOMPLETE_CHUNKED_ENCODING": "idle_cutoff",
    'EventSource\'s response has a MIME type ("text/html") that is not "text/event-stream"': "not_ours",
    "net::ERR_CONNECTION_REFUSED": "unreachable",
}
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"] + "/"
"""The address of the repository, to which the site's links to other files lead."""
LOOSE = [
    "eventsource nginx buffering",
    "flask sse timeout cloud run",
    "sse 60 seconds nginx",
    "504 gateway eventsource",
    "cors eventsource cookies",
    "gunicorn stream hangs",
    "heroku sse 55 seconds",
    "cloudflare sse",
    "firebase hosting stream",
    "proxy buffering apache",
    "reconnect lost events",
    "docker sse not working",
]
"""Words in any order, as people type them into a search box."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--conf-dir", "docs", "."]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, timeout=120, capture_output=True)
    return folder


class Page(HTMLParser):
    """The links and the ids of a page, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if name := given.get("id"):
            self.ids.append(name)
        for link in (given.get("href"), given.get("src")):
            if link and tag in ("a", "img", "link", "script"):
                self.links.append(link)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_each_link_of_the_site_leads_to_a_file_and_to_an_anchor_of_it(site: Path, pages: dict[Path, Page]) -> None:
    checked = leaves = 0
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if ":" in address:
                assert re.match(r"(https?|mailto|data):", address), (path, link)
                assert not address.startswith(SOURCE) or (ROOT / address.removeprefix(SOURCE)).exists(), (path, link)
                leaves += address.startswith(SOURCE)
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
            assert target.exists(), (path, link)
            checked += 1
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].ids, (path, link)
    assert checked > 1000
    assert leaves > 20
    assert (site / "index.html").read_text().count("docs/index.html") == 2


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HttpServer(("127.0.0.1", free_port()), partial(Quiet, directory=str(site))) as server:
        yield f"http://127.0.0.1:{server.server_port}"


RESULTS = """
const done = arguments[arguments.length - 1];
const until = Date.now() + 25000;
(function look() {
  const links = [...document.querySelectorAll("#search-results li > a")].map((link) => link.getAttribute("href"));
  const told = document.querySelector(".search-summary");
  if (links.length >= 3 || (told && /finished|did not match/.test(told.textContent)) || Date.now() > until) {
    done(links);
  } else {
    setTimeout(look, 20);
  }
})();
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    driver.set_script_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def found(browser: webdriver.Chrome, address: str, words: str) -> list[str]:
    """Return the first links that the search page shows for some words."""
    browser.get(f"{address}/search.html?q={quote(words)}")
    links: list[str] = browser.execute_async_script(RESULTS)
    return links


def sections(page: Page) -> dict[str, str]:
    """Return the fault at each anchor of the page of faults: the one whose own anchor stands above."""
    names = set(re.findall(r'<a id="(\w+)"', (ROOT / "docs" / "troubleshooting.md").read_text()))
    above, leads = "", {}
    for name in page.ids:
        above = name if name in names else above
        leads[name] = above
    return leads


@pytest.mark.parametrize("words", SEARCHES)
def test_the_words_of_a_fault_find_its_section_first(
    words: str, browser: webdriver.Chrome, address: str, site: Path, pages: dict[Path, Page]
) -> None:
    leads = sections(pages[site / "docs" / "troubleshooting.html"])
    first, *_ = found(browser, address, words)
    page, anchor = urldefrag(first)
    assert (page, leads.get(anchor)) == ("docs/troubleshooting.html", SEARCHES[words])


@pytest.mark.parametrize("words", LOOSE)
def test_words_in_any_order_lead_to_the_page_of_faults_or_to_a_recipe(
    words: str, browser: webdriver.Chrome, address: str
) -> None:
    links = found(browser, address, words)[:3]
    assert [link for link in links if re.match("docs/(troubleshooting|cloudflare-firebase)|deploy/", link)], links
