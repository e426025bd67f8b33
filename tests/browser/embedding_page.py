"""Fixtures for pages with the embed script: a browser, pages that the tests write, and services with their origin."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from typing import Any

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.browser.origin import Origin
from tests.servers import Gunicorn, wait_until
from tests.tokens import KEY


class Pages(Origin):
    """An origin of pages that the tests write, each with its own headers."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[str, str]] = {}
        super().__init__()

    def write(self, html: str, policy: str = "") -> str:
        """Return the address of a page with this body and this Content-Security-Policy."""
        path = f"/written/{len(self._written)}"
        self._written[path] = (f'<!doctype html><meta charset="utf-8"><title>A page</title>{html}', policy)
        return self.url + path

    def _handler(self) -> type[SimpleHTTPRequestHandler]:
        written = self._written

        class Handler(super()._handler()):
            def do_GET(self) -> None:  # noqa: N802
                if self.path not in written:
                    super().do_GET()
                    return
                html, policy = written[self.path]
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                if policy:
                    self.send_header("Content-Security-Policy", policy)
                self.end_headers()
                self.wfile.write(html.encode())

        return Handler


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = start_chromium(tmp_path_factory.mktemp("chromium"), options=options)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with Pages() as pages:
        yield pages


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Iterator[Callable[..., Gunicorn]]:
    """Start a service once for each app and set of origins."""
    running: dict[tuple[str, ...], Gunicorn] = {}

    def serve(app: str = "wsgi:application", public: str = "*", origins: str = pages.url) -> Gunicorn:
        key = (app, public, origins)
        if key not in running:
            settings = {"PUBLIC": public, "ORIGINS": origins, "PUBLISH_KEYS": KEY, "RETRY": "300"}
            environment = {f"SSE_{name}": value for name, value in settings.items() if value}
            running[key] = Gunicorn(tmp_path_factory.mktemp("service"), app=app, env=environment).start()
        return running[key]

    yield serve
    for service in running.values():
        service.stop()


@pytest.fixture(scope="module")
def service(serve: Callable[..., Gunicorn]) -> Gunicorn:
    return serve()


_channels = itertools.count()


@pytest.fixture
def channel() -> str:
    """A channel that no other test uses."""
    return f"channel/{next(_channels)}"


class Page:
    """The page that the browser shows now."""

    def __init__(self, browser: webdriver.Chrome, pages: Pages) -> None:
        self._browser, self._pages = browser, pages
        self.requests: dict[str, str] = {}  # by id, the addresses of requests that have not ended

    def show(self, html: str, policy: str = "", pages: Pages | None = None) -> None:
        """Show a page with embed.js and then this body."""
        pages = pages or self._pages
        self._browser.get(pages.write(f'<script src="/embed.js"></script>{html}', policy))

    def run(self, code: str, *arguments: Any) -> Any:
        return self._browser.execute_script(code, *arguments)

    def value(self, expression: str) -> Any:
        return self.run(f"return {expression}")

    def wait(self, expression: str, timeout: float = 10) -> Any:
        try:
            return wait_until(lambda: self.value(expression), timeout, what=expression)
        except AssertionError as error:
            error.add_note(f"seen: {self.value('[seen.states, seen.events, seen.errors, seen.violations]')}")
            raise

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def new_requests(self, url: str) -> list[str]:
        """Return the addresses below `url` that were requested since the last call."""
        asked = []
        for entry in self._browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            name, parameters = message["method"], message["params"]
            if name == "Network.requestWillBeSent" and parameters["request"]["url"].startswith(url):
                self.requests[parameters["requestId"]] = parameters["request"]["url"]
                asked.append(parameters["request"]["url"])
            elif name in ("Network.loadingFinished", "Network.loadingFailed"):
                self.requests.pop(parameters["requestId"], None)
        return asked


@pytest.fixture
def page(browser: webdriver.Chrome, pages: Pages) -> Iterator[Page]:
    page = Page(browser, pages)
    page.new_requests("")
    page.requests.clear()
    yield page
    browser.get("about:blank")  # ends what the page has open


def script(service: Gunicorn, channel: str = "", **attributes: str) -> str:
    """Return the script tag; `into="#a"` becomes `data-into="#a"`."""
    if channel:
        attributes["channels"] = channel
    written = "".join(f" data-{name}='{value}'" for name, value in attributes.items())
    return f'<script src="{service.url}/sse/sse.js"{written} defer></script>'
