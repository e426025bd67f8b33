"""The doctor's page in Chromium names the faults of proxies at another origin, and finds none where all is right."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser.driver import start_chromium
from tests.deployed import DeployedHaproxy
from tests.fronts import RIGHT_NGINX, nginx
from tests.proxy_servers import BufferingNginx, Caddy, Haproxy
from tests.servers import Gunicorn, wait_until

WAYS: dict[str, tuple[Any, set[str]]] = {
    "deploy/haproxy": (DeployedHaproxy, set()),
    "nginx, buffering": (BufferingNginx, {"buffered"}),
    "caddy, gzip of streams": (Caddy, {"buffered"}),  # a page cannot see the Content-Encoding at another origin
    "haproxy, 5 s": (Haproxy, {"idle_cutoff", "poll_cut"}),
    "nginx, a second CORS header": (
        nginx(f"{RIGHT_NGINX} add_header Access-Control-Allow-Origin * always;"),
        {"cors_missing"},  # nor the headers of an answer that it may not read
    ),
}
FLAGS = (
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--ignore-certificate-errors",
)


@dataclass
class Told:
    """What the page has told of one way."""

    faults: set[str]
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Told]]:
    """Measure all ways side by side, each in a window of its own, with a service of its own behind it."""
    directory = tmp_path_factory.mktemp("ways")
    with contextlib.ExitStack() as stack:
        judge = stack.enter_context(Gunicorn(directory / "judge", env={"SSE_DOCTOR": "1"}))
        environment = {"SSE_DOCTOR": "1", "SSE_ORIGINS": judge.url, "SSE_PROXIES": "1"}
        browser = start_chromium(directory, *FLAGS)
        stack.callback(browser.quit)
        windows = {}
        for number, (name, (make, _)) in enumerate(WAYS.items()):
            service = stack.enter_context(Gunicorn(directory / f"app{number}", env=environment))
            proxy = stack.enter_context(make(directory / f"proxy{number}", int(service.bind.rpartition(":")[2])))
            browser.switch_to.new_window("window")
            windows[name] = browser.current_window_handle
            browser.get(f"{judge.url}/sse/doctor#url={proxy.url}/sse")
            # The long form, and eight seconds in place of ninety.
            browser.execute_script("document.querySelector('input[name=long]').value = '8'")
            browser.find_element(By.ID, "start").click()
        yield {name: result(browser, window) for name, window in windows.items()}


def result(browser: webdriver.Chrome, window: str) -> Told:
    browser.switch_to.window(window)
    wait_until(browser.find_element(By.ID, "verdict").is_displayed, 60, 0.2, "the page has a verdict")
    links = browser.find_elements(By.CSS_SELECTOR, "article[data-level=fault] a")
    measured = browser.execute_script("return document.getElementById('measured').textContent")
    return Told({(link.get_attribute("href") or "").partition("#")[2] for link in links}, json.loads(measured))


@pytest.mark.parametrize("way", WAYS)
def test_the_page_names_the_true_faults_and_no_others(told: dict[str, Told], way: str) -> None:
    assert told[way].faults == WAYS[way][1], json.dumps(told[way].measured)
