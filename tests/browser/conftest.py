"""Chromium, and a page on an origin of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests import servers
from tests.live.conftest import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run"
)


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.accept_insecure_certs = True
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path}/chromium"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver", log_output=str(tmp_path / "chromedriver.log")))
    driver.set_script_timeout(10)
    try:
        yield driver
    finally:
        driver.quit()


class PageHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def page_origin() -> Iterator[str]:
    """Serves this folder's pages/."""
    handler = functools.partial(PageHandler, directory=str(Path(__file__).parent / "pages"))
    with ThreadingHTTPServer(("127.0.0.1", servers.free_port()), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(5)
