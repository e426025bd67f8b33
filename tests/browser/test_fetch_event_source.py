"""The fetch-event-source example of docs/clients.md, in Chromium, on another origin than the service."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from selenium import webdriver

from tests.browser.driver import start_chromium
from tests.docs import CLIENTS_ADDRESS, LOAD, code_blocks, section
from tests.live.test_client_programs import NUMBER, PAGE, port_of
from tests.proxies import EventCuttingProxy
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, HttpServer, free_port, wait_until
from tests.tokens import KEY

HEAD = "<!doctype html><script>heard = []; console.log = (line) => heard.push(String(line));</script>"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """A server of the files in tmp_path/page."""
    (tmp_path / "page").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "page"))
    with HttpServer(("127.0.0.1", free_port()), handler) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    driver = start_chromium(tmp_path)
    yield driver
    driver.quit()


def bundle(folder: Path, port: int) -> None:
    """Build a page of the program and its package. It asks the service on this port."""
    ((_, code),) = code_blocks(section(PAGE, "Browser: fetch-event-source"))
    (folder / "node_modules").symlink_to(ROOT / "tests" / "node_modules")
    (folder / "program.mjs").write_text(code.replace(CLIENTS_ADDRESS, f"http://127.0.0.1:{port}"))
    esbuild = ROOT / "tests/node_modules/esbuild/bin/esbuild"
    command = [str(esbuild), "program.mjs", "--bundle", "--outfile=page/program.js", "--log-level=warning"]
    subprocess.run(command, cwd=folder, check=True, timeout=30)
    (folder / "page/index.html").write_text(f'{HEAD}<script src="program.js" type="module"></script>')


def test_it_goes_on_after_a_cut_a_lifetime_and_a_time_in_the_background(
    tmp_path: Path, origin: str, chromium: webdriver.Chrome
) -> None:
    env = {
        "SSE_PUBLIC": "orders",
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_ORIGINS": origin,
        "SSE_RETRY": "300",
        "SSE_STREAM_LIFETIME": "5",
    }
    published: list[str] = []
    with Gunicorn(tmp_path, env=env) as server, EventCuttingProxy(port_of(server), NUMBER) as proxy:

        def publish_next() -> None:
            published.append(str(len(published) + 1))
            publish(server, "orders", {"number": len(published)}, type="paid")

        def heard() -> bool:
            return bool(chromium.execute_script("return heard") == [LOAD, *published])

        bundle(tmp_path, proxy.port)
        chromium.get(f"{origin}/index.html")
        wait_until(heard, what="the state is loaded")
        publish_next()
        wait_until(heard, what="the first event")
        proxy.to_cut = 2
        publish_next()
        wait_until(lambda: proxy.cuts == 2 and heard(), what="the event that was cut")
        streams = proxy.streams
        wait_until(lambda: proxy.streams > streams, 20, what="a stream after the end of the last one's lifetime")
        publish_next()
        wait_until(heard, what="an event of that stream")

        page = chromium.current_window_handle
        chromium.switch_to.new_window("tab")
        streams = proxy.streams
        publish_next()
        chromium.switch_to.window(page)
        wait_until(lambda: proxy.streams > streams and heard(), what="the event from its time in the background")
