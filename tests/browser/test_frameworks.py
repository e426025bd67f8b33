"""The examples of docs/frameworks.md, unchanged, in Chromium with the real packages, on another origin."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver

from tests import client
from tests.browser.driver import start_chromium
from tests.browser.origin import Origin
from tests.docs import code_blocks, section
from tests.proxies import EventCuttingProxy
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, Nginx, wait_until
from tests.tokens import KEY

MODULES = ROOT / "tests" / "node_modules"
APP = "tests.browser.apps.framework_pages:application"
PAGE = (ROOT / "docs" / "frameworks.md").read_text()
WATCH = """<script>
  var faults = [];
  addEventListener("error", (event) => faults.push(event.message));
  addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
</script>"""


def item(number: int) -> str:
    return f'<li id="order-{number}">{number}</li>'


def json_rows(name: str, rows: list[int]) -> tuple[str, str]:
    return "application/json", json.dumps([{"number": number} for number in rows])


def html_rows(name: str, rows: list[int]) -> tuple[str, str]:
    return "text/html", "".join(map(item, rows))


def datastar_rows(name: str, rows: list[int]) -> tuple[str, str]:
    fragment = f'<ul id="{name}">{html_rows(name, rows)[1]}</ul>'
    return "text/event-stream", f"event: datastar-merge-fragments\ndata: fragments {fragment}\n\n"


@dataclass
class Recipe:
    """The facts about a section that a test needs beyond its code blocks."""

    section: str
    packages: dict[str, str] = field(default_factory=dict)
    """The files of packages, by the names that the page loads them under."""
    type: str = "paid"
    data: Callable[[str, int], Any] = lambda name, number: {"number": number}
    """An event's data for a list of this name."""
    leave: str = "document.querySelector('li').parentNode.remove()"
    """The code that takes the list out of the page."""
    asked: frozenset[str] = frozenset()
    """The headers that preflights ask for."""
    only: int | None = None
    """The number of the block that makes the page; None if all blocks do."""
    mount: str = ""
    """The code that starts a recipe that is bundled."""
    state: Callable[[str, list[int]], tuple[str, str]] = json_rows
    """The media type and text of the state that a page fetches after a reset."""
    tells_resets: bool = True
    renders: bool = False
    """Whether the page comes with its list in it."""


def turbo_stream(name: str, number: int) -> str:
    return f'<turbo-stream action="append" target="{name}"><template>{item(number)}</template></turbo-stream>'


def datastar_lines(name: str, number: int) -> str:
    return f"selector #{name}\nmergeMode append\nfragments {item(number)}"


MOUNT_REACT = """
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Orders } from "./Orders.jsx";

const root = createRoot(document.getElementById("app"));
root.render(<StrictMode><Orders /></StrictMode>);
window.leave = () => root.unmount();
"""
MOUNT_VUE = """
import { createApp } from "vue";
import { Orders } from "./Orders.jsx";

const app = createApp(Orders);
app.mount("#app");
window.leave = () => app.unmount();
"""
HTMX_2 = {"/htmx.js": "htmx2/dist/htmx.min.js", "/htmx-ext-sse.js": "htmx-ext-sse/dist/sse.min.js"}
HTMX_4 = {"/htmx.js": "htmx4/dist/htmx.min.js", "/hx-sse.js": "htmx4/dist/ext/hx-sse.min.js"}
TURBO = {"/turbo.js": "@hotwired/turbo/dist/turbo.es2017-esm.js"}
DATASTAR = {"/datastar.js": "@starfederation/datastar/dist/datastar.js"}
SWAP_AWAY = "htmx.ajax('GET', '/empty', {target: 'body', swap: 'innerHTML'})"
HX = frozenset({"hx-current-url", "hx-request", "hx-request-type", "hx-source", "hx-target"})

RECIPES = {
    "react": Recipe("React", mount=MOUNT_REACT, leave="leave()"),
    "vue": Recipe("Vue", mount=MOUNT_VUE, leave="leave()"),
    "alpine": Recipe("Alpine", {"/alpine.js": "alpinejs/dist/cdn.min.js"}),
    "htmx 2": Recipe(
        "htmx 2",
        HTMX_2,
        data=lambda name, number: item(number),
        leave=SWAP_AWAY,
        state=html_rows,
    ),
    "htmx 4": Recipe(
        "htmx 4",
        HTMX_4,
        type="message",
        data=lambda name, number: item(number),
        leave=SWAP_AWAY,
        asked=HX | {"last-event-id"},
        state=html_rows,
    ),
    "turbo": Recipe(
        "Turbo Streams",
        TURBO,
        type="message",
        data=turbo_stream,
        leave="document.querySelector('sse-source').remove()",
        only=0,
        renders=True,
    ),
    "turbo's own element": Recipe(
        "Turbo Streams",
        TURBO,
        type="message",
        data=turbo_stream,
        leave="document.querySelector('turbo-stream-source').remove()",
        only=1,
        tells_resets=False,
        renders=True,
    ),
    "datastar": Recipe(
        "Datastar",
        DATASTAR,
        type="datastar-merge-fragments",
        data=datastar_lines,
        leave="leaving.abort()",
        asked=frozenset({"content-type", "datastar-request", "last-event-id"}),
        only=0,
        tells_resets=False,
    ),
    "datastar with sse.js": Recipe(
        "Datastar",
        DATASTAR,
        type="datastar-merge-fragments",
        data=datastar_lines,
        leave="source.close()",
        only=2,
        state=datastar_rows,
    ),
}


class Site(Origin):
    """The origin of the page: the page, its packages, and the state that it fetches."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, str]] = {}
        super().__init__()

    def become(self, recipe: Recipe, name: str, service: str, folder: Path) -> None:
        """Serve this recipe, for a list and channel of this name."""
        self._recipe, self._name = recipe, name
        self.rows: list[int] = []
        """The state: each number that was published."""
        self.files = {path: ("text/javascript", package(file)) for path, file in recipe.packages.items()}
        parts = [
            code.replace("https://push.example", service).replace("orders", name)
            for place, (language, code) in enumerate(code_blocks(section(PAGE, recipe.section)))
            if language != "python" and recipe.only in (None, place)
        ]
        if recipe.mount:
            self.files["/bundle.js"] = ("text/javascript", bundle(folder, *parts, recipe.mount))
            parts = [
                f'<script src="{service}/sse/sse.js"></script><main id="app"></main><script src="/bundle.js"></script>'
            ]
        self._html = '<!doctype html><meta charset="utf-8"><title>A page</title>' + WATCH + "".join(parts)

    def answer(self, path: str) -> tuple[str, str] | None:
        """Return the media type and text of the answer at this path."""
        if path == "/":
            items = html_rows(self._name, self.rows)[1] if self._recipe.renders else ""
            return "text/html", self._html.replace(f'<ul id="{self._name}">', f'<ul id="{self._name}">{items}')
        if path == f"/{self._name}":
            return self._recipe.state(self._name, self.rows)
        if path == f"/{self._name}/count":
            return "text/html", str(len(self.rows))
        if path == "/empty":
            return "text/html", "<p>empty</p>"
        return self.files.get(path)

    def _handler(self) -> type[SimpleHTTPRequestHandler]:
        answer = self.answer

        class Handler(super()._handler()):
            def do_GET(self) -> None:  # noqa: N802
                found = answer(urlsplit(self.path).path)
                if found is None:
                    super().do_GET()
                    return
                type, text = found
                body = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", f"{type}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler


def package(file: str) -> str:
    """Return a package's file for browsers. Datastar's modules are put together."""
    path = MODULES / file
    return esbuild(path, "--format=esm") if "datastar" in file else path.read_text()


def bundle(folder: Path, hook: str, component: str, mount: str) -> str:
    """Return the page's code in one file, as a build tool makes it."""
    for name, code in {"useFeed.js": hook, "Orders.jsx": component, "main.jsx": mount}.items():
        (folder / name).write_text(code)
    # Vue is to compile templates in the browser.
    return esbuild(folder / "main.jsx", "--jsx=automatic", "--alias:vue=vue/dist/vue.esm-bundler.js")


def esbuild(file: Path, *arguments: str) -> str:
    fixed = ["--bundle", '--define:process.env.NODE_ENV="development"', "--log-level=warning"]
    done = subprocess.run(
        [str(MODULES / ".bin" / "esbuild"), file.name, *fixed, *arguments],
        cwd=file.parent,
        env=os.environ | {"NODE_PATH": str(MODULES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"), "--ignore-certificate-errors")
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[Callable[..., Gunicorn]]:
    """Start a service once for each lifetime of its streams."""
    running: dict[int, Gunicorn] = {}

    def serve(lifetime: int = 900) -> Gunicorn:
        if lifetime not in running:
            settings = {
                "SSE_PUBLIC": "*",
                "SSE_ORIGINS": site.url,
                "SSE_PUBLISH_KEYS": KEY,
                "SSE_RETRY": "300",
                "SSE_STREAM_LIFETIME": str(lifetime),
            }
            running[lifetime] = Gunicorn(tmp_path_factory.mktemp("service"), app=APP, env=settings).start()
        return running[lifetime]

    yield serve
    for service in running.values():
        service.stop()


_names = itertools.count()


class Page:
    """A recipe's page in the browser, and its service behind a proxy that can cut connections."""

    def __init__(
        self,
        browser: webdriver.Chrome,
        site: Site,
        service: Gunicorn,
        proxy: EventCuttingProxy,
        recipe: Recipe,
        folder: Path,
        address: str = "",
    ) -> None:
        self._browser, self.site, self._service, self.proxy, self._recipe = browser, site, service, proxy, recipe
        self.name = f"orders{next(_names)}"
        self.asked: list[list[str]] = []
        """The method, the path and the preflight's headers of each request to the service."""
        site.become(recipe, self.name, address or proxy.url, folder)

    def show(self) -> None:
        self.subscribers()
        self.asked.clear()
        self._browser.get(f"{self.site.url}/")

    def value(self, expression: str) -> Any:
        return self._browser.execute_script(f"return {expression}")

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.site.rows.append(number)
            data = self._recipe.data(self.name, number)
            publish(self._service, self.name, data, type=self._recipe.type)

    def wait_for_rows(self, *numbers: int) -> None:
        """Wait until the list has these rows, each once and in this order."""
        try:
            wait_until(lambda: self.rows() == list(numbers), 15, what=f"the rows {numbers}")
        except AssertionError as error:
            self.subscribers()
            error.add_note(f"rows: {self.rows()}, faults: {self.value('faults')}, asked: {self.asked}")
            error.add_note(f"console: {self._browser.get_log('browser')}")
            raise

    def rows(self) -> list[int]:
        texts = self.value("Array.from(document.querySelectorAll('li'), (row) => row.textContent)")
        return [int(text) for text in texts]

    def subscribers(self) -> int:
        told = client.request(self._service.url, "GET", "/asked").json()
        self.asked += told["asked"]
        return int(told["subscribers"])

    def streams(self) -> int:
        """Return how many streams were asked for since the page was opened."""
        self.subscribers()
        return sum((method, path) == ("GET", "/sse/stream") for method, path, _ in self.asked)

    def wait_for_subscribers(self, count: int) -> None:
        wait_until(lambda: self.subscribers() == count, 15, what=f"{count} subscribers")

    def leave(self) -> None:
        self._browser.execute_script(self._recipe.leave)

    def cut(self, *meanwhile: int, forget: bool = False) -> None:
        """Cut every connection, and publish these before any comes back; to a service that forgets all before them."""
        self.proxy.refuse()
        assert self.proxy.cut(reset=True) > 0
        if forget:
            self.subscribers()
            self._service.stop()
            self._service.start()
        self.publish(*meanwhile)
        self.proxy.admit()


@pytest.fixture
def open_page(
    browser: webdriver.Chrome, site: Site, serve: Callable[..., Gunicorn], tmp_path: Path
) -> Iterator[Callable[..., Page]]:
    proxies: list[EventCuttingProxy] = []

    def open_page(recipe: Recipe, lifetime: int = 900, address: str = "") -> Page:
        service = serve(lifetime)
        proxy = EventCuttingProxy(urlsplit(service.url).port or 0, b"data: ")
        proxies.append(proxy)
        proxy.__enter__()
        return Page(browser, site, service, proxy, recipe, tmp_path, address)

    yield open_page
    browser.get("about:blank")
    for proxy in proxies:
        proxy.__exit__()


@pytest.mark.parametrize("name", RECIPES)
def test_each_event_is_in_the_page_once_and_in_order_and_leaving_ends_the_connection(
    name: str, open_page: Callable[..., Page]
) -> None:
    recipe = RECIPES[name]
    page = open_page(recipe)
    page.publish(1, 2)
    page.show()
    page.wait_for_rows(1, 2)
    page.wait_for_subscribers(1)
    page.publish(3)
    page.wait_for_rows(1, 2, 3)
    assert page.streams() == 1  # also where effects run twice, and where the page was drawn anew
    page.cut(4, 5)
    page.publish(6)
    page.wait_for_rows(1, 2, 3, 4, 5, 6)
    page.wait_for_subscribers(1)

    page.cut(7, 8, forget=True)
    known = [*range(1, 9)] if recipe.tells_resets else [*range(1, 7)]
    page.wait_for_rows(*known)
    page.wait_for_subscribers(1)
    page.publish(9)
    page.wait_for_rows(*known, 9)

    page.leave()
    page.wait_for_subscribers(0)
    preflights = {header for _, path, headers in page.asked for header in headers.split(",") if header}
    assert preflights == recipe.asked
    assert page.value("faults") == []


@pytest.mark.parametrize("name", ["htmx 2", "htmx 4"])
def test_an_element_that_other_code_removes_ends_its_connection_with_the_next_event(
    name: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(RECIPES[name])
    page.show()
    page.wait_for_subscribers(1)
    page.publish(1)
    page.wait_for_rows(1)
    page.value("document.querySelector('[sse-connect], ul').remove()")
    page.publish(2)
    page.wait_for_subscribers(0)


def test_an_event_that_is_a_reason_to_fetch_brings_the_newest_state(open_page: Callable[..., Page]) -> None:
    page = open_page(RECIPES["htmx 2"])
    page.show()
    page.wait_for_subscribers(1)

    def wait_for(count: int) -> None:
        wait_until(lambda: page.value("document.querySelector('p').textContent") == str(count), 15, what=f"{count}")

    page.publish(*range(1, 9))  # faster than they are fetched
    wait_for(8)
    page.cut(9, forget=True)
    wait_for(9)


@pytest.mark.parametrize("name", ["htmx 2", "htmx 4", "datastar"])
def test_an_event_that_breaks_off_comes_again(name: str, open_page: Callable[..., Page]) -> None:
    page = open_page(RECIPES[name])
    page.publish(1)
    page.show()
    page.wait_for_rows(1)
    page.wait_for_subscribers(1)
    page.proxy.to_cut = 1
    page.publish(2)
    wait_until(lambda: page.proxy.cuts, 15, what="the stream is broken off")
    page.publish(3)
    page.wait_for_rows(1, 2, 3)


@pytest.mark.parametrize("name", ["htmx 4", "datastar"])
def test_through_nginx_a_fetch_of_the_framework_s_own_comes_back_from_the_end_of_a_stream_s_life(
    name: str, open_page: Callable[..., Page], serve: Callable[..., Gunicorn], tmp_path: Path
) -> None:
    with Nginx(tmp_path / "nginx", serve(5).bind) as nginx:
        page = open_page(RECIPES[name], 5, nginx.url)
        page.publish(1)
        page.show()
        page.wait_for_rows(1)
        wait_until(lambda: page.streams() == 2, 20, what="a second stream")
        page.publish(2)
        page.wait_for_rows(1, 2)


def test_through_nginx_datastar_comes_back_from_a_restart(
    open_page: Callable[..., Page], serve: Callable[..., Gunicorn], tmp_path: Path
) -> None:
    service = serve()
    with Nginx(tmp_path / "nginx", service.bind) as nginx:
        page = open_page(RECIPES["datastar"], address=nginx.url)
        page.publish(1)
        page.show()
        page.wait_for_rows(1)
        service.stop()
        wait_until(
            lambda: re.search(r" 502 \S+$", nginx.access_log.read_text(), re.MULTILINE), 20, what="a 502 for nginx"
        )
        service.start()
        page.wait_for_subscribers(1)
        page.publish(2)
        page.wait_for_rows(1, 2)
