"""The scoreboard's page works in Chromium on platforms that cannot run here, each in a tab, all at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.platforms import CASES, SCOREBOARD, Case, Faults, Instance, Platform
from tests.servers import ROOT, HttpServer, wait_until

STATIC = ROOT / "examples/scoreboard/static"
ASLEEP = ("cloud run, with its own CPU", "cloud run, without an instance at rest")
CUT = "cloud run, with its own request timeout"
HELD = "firebase hosting in front"
EVENTS = 6


class StaticHost(HttpServer):
    """A host on an origin of its own, with the pages of the scoreboard, which name the service by its address."""

    service = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StaticPages)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class StaticPages(BaseHTTPRequestHandler):
    server: StaticHost

    def do_GET(self) -> None:
        name = self.path.removeprefix("/static/").strip("/") or "index.html"
        text = (STATIC / name).read_text().replace('"/sse', f'"{self.server.service}/sse')
        kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Tab:
    """A page in a tab of its own, which counts its events."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        driver.switch_to.new_window("tab")
        self.driver, self.handle = driver, driver.current_window_handle
        self.open(url)

    def open(self, url: str) -> None:
        self.run("location.href = arguments[0]", url)
        wait_until(
            lambda: self.run("return location.href.startsWith(arguments[0]) && typeof feed !== 'undefined'", url), 20
        )
        self.run("window.heard = 0; feed.on('message', () => { heard++; })")

    def run(self, script: str, *arguments: object) -> object:
        self.driver.switch_to.window(self.handle)
        return self.driver.execute_script(script, *arguments)

    def heard(self) -> int:
        return int(str(self.run("return heard")))

    def rows(self) -> int:
        return int(str(self.run("return document.querySelectorAll('tbody tr').length")))


@pytest.fixture
def platforms(tmp_path: Path, redis_url: str) -> Iterator[dict[str, Platform]]:
    """A platform with each fault that a page meets, each with an instance of its own, and one for a page elsewhere."""
    with ExitStack() as stack:
        host = stack.enter_context(StaticHost())
        elsewhere = Case(Faults(), settings={"SSE_ORIGINS": host.url})
        cases = {name: CASES[name] for name in (*ASLEEP, CUT, HELD)} | {host.url: elsewhere}

        def begin(name: str) -> Platform:
            space = f"n{abs(hash(name))}"
            env = {"SSE_REDIS_URL": redis_url, "SSE_NAMESPACE": space, "SSE_PROXIES": "1", **cases[name].settings}
            instance = Instance(tmp_path / space, SCOREBOARD, env)
            return Platform(stack.enter_context(instance), cases[name].faults)

        with ThreadPoolExecutor(4) as pool:
            started = dict(zip(cases, pool.map(begin, cases), strict=True))
        for platform in started.values():
            stack.enter_context(platform)
        StaticHost.service = started[host.url].url
        yield started


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    (folder := tmp_path / "browser").mkdir()
    driver = start_chromium(folder)
    yield driver
    driver.quit()


def test_the_scoreboard_shows_the_scores_on_every_platform(
    driver: webdriver.Chrome, platforms: dict[str, Platform]
) -> None:
    tabs = {
        name: Tab(driver, name if name.startswith("http") else f"{platform.url}/")
        for name, platform in platforms.items()
    }
    for name, tab in tabs.items():
        wait_until(lambda: tab.rows() == 5 and tab.heard() >= EVENTS, 40, 0.2, what=f"events: {name}")  # noqa: B023 - at once
    for name in ASLEEP:
        tabs[name].run("location.href = 'about:blank'")
    wait_until(lambda: platforms[ASLEEP[0]].is_frozen and not platforms[ASLEEP[1]].is_up, 20, what="both are at rest")
    for name in ASLEEP:
        tabs[name].open(f"{platforms[name].url}/")
        wait_until(lambda: tabs[name].rows() == 5 and tabs[name].heard() >= EVENTS, 40, 0.2, what=name)  # noqa: B023
    assert platforms[CUT].cuts
    elsewhere = next(name for name in tabs if name.startswith("http"))
    for name, transport in ((HELD, "poll"), (elsewhere, "eventsource")):
        wait_until(lambda: tabs[name].run("return feed.transport") == transport, 30, what=f"{transport}: {name}")  # noqa: B023
